"""What a step of each method costs beside the least that its work could cost, in one run, with the bars it should meet.

    python perf/benchmark.py                  # a few methods; some minutes; writes a JSON and docs/performance.md
    python perf/benchmark.py --all            # every method that one batch of scalar losses can serve
    python perf/benchmark.py --methods mgda cagrad --cases "ResNet-18 K=8" --rounds 3 --out /dev/null

Baselines are plain PyTorch: the summed backward pass; seqK, K sequential passes of the trunk into one preallocated
buffer (heads once); the same with Gram matrix and combination; feat1, heads and one pass of the trunk. All variants
take turns in every round, in an order of its own. Times are medians of what comes after the forward pass; ratios are
medians of ratios within a round. Memory is the peak of the first step above what was in use before, counted over live
tensors, and so includes buffers that are kept. Where torchjd is installed its methods run in the same rounds (in an
environment of your own; it is no dependency).
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import random
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import table
import torch
from cases import BASELINES, CASES, Case
from methods import chosen, variants

import solvers
from counterpoint import balancers, linalg
from counterpoint.gradients import find_scope
from counterpoint.training.memory import step_peak_mb

ROOT = Path(__file__).parent.parent
ROUNDS = {"MLP 5x512": 11, "encoder 6x192": 7, "ResNet-18": 5}
DEVICE = torch.device("cpu")
STARTED = time.perf_counter()


def say(text: str) -> None:
    print(f"[{time.perf_counter() - STARTED:4.0f} s] {text}", flush=True)


def clock(function: Callable, *arguments) -> float:
    begin = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - begin


def measure_case(case: Case, names: list[str], rounds: int, options: argparse.Namespace) -> dict:
    """Return number of backward passes, memory and times of every baseline and method."""
    makers = {name: ("baseline", lambda make=make: make(case), cut) for name, (make, cut) in BASELINES.items()}
    makers["walk"] = ("baseline", lambda: lambda z, losses, leaves: bool(find_scope(losses)) - 1, False)
    for name, kind, make in variants(case, names, everything=options.all, others=not options.without_torchjd):
        makers[name] = (kind, make, False)
    runs, found, failed = {}, {}, {}
    for name, (kind, make, cut) in makers.items():
        case.clear()

        def first(name=name, make=make, cut=cut) -> None:
            z_losses_leaves = case.forward(cut=cut)
            runs[name] = make()
            found[name]["num_backward"] = runs[name](*z_losses_leaves)

        found[name] = {"kind": kind}
        try:
            found[name]["memory_mb"] = step_peak_mb(first, DEVICE)
        except ImportError as error:  # torchjd's extras
            failed[name] = str(error)
            del found[name]
    times = {name: ([], []) for name in runs}
    order = list(runs)
    for number in range(-1, rounds):
        for name in random.Random(number).sample(order, len(order)):  # not always behind the same one
            case.clear()
            begin = time.perf_counter()
            given = case.forward(cut=makers[name][2])
            forward = time.perf_counter() - begin
            backward = clock(runs[name], *given)
            if number >= 0:
                times[name][0].append(forward)
                times[name][1].append(backward)
    for name, entry in found.items():
        entry |= ratios(name, times)
    say(f"{case}: " + ", ".join(f"{name} {entry['over']['seqK']:.2f}" for name, entry in found.items()) + " of seqK")
    rows = case.num_tasks * case.num_shared * 4 / 2**20
    about = {"num_tasks": case.num_tasks, "num_shared": case.num_shared, "rows_mb": rows, "rounds": rounds}
    return {**about, "failed": failed, "runs": found}


def ratios(name: str, times: dict[str, tuple[list[float], list[float]]]) -> dict:
    """Return the time of the backward part and its ratios to the baselines, and the ratio of whole steps."""
    forward, backward = times[name]
    median = statistics.median
    bases = {base: times[base][1] for base in BASELINES}
    again = times["summed"][0]
    bases["summed + forward"] = [sum(pair) for pair in zip(times["summed"][1], again, strict=True)]
    whole = [sum(pair) for pair in zip(forward, backward, strict=True)]
    return {
        "backward_ms": round(1000 * median(backward), 3),
        "quartiles_ms": [round(1000 * value, 3) for value in quartiles(backward)],
        "over": {
            base: round(median(a / b for a, b in zip(backward, of, strict=True)), 4) for base, of in bases.items()
        },
        "step_over_summed": round(median(a / b for a, b in zip(whole, bases["summed + forward"], strict=True)), 4),
    }


def quartiles(values: list[float]) -> tuple[float, float]:
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


def measure_gram() -> dict:
    """Return the error of the Gram matrix of ten million columns, lengths a million apart, against float64.

    An error is relative to the lengths of the two rows. ``matmul`` is ``J @ J.T`` in float32, for comparison.
    """
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(4, 10_000_000, generator=generator).add_(1.0)
    rows *= torch.logspace(-3, 3, 4)[:, None]
    exact = torch.zeros(4, 4, dtype=torch.float64)
    for part in rows.split(1_000_000, dim=1):
        exact += part.double() @ part.double().T
    lengths = exact.diagonal().sqrt()
    scale = lengths[:, None] * lengths[None, :]
    found = {"linalg.gram": linalg.gram(rows), "matmul": (rows @ rows.T).double()}
    return {name: float(((gram - exact).abs() / scale).max()) for name, gram in found.items()}


def measure_elementwise(names: list[str], rounds: int) -> dict:
    """Return methods that read every coordinate over ``J @ J.T`` and ``w @ J``, at K = 16 and a million columns."""
    jacobian = torch.randn(16, 1_000_000, generator=torch.Generator().manual_seed(0))
    weights, losses, present = torch.full((16,), 1 / 16), torch.ones(16), tuple(range(16))
    torch.manual_seed(0)
    runs = {"gram + combine": lambda: ((jacobian @ jacobian.T).tolist(), weights @ jacobian)}
    for name in names:
        balancer = balancers.create(name, 16)
        runs[name] = lambda balancer=balancer: balancer.aggregate(jacobian, losses, present)
    times: dict[str, list[float]] = {name: [] for name in runs}
    with torch.no_grad():
        for number in range(-1, rounds):
            for name, run in runs.items():
                spent = clock(run)
                if number >= 0:
                    times[name].append(spent)
    base = times["gram + combine"]
    return {
        name: {
            "ms": round(1000 * statistics.median(own), 3),
            "over": round(statistics.median(a / b for a, b in zip(own, base, strict=True)), 3),
        }
        for name, own in times.items()
    }


def about(options: argparse.Namespace) -> dict:
    """Return versions, machine and commit."""
    versions = {}
    for package in ("torch", "numpy", "torchjd"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    git = ["git", "-C", str(ROOT)]
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    changed = subprocess.run([*git, "status", "--porcelain", "src", "perf"], capture_output=True, text=True).stdout
    return {
        "date": datetime.date.today().isoformat(),
        "commit": commit + (" with changes" if changed.strip() else ""),
        "python": platform.python_version(),
        **versions,
        "machine": platform.machine(),
        "processor": table.processor(),
        "cores": os.cpu_count(),
        "threads": options.threads,
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="methods to measure (default: a few of each kind)")
    parser.add_argument("--all", action="store_true", help="measure all methods, each Gram method also at the features")
    parser.add_argument("--cases", nargs="+", metavar="CASE", help=f"of {', '.join(f'{n} K={k}' for n, k in CASES)}")
    parser.add_argument("--rounds", type=int, help="rounds of every case (default: MLP 11, others 5)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--without-torchjd", action="store_true", help="leave torchjd out even if it is installed")
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: perf/results/benchmark_MACHINE_DATE.json")
    options = parser.parse_args()
    known = [f"{name} K={num_tasks}" for name, num_tasks in CASES]
    for case in options.cases or ():
        if case not in known:
            parser.error(f"no case is called {case!r}; there are: {', '.join(known)}")
    return options


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    warm = torch.zeros(8_000_000)  # glibc keeps freed memory from the first large block on that a process gave back;
    del warm  # before, every new gradient costs page faults: as much as a backward pass of the MLP
    names = chosen(options.methods, everything=options.all)
    say(f"methods: {', '.join(names)}")
    content: dict = {"about": about(options), "cases": {}}
    for name, num_tasks in CASES:
        if options.cases and f"{name} K={num_tasks}" not in options.cases:
            continue
        case = Case(name, num_tasks)
        content["cases"][str(case)] = measure_case(case, names, options.rounds or ROUNDS[name], options)
    by_coordinate = [name for name in names if balancers.create(name, 2).reads == "jacobian"]
    content["elementwise"] = measure_elementwise(by_coordinate, options.rounds or 9)
    say("by coordinate: " + ", ".join(f"{name} {entry['over']:.2f}" for name, entry in content["elementwise"].items()))
    content["gram_error"] = measure_gram()
    say("error of the Gram matrix: " + ", ".join(f"{name} {e:.1e}" for name, e in content["gram_error"].items()))
    torch.set_num_threads(1)
    content["solvers_ms"] = solvers.measure(5, sizes=(16, 40))
    content["about"]["seconds"] = round(time.perf_counter() - STARTED)
    say("solvers done")
    machine, date = content["about"]["machine"], content["about"]["date"]
    out = options.out or ROOT / "perf" / "results" / f"benchmark_{machine}_{date}.json"
    out.write_text(json.dumps(content, indent=1) + "\n")
    print(table.bars(content))
    if options.out is None:
        table.PAGE.write_text(table.updated(table.PAGE.read_text()))
        say(f"wrote {out.name} and {table.PAGE.name}")


if __name__ == "__main__":
    main()
