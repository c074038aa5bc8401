"""Train once, measure how tasks affect each other, and propose groups of tasks.

Writes group.json, which compare and train take with --plan, and group.html, a page to look at.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from counterpoint.cli._arguments import EPILOG as EPILOG
from counterpoint.cli._arguments import add_recipe, read_run

HELP = "measure affinities between tasks and propose groups"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the verb."""
    add_recipe(parser)
    parser.add_argument(
        "--affinity", default="tag", metavar="NAME", help="tag (default), cosine, proximal, transfer_gain, ..."
    )
    parser.add_argument("--solver", metavar="NAME", help="how groups are made (default: branch_and_bound, no overlap)")
    parser.add_argument("--max-networks", type=int, metavar="N", help="budgets 1 to N (default: tasks, at most 5)")
    parser.add_argument("--every", type=int, default=10, metavar="N", help="updates between measurements (default: 10)")
    parser.add_argument(
        "--share", type=float, default=1.0, metavar="X", help="share of the epochs to train (default: 1)"
    )
    parser.add_argument("--seed", type=int, help="seed of everything random")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder (default: runs/group-RECIPE)")
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")


def run(args: argparse.Namespace, rest: Sequence[str]) -> int:
    """Train, measure, write the plan and its page, print the proposals."""
    config = read_run(args, rest, seed=args.seed)
    from counterpoint.bench.group_page import groups_text, write_page
    from counterpoint.bench.group_run import DEFAULT_SOLVER, GroupOptions, check_group, measure_and_group
    from counterpoint.cli._progress import RunProgress

    options = GroupOptions(args.affinity, args.solver or DEFAULT_SOLVER, args.max_networks, args.every, args.share)
    check_group(config, options)
    name = Path(args.recipe).stem
    folder = args.out or Path("runs") / f"group-{name}"
    for old in ("group.json", "group.html"):  # of a run before, whose measurements are gone
        (folder / old).unlink(missing_ok=True)
    with RunProgress([(f"group {name}", config.shortened(options.share).training.epochs)]) as progress:
        plan = measure_and_group(
            name, config, options, folder / "run", lambda record: progress.epoch(0, record["epoch"])
        )
    plan.save(folder / "group.json")
    write_page(plan, folder / "group.html")
    if args.json:
        print(plan.to_json(), end="")
        return 0
    print(f"{plan.affinity.source}")
    for budget, grouping in enumerate(plan.proposals, start=1):
        mark = "  <- best" if budget == plan.best else ""
        print(f"  at most {budget}: {groups_text(grouping)}  (predicted gain {plan.gain(budget):+.4g}){mark}")
    print(f"plan: {folder / 'group.json'}")
    print(f"page: {folder / 'group.html'}")
    return 0
