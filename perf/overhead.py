"""What the plain engine costs over the least that its work could cost, as ratios inside one run.

Medians over interleaved rounds, forward excluded: the walk that finds the shared parameters over the summed backward
pass; ``Equal.backward`` over ``sum(losses).backward()``; ``PCGrad.backward`` over seqK, the K sequential backward
passes written into one preallocated matrix (heads once, trunk K times), also with ``engine="low_memory"``.

    python perf/overhead.py [--rounds 15] [--out perf/results/NAME.json]
"""

import argparse
import json
import platform
import statistics
import time
from pathlib import Path

import torch
from torch import nn

from counterpoint import balancers, blocks
from counterpoint.gradients import find_scope

CASES = (("mlp", 3), ("mlp", 16), ("mlp", 40), ("resnet18", 3), ("resnet18", 8), ("transformer", 8))


class Transformer(nn.Module):
    """An encoder of 6 layers of width 192 on 64 patches and one token more."""

    channels = (192,)

    def __init__(self):
        super().__init__()
        self.embed, self.norm = nn.Linear(48, 192), nn.LayerNorm(192)
        self.token, self.place = nn.Parameter(torch.zeros(1, 1, 192)), nn.Parameter(torch.randn(1, 65, 192) / 50)
        layer = nn.TransformerEncoderLayer(192, 3, 768, 0.0, "gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 6, enable_nested_tensor=False)

    def forward(self, x):
        x = torch.cat([self.token.expand(len(x), -1, -1), self.embed(x)], dim=1) + self.place
        return self.norm(self.layers(x))[:, 0]


def build(name: str, num_tasks: int):
    torch.manual_seed(0)
    if name == "mlp":
        trunk, x = blocks.MLP((512,), widths=(512,) * 5), torch.randn(32, 512)
    elif name == "transformer":
        trunk, x = Transformer(), torch.randn(16, 64, 48)
    else:
        trunk, x = blocks.ResNet18((3, 64, 64)), torch.randn(16, 3, 64, 64)
    kind = nn.Linear if name == "transformer" else blocks.Classifier
    heads = nn.ModuleList([kind(trunk.channels[-1], 10) for _ in range(num_tasks)])
    y = torch.randint(10, (len(x), num_tasks))

    def forward():
        trunk.zero_grad()
        heads.zero_grad()
        z = trunk(x)
        return z, [nn.functional.cross_entropy(head(z), y[:, k]) for k, head in enumerate(heads)]

    return trunk, forward


def seq_k(trunk, buffer):
    """K backward passes of the trunk through views of one buffer, after one backward pass of all heads."""
    parameters = list(trunk.parameters())

    def run(z, losses):
        leaves = torch.autograd.grad(losses, [z] * 1, retain_graph=True)  # heads' share of the time, walked once
        for k, _ in enumerate(losses):
            start = 0
            for parameter in parameters:
                parameter.grad = buffer[k, start : start + parameter.numel()].view_as(parameter)
                start += parameter.numel()
            buffer[k].zero_()
            z.backward(leaves[0], retain_graph=k < len(losses) - 1)

    return run


def clock(function, *arguments) -> float:
    begin = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - begin


def measure(name: str, num_tasks: int, rounds: int) -> dict[str, float]:
    trunk, forward = build(name, num_tasks)
    buffer = torch.zeros(num_tasks, sum(p.numel() for p in trunk.parameters()))
    equal, pcgrad, frugal = balancers.Equal(num_tasks), balancers.PCGrad(num_tasks), balancers.PCGrad(num_tasks)
    frugal.engine = "low_memory"
    runs = {
        "summed": lambda z, losses: sum(losses).backward(),
        "walk": lambda z, losses: find_scope(losses),
        "equal": lambda z, losses: equal.backward(losses),
        "seq_k": seq_k(trunk, buffer),
        "pcgrad": lambda z, losses: pcgrad.backward(losses),
        "pcgrad_low_memory": lambda z, losses: frugal.backward(losses),
        "pcgrad_features": lambda z, losses: pcgrad.backward(losses, features=z, level="features"),
    }
    times: dict[str, list[float]] = {key: [] for key in runs}
    for round_ in range(rounds + 2):
        for key, function in runs.items():
            spent = clock(function, *forward())
            if round_ >= 2:
                times[key].append(spent)
    median = {key: statistics.median(values) for key, values in times.items()}
    return {
        "summed_ms": median["summed"] * 1000,
        "seq_k_over_summed": median["seq_k"] / median["summed"],
        "walk_over_summed": median["walk"] / median["summed"],
        "equal_over_summed": median["equal"] / median["summed"],
        "pcgrad_over_seq_k": median["pcgrad"] / median["seq_k"],
        "pcgrad_low_memory_over_seq_k": median["pcgrad_low_memory"] / median["seq_k"],
        "pcgrad_features_over_summed": median["pcgrad_features"] / median["summed"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    content = {"torch": torch.__version__, "machine": platform.machine(), "threads": options.threads, "cases": {}}
    for name, num_tasks in CASES:
        found = measure(name, num_tasks, options.rounds)
        content["cases"][f"{name} K={num_tasks}"] = {key: round(value, 3) for key, value in found.items()}
        print(f"{name} K={num_tasks}: " + ", ".join(f"{key} {value:.3f}" for key, value in found.items()), flush=True)
    if options.out:
        options.out.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
