"""What selective updates cost beside the training itself, at 11 tasks on a trunk of the size of ViT-tiny.

    python perf/selective.py [--rounds 5]

Regroups at every batch. Prints the share of a batch's time that is spent in `_observe` and `_plan`, measured inside the
same steps, and the extra memory in numbers.
"""

import argparse
import statistics
import time

import torch
from torch import nn

import counterpoint as cp

TASKS = 11


class Trunk(nn.Module):
    """Twelve transformer layers of width 192 on 196 patches of 16 x 16."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(192, 3, 768, dropout=0.0, batch_first=True, norm_first=True)
        self.patches = nn.Conv2d(3, 192, 16, 16)
        self.layers = nn.TransformerEncoder(layer, 12, enable_nested_tensor=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(self.patches(x).flatten(2).mT).mean(dim=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=8)
    options = parser.parse_args()
    torch.manual_seed(0)
    trunk, heads = Trunk(), nn.ModuleList(nn.Linear(192, 1) for _ in range(TASKS))
    optimizer = torch.optim.Adam([*trunk.parameters(), *heads.parameters()], lr=1e-4)
    schedule = cp.schedules.Selective(TASKS, warm_up=0, beta=0.1)
    balancer = cp.balancers.Equal(TASKS)
    x = torch.randn(options.batch, 3, 224, 224)
    targets = torch.randn(TASKS, options.batch, 1) * torch.logspace(-1, 1, TASKS)[:, None, None]
    spent = 0.0

    def timed(name: str) -> None:
        inner = getattr(schedule, name)

        def run(*arguments):
            nonlocal spent
            begin = time.perf_counter()
            found = inner(*arguments)
            spent += time.perf_counter() - begin
            return found

        setattr(schedule, name, run)

    timed("_observe")
    timed("_plan")
    shares = []
    for number in range(-1, options.rounds):
        spent, begin = 0.0, time.perf_counter()
        report = schedule.step(
            lambda: [(head(z) - y).square().mean() for z in [trunk(x)] for head, y in zip(heads, targets, strict=True)],
            optimizer,
            balancer,
        )
        whole = time.perf_counter() - begin
        if number >= 0:
            shares.append(spent / whole)
            print(f"{len(report.groups)} groups: {1000 * spent:.2f} of {1000 * whole:.0f} ms, {spent / whole:.2%}")
    print(f"median share {statistics.median(shares):.2%}; state: {TASKS**2 + TASKS} numbers")


if __name__ == "__main__":
    main()
