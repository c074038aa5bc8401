"""Measure the evidence for task groups and write ``docs/results/task_groups.md``.

``python tools/task_groups.py --root DATA`` with the FashionMNIST files under DATA. Can be stopped at any moment and
goes on when it is given again. About half an hour with two workers on two cores; ``--smoke`` takes a minute and shows
only that everything runs.
"""

import argparse
import html
import math
import os
import sys
from pathlib import Path

import results_page

from counterpoint import schedules
from counterpoint.bench import read_comparison
from counterpoint.bench.group_page import groups_text
from counterpoint.bench.group_plan import GroupPlan
from counterpoint.bench.results import Comparison, Spread
from counterpoint.cli.main import main as counterpoint
from counterpoint.grouping import AffinityMatrix

BALANCERS = ("pomsi", "pcgrad")
SCHEDULES = ("joint", "selective", "random_groups(num_groups={groups})", "alternating")
SMOKE = ["--training.epochs", "1", "--data.num_train", "384", "--data.num_val", "100", "--data.num_test", "200"]


def run(root: Path, work: Path, *, workers: int, smoke: bool) -> tuple[GroupPlan, Comparison]:
    """Do what is not done yet and return plan and comparison."""
    options = ["--data.root", str(root), *(SMOKE if smoke else [])]
    plan = work / "group" / "group.json"
    if not plan.exists():
        _call(["group", "fashion_attributes", *options, "--max-networks", "3", "--every", "5", "--seed", "100",
               "--out", str(plan.parent)])  # fmt: skip
    groups = max(2, len(GroupPlan.load(plan).proposal().groups))
    known = schedules.names()
    wanted = [name.format(groups=groups) for name in SCHEDULES if name.split("(")[0] in known]
    seeds = ["0"] if smoke else ["0", "1", "2"]
    _call(["compare", "fashion_attributes", *options, "--balancers", *BALANCERS, "--schedules", *wanted, "--plan",
           str(plan), "--seeds", *seeds, "--workers", str(workers), "--out", str(work / "compare")])  # fmt: skip
    return GroupPlan.load(plan), read_comparison(work / "compare")


def _call(arguments: list[str]) -> None:
    if counterpoint(arguments) == 2:
        raise SystemExit(2)


def number(spread: Spread | None, decimals: int = 2) -> str:
    """Return mean and spread as text."""
    if spread is None or not spread.finite:
        return "-"
    std = "" if math.isnan(spread.std) else f" ± {spread.std:.{decimals}f}"
    return f"{spread.mean:.{decimals}f}{std}"


def page(plan: GroupPlan, comparison: Comparison) -> list[str]:
    """Return the page, from what was measured."""
    tasks = [task.name for task in comparison.tasks]
    lines = [
        "# Task groups on attributes of FashionMNIST",
        "",
        "Made by `python tools/task_groups.py --root DATA`; tables and picture are written by it from the runs.",
        f"Six tasks on real images ({', '.join(f'`{task}`' for task in tasks)};",
        "see `counterpoint show fashion_attributes`),",
        f"seeds {', '.join(map(str, comparison.seeds))}, {comparison.selection.rstrip('.')}.",
        "delta_m in per cent against single-task networks, positive is better; test accuracies in per cent; ± is the",
        "sample standard deviation over seeds; updates are optimizer steps (and forward passes) for each batch,",
        "parameters are summed over networks.",
        "",
        f"| method | delta_m | worst task | {' | '.join(tasks)} | train s | updates | parameters |",
        f"| --- |{' ---: |' * (len(tasks) + 5)}",
    ]
    for row in comparison.rows:
        final = row.final
        if final is None:
            lines.append(f"| `{row.method}` | failed |{' - |' * (len(tasks) + 4)}")
            continue
        cells = [number(final.delta["tasks"]), f"{number(final.worst)} {final.worst_task}"]
        cells += [number(final.metrics[task]["accuracy"], 1) for task in tasks]
        cells += [f"{row.train_seconds.mean:.0f}", f"{row.num_updates.mean:.2f}", f"{row.num_parameters.mean:.0f}"]
        name = row.method.replace("|", "\\|")
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    failed = [f"`{row.method}` seed {seed}: {text}" for row in comparison.rows for seed, text in row.errors.items()]
    lines += ["", *(["Failed: " + "; ".join(failed), ""] if failed else [])]
    if "selective" not in schedules.names():
        lines += ["The schedule `selective` was not part of this version and is missing from the table.", ""]
    lines += [
        "## Groups of TAG",
        "",
        f"Measured by {plan.affinity.source}, seed 100, apart from the seeds of the table.",
        "",
        *(
            f"- at most {budget}: {groups_text(grouping).replace('|', '/')} (predicted gain {plan.gain(budget):+.4g})"
            for budget, grouping in enumerate(plan.proposals, start=1)
        ),
        "",
        "![Affinity of each task (row) to each other (column)](task_groups_affinity.svg)",
        "",
    ]
    lines += over_time(comparison)
    return lines


