"""Time of a training step of a split network over the same network written by hand: prefix once, then K suffixes.

The network is a chain of residual stages (ResNet-18's plan, narrow) or of linear ones, cut before one of them. By
hand, the stages before the cut run once and K deep copies of the others one after another. Split, all layers after the
cut have one copy per task (``all``), or only the first of them has (``first``: the same work, most parameters shared).
``late`` splits the last layer only, over the unsplit network. Of forward, backward and optimizer step, and of forward
alone in eval mode: the median and the quartiles of the ratios within a round; each round runs all networks, begins with
another one, and counts the time of the processor, as others may use the machine.

    python perf/splitting.py [--rounds 40] [--out perf/results/NAME.json]
"""

import argparse
import copy
import itertools
import json
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from counterpoint.splitting import find_layers, split, streams


class Block(nn.Module):
    """A residual block with an in-place sum."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        stride = 1 if inputs == outputs else 2
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.down = nn.Identity()
        if stride == 2:
            self.down = nn.Sequential(nn.Conv2d(inputs, outputs, 1, 2, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x):
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += self.down(x)
        return self.relu(out)


def residual(width: int) -> nn.Sequential:
    torch.manual_seed(0)
    stem = nn.Sequential(nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True))
    widths = [width, width, width, 2 * width, 2 * width, 4 * width, 4 * width, 8 * width, 8 * width]
    blocks = [Block(a, b) for a, b in itertools.pairwise(widths)]
    return nn.Sequential(stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8 * width, 10))


def mlp(width: int) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(3072 if i == 0 else width, width), nn.ReLU()) for i in range(9)]
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(width, 10))


class ByHand(nn.Module):
    """Prefix once, then K suffixes."""

    def __init__(self, network: nn.Sequential, cut: int, num_tasks: int) -> None:
        super().__init__()
        self.prefix = network[:cut]
        self.suffixes = nn.ModuleList([copy.deepcopy(network[cut:]) for _ in range(num_tasks)])

    def forward(self, x):
        x = self.prefix(x)
        return [suffix(x) for suffix in self.suffixes]


def variants(name: str, cut: int, num_tasks: int):
    build = {"residual": lambda: residual(16), "mlp": lambda: mlp(512)}[name]
    layers = [layer for layer in find_layers(build()) if int(layer.split(".")[0]) >= cut]
    plain = build()
    yield "by_hand", ByHand(build(), cut, num_tasks), list
    yield "all", split(build(), layers, num_tasks), streams
    yield "first", split(build(), layers[:1], num_tasks), streams
    yield "unsplit", plain, lambda output: [output] * num_tasks
    yield "late", split(build(), layers[-1:], num_tasks), streams


def training(network, unpack, y):
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)

    def run(x):
        optimizer.zero_grad()
        sum(nn.functional.cross_entropy(output, y) for output in unpack(network(x))).backward()
        optimizer.step()

    return run


def evaluation(network, unpack):
    network.eval()

    @torch.no_grad()
    def run(x):
        return unpack(network(x))

    return run


def measure(name: str, cut: int, num_tasks: int, rounds: int) -> dict[str, Any]:
    x, y = torch.randn(32, 3, 32, 32), torch.randint(10, (32,))
    found = {}
    for mode in ("step", "eval"):
        runs = {}
        for key, network, unpack in variants(name, cut, num_tasks):
            runs[key] = training(network, unpack, y) if mode == "step" else evaluation(network, unpack)
        spent: dict[str, list[float]] = {key: [] for key in runs}
        order = list(runs)
        for round_ in range(rounds + 2):
            for key in order:
                begin = time.process_time()
                runs[key](x)
                if round_ >= 2:
                    spent[key].append(time.process_time() - begin)
            order.append(order.pop(0))
        found[f"{mode}_by_hand_ms"] = statistics.median(spent["by_hand"]) * 1000
        for key, base in (("all", "by_hand"), ("first", "by_hand"), ("late", "unsplit")):
            ratios = [one / other for one, other in zip(spent[key], spent[base], strict=True)]
            low, middle, high = statistics.quantiles(ratios, n=4)
            found[f"{mode}_{key}_over_{base}"] = middle
            found[f"{mode}_{key}_over_{base}_quartiles"] = [round(low, 3), round(high, 3)]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    content = {"torch": torch.__version__, "machine": platform.machine(), "threads": options.threads, "cases": {}}
    for name, cut, num_tasks in (("residual", 1, 2), ("residual", 5, 3), ("residual", 5, 8), ("mlp", 4, 3)):
        found = measure(name, cut, num_tasks, options.rounds)
        case = f"{name} cut={cut} K={num_tasks}"
        content["cases"][case] = found | {key: round(value, 3) for key, value in found.items() if type(value) is float}
        print(f"{case}: " + ", ".join(f"{key} {value}" for key, value in content["cases"][case].items()), flush=True)
    if options.out:
        options.out.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
