"""Time of branch and bound, and of one observation of each estimator over a joint step: python perf/grouping.py."""

import time

import numpy as np
import torch
from torch import nn

import counterpoint as cp

TASKS = 5


def seconds(call, repeats: int = 10) -> float:
    """Return the smallest time of a call."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    """Print both tables."""
    for overlap in (True, False):
        values = np.random.default_rng(0).normal(size=(12, 12))
        matrix = cp.grouping.AffinityMatrix(tuple(map(str, range(12))), values, directed=True)
        solver = cp.grouping.BranchAndBound(overlap=overlap)
        found = seconds(lambda solver=solver, matrix=matrix: solver.solve(matrix, 4), repeats=3)
        print(f"branch_and_bound, 12 tasks, 4 groups, overlap={overlap}: {found:.2f} s")
    torch.manual_seed(0)
    x, y = torch.randn(128, 256), torch.randn(TASKS, 128)
    trunk = nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU())
    heads = nn.ModuleList(nn.Linear(512, 1) for _ in range(TASKS))
    model = nn.ModuleList([trunk, heads])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)

    def outputs():
        features = trunk(x)
        return features, [head(features)[:, 0] for head in heads]

    def losses():
        return [(out - label).square().mean() for out, label in zip(outputs()[1], y, strict=True)]

    def step() -> None:
        optimizer.zero_grad()
        torch.stack(losses()).sum().backward()
        optimizer.step()

    reads = {"losses": losses, "(features, outputs)": outputs, "labels": lambda: list(y)}
    joint = seconds(step)
    for name in cp.grouping.names():
        if cp.grouping.describe(name).facts["role"] == "estimator":
            estimator = cp.grouping.create(name, TASKS, every=1)
            compute = reads[estimator.reads]
            ratio = seconds(lambda e=estimator, c=compute: e.observe(c, model, optimizer)) / joint
            print(f"{name}, {TASKS} tasks: {ratio:.1f} x a joint step per observation")


if __name__ == "__main__":
    main()