def over_time(comparison: Comparison) -> list[str]:
    """Return the mean number of groups of each epoch, where a run recorded its groups."""
    lines: list[str] = []
    for run in comparison.runs:
        if run.schedules:
            counts = ", ".join(f"{record['num_groups']:.2f}" for record in run.schedules)
            last = " / ".join(" ".join(group) for group in run.schedules[-1]["groups"])
            lines.append(f"- `{run.method}`, seed {run.seed}: {counts}; at the end {last}")
    return ["## Number of groups over training", "", "Mean of each epoch.", "", *lines] if lines else []


def heat_map(matrix: AffinityMatrix) -> str:
    """Return a matrix as SVG; the diagonal is left out."""
    names, cell, left, top = matrix.tasks, 62, 110, 34
    size = len(names)
    values = matrix.values
    high = max(abs(float(values[i, j])) for i in range(size) for j in range(size) if i != j) or 1.0
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + cell * size + 8} {top + cell * size + 8}" '
        'font-family="system-ui, sans-serif" font-size="11"><rect width="100%" height="100%" fill="#ffffff"/>'
    ]
    for i, name in enumerate(names):
        middle = top + cell * i + cell / 2
        parts.append(f'<text x="{left - 6}" y="{middle + 4}" text-anchor="end">{html.escape(name)}</text>')
        parts.append(
            f'<text x="{left + cell * i + cell / 2}" y="{top - 8}" text-anchor="middle">{html.escape(name)}</text>'
        )
        for j in range(size):
            value = float(values[i, j])
            share = 0.0 if i == j else abs(value) / high
            red, green, blue = (33, 102, 172) if value > 0 else (178, 24, 43)
            color = ",".join(str(round(255 + (channel - 255) * share * 0.8)) for channel in (red, green, blue))
            x, y = left + cell * j, top + cell * i
            parts.append(f'<rect x="{x}" y="{y}" width="{cell - 1}" height="{cell - 1}" fill="rgb({color})"/>')
            if i != j:
                parts.append(
                    f'<text x="{x + cell / 2}" y="{middle + 4}" text-anchor="middle" fill="#111111">{value:.4f}</text>'
                )
    return "".join([*parts, "</svg>\n"])


def main() -> None:
    """Run, then write page and picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=os.environ.get("COUNTERPOINT_DATA"), help="folder of the data")
    parser.add_argument("--work", type=Path, default=Path("runs/task_groups"), help="folder of the runs")
    parser.add_argument("--out", type=Path, default=Path("docs/results"), help="folder of the page")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--smoke", action="store_true", help="one epoch, few images, one seed")
    args = parser.parse_args()
    if args.root is None:
        sys.exit("give --root, or set COUNTERPOINT_DATA")
    if args.smoke:  # nothing of it may get into the page
        args.work = args.out = args.work.with_name(f"{args.work.name}-smoke")
    plan, comparison = run(Path(args.root).resolve(), args.work, workers=args.workers, smoke=args.smoke)
    args.out.mkdir(parents=True, exist_ok=True)
    results_page.write_page(args.out / "task_groups.md", page(plan, comparison))
    (args.out / "task_groups_affinity.svg").write_text(heat_map(plan.affinity))
    print(f"written: {args.out / 'task_groups.md'}")


if __name__ == "__main__":
    main()
