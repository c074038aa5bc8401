"""What the small solvers cost alone, in milliseconds: medians over problems, each the best of three calls.

Three kinds of Gram matrices: Gaussian gradients in 2 K dimensions ("plain"), the same with lengths spread by e^{-3..3}
("spread"), and with nine tenths of their mean taken off ("conflict"). The aim is 0.5 ms at K = 16 and 2 ms at K = 40.

    python perf/solvers.py [--problems 50] [--out perf/results/NAME.json]
"""

import argparse
import json
import platform
import statistics
import time
from pathlib import Path

import numpy as np
import torch

from counterpoint.solvers.bargaining import bargain
from counterpoint.solvers.cone import project_rows_to_dual_cone, project_to_dual_cone
from counterpoint.solvers.min_norm import min_norm
from counterpoint.solvers.simplex import linear_plus_norm
from counterpoint.solvers.simplex_projection import project_to_simplex

SIZES = (3, 8, 16, 40)
KINDS = ("plain", "spread", "conflict")
SOLVERS = {
    "min_norm": min_norm,
    "cagrad c=0.4": lambda gram: linear_plus_norm(gram, 0.4),
    "nash": bargain,
    "fair alpha=2": lambda gram: bargain(gram, alpha=2.0),
    "dual_proj": lambda gram: project_to_dual_cone(gram, torch.full_like(gram.diagonal(), 1 / len(gram))),
    "upgrad": project_rows_to_dual_cone,
    "simplex projection": lambda gram: project_to_simplex(gram[0]),
}


def problem(kind: str, num_tasks: int, seed: int):
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(num_tasks, 2 * num_tasks))
    if kind == "spread":
        rows *= np.exp(rng.uniform(-3, 3, size=(num_tasks, 1)))
    elif kind == "conflict":
        rows -= 0.9 * rows.mean(axis=0)
    return torch.from_numpy(rows @ rows.T)


def clock(function, argument) -> float:
    times = []
    for _ in range(3):
        begin = time.perf_counter()
        function(argument)
        times.append(time.perf_counter() - begin)
    return min(times) * 1000


def measure(num_problems: int, sizes=SIZES, report=None) -> dict[str, dict[str, dict[str, float]]]:
    """Return solver -> kind -> size -> milliseconds."""
    found: dict[str, dict[str, dict[str, float]]] = {name: {kind: {} for kind in KINDS} for name in SOLVERS}
    for kind in KINDS:
        problems = {size: [problem(kind, size, seed) for seed in range(num_problems)] for size in sizes}
        for name, function in SOLVERS.items():
            for size in sizes:
                times = [clock(function, gram) for gram in problems[size]]
                found[name][kind][f"K={size}"] = round(statistics.median(times), 4)
            if report is not None:
                report(f"{name:20}{kind:10}" + "".join(f"{value:10.3f}" for value in found[name][kind].values()))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=50)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{'ms':20}{'':10}" + "".join(f"{f'K={size}':>10}" for size in SIZES))
    found = measure(options.problems, report=lambda line: print(line, flush=True))
    if options.out:
        about = {"torch": torch.__version__, "numpy": np.__version__, "machine": platform.machine()}
        content = {**about, "threads": options.threads, "problems": options.problems, "milliseconds": found}
        options.out.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
