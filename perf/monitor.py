"""What the conflict monitor costs: a measurement over K sequential backward passes, and over training.

On every network three things are timed in turn, in interleaved rounds: K backward passes one after another into
``.grad`` (``seqK``, what a method without an engine pays), one measurement of all layers (``measure``, bar 1.15 of
seqK), and a training step with one backward pass of the summed losses (``step``: forward, backward, optimizer). From
them comes what a run pays that measures at every 20th step, ``measure / (20 x step)`` (bar 3 %), and the same for a
balancer that makes K backward passes itself (``step_pcgrad``), once with passes of the monitor's own and once told by
the balancer (``backward(losses, monitor=monitor)``). Medians of ratios inside a round.

    python perf/monitor.py [--rounds 15] [--threads 1] [--out perf/results/NAME.json]
"""

import argparse
import json
import platform
import statistics
import time
from pathlib import Path

import torch
import torchvision
from torch import nn

from counterpoint.balancers import PCGrad
from counterpoint.diagnostics import ConflictMonitor

EVERY = 20


class Network(nn.Module):
    """A trunk and one linear head per task."""

    def __init__(self, trunk: nn.Module, width: int, num_tasks: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.heads = nn.ModuleList(nn.Linear(width, 1) for _ in range(num_tasks))

    def forward(self, x):
        h = self.trunk(x)
        return [head(h) for head in self.heads]


def mlp() -> nn.Module:
    layers = [nn.Sequential(nn.Linear(512, 512), nn.ReLU()) for _ in range(5)]
    return nn.Sequential(*layers)


def resnet18() -> nn.Module:
    network = torchvision.models.resnet18()
    network.fc = nn.Identity()
    return network


CASES = {
    "MLP 5x512, batch 128, K=3": (mlp, 512, 3, (128, 512)),
    "ResNet-18 64x64, batch 16, K=3": (resnet18, 512, 3, (16, 3, 64, 64)),
}


class Case:
    """One network with what is timed on it."""

    def __init__(self, name: str) -> None:
        torch.manual_seed(0)
        trunk, width, self.num_tasks, shape = CASES[name]
        self.net = Network(trunk(), width, self.num_tasks)
        self.x, self.targets = torch.randn(shape), torch.randn(self.num_tasks, shape[0], 1)
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=1e-4)
        self.balancer = PCGrad(self.num_tasks)
        self.monitor = ConflictMonitor(self.net, num_tasks=self.num_tasks)

    def losses(self) -> list[torch.Tensor]:
        pairs = zip(self.net(self.x), self.targets, strict=True)
        return [(y - target).square().mean() for y, target in pairs]

    def seconds(self) -> dict[str, float]:
        """Time each thing once."""
        found = {}
        losses = self.losses()
        start = time.perf_counter()
        for loss in losses:
            self.optimizer.zero_grad()
            loss.backward(retain_graph=True)
        found["seqK"] = time.perf_counter() - start
        losses = self.losses()
        start = time.perf_counter()
        self.monitor.observe(losses)
        found["measure"] = time.perf_counter() - start
        start = time.perf_counter()
        self.optimizer.zero_grad()
        torch.stack(self.losses()).sum().backward()
        self.optimizer.step()
        found["step"] = time.perf_counter() - start
        start = time.perf_counter()
        self.optimizer.zero_grad()
        self.balancer.backward(self.losses())
        self.optimizer.step()
        found["step_pcgrad"] = time.perf_counter() - start
        start = time.perf_counter()
        self.optimizer.zero_grad()
        self.balancer.backward(self.losses(), monitor=self.monitor)
        self.optimizer.step()
        found["told"] = time.perf_counter() - start
        return found


def measure(rounds: int) -> dict[str, dict[str, float]]:
    cases = {name: Case(name) for name in CASES}
    for case in cases.values():
        case.seconds()
    times = {name: [] for name in cases}
    for _ in range(rounds):
        for name, case in cases.items():
            times[name].append(case.seconds())
    results = {}
    for name, found in times.items():
        results[name] = {
            "measure / seqK": statistics.median(t["measure"] / t["seqK"] for t in found),
            f"every {EVERY}, % of a summed step": 100
            * statistics.median(t["measure"] / t["step"] for t in found)
            / EVERY,
            f"every {EVERY}, % of a PCGrad step": 100
            * statistics.median(t["measure"] / t["step_pcgrad"] for t in found)
            / EVERY,
            f"every {EVERY}, told by PCGrad, % of its step": 100
            * (statistics.median(t["told"] / t["step_pcgrad"] for t in found) - 1)
            / EVERY,
        }
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    results = measure(args.rounds)
    for name, ratios in results.items():
        print(name, *(f"{key}: {value:.2f}" for key, value in ratios.items()), sep="\n  ")
    if args.out is not None:
        content = {"results": results, "rounds": args.rounds, "threads": args.threads}
        content |= {"torch": torch.__version__, "processor": platform.processor() or platform.machine()}
        args.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
