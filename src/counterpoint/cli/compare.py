"""Compare balancers fairly: methods x seeds, and always the baselines.

The baselines are single-task networks, equal weighting and random weights. What is done already
is not run again; a run that fails is recorded and the rest goes on.
"""

import argparse
import fnmatch
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from counterpoint.cli._arguments import EPILOG as EPILOG
from counterpoint.cli._arguments import add_recipe, read_run
from counterpoint.errors import OptionError

if TYPE_CHECKING:
    from counterpoint.bench.compare import CompareConfig

HELP = "compare balancers over several seeds, with baselines, and write the report"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the verb."""
    add_recipe(parser)
    parser.add_argument(
        "--balancers",
        nargs="+",
        default=["*"],
        metavar="NAME",
        help="names, patterns, 'cagrad(c=0.2)', 'uncertainty+pcgrad', 'pcgrad(wrap={every: 4})'; default: all",
    )
    parser.add_argument(
        "--schedules",
        nargs="+",
        default=[],
        metavar="NAME",
        help="run every balancer with each: joint, 'fixed_groups(groups=[[a], [b]])'; baselines stay joint",
    )
    parser.add_argument(
        "--networks",
        nargs="+",
        default=[],
        metavar="GROUPS",
        help="run every balancer also with one network per group: '[[a, b], [c]]'",
    )
    parser.add_argument(
        "--plan", type=Path, metavar="FILE", help="also one network per group of a plan of counterpoint group"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N", help="default: 0 1 2")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder (default: runs/compare-RECIPE)")
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: cores / threads of a run)")
    parser.add_argument("--json", action="store_true", help="print the table as JSON")


def run(args: argparse.Namespace, rest: Sequence[str]) -> int:
    """Run what is missing, write tables and report, print the table."""
    config = read_run(args, rest)
    from counterpoint.bench.compare import make_config

    methods = match_methods(args.balancers)
    others = {"schedule": args.schedules}
    comparison = make_config(
        config, [*methods, *separate_networks(methods, args.networks, args.plan)], args.seeds, others
    )
    folder = args.out or Path("runs") / f"compare-{Path(args.recipe).stem}"
    return run_and_report(comparison, folder, workers=args.workers, as_json=args.json)


def run_and_report(comparison: "CompareConfig", folder: Path, *, workers: int | None, as_json: bool) -> int:
    """Do what is missing of a comparison, with progress; write tables and report; return the exit code.

    Args:
        comparison: What to compare.
        folder: Its folder.
        workers: Number of processes; ``None`` for as many as fit on the cores.
        as_json: Print the table as JSON.

    Raises:
        OptionError: If there is no worker.
    """
    from counterpoint.bench.compare import check_comparison, make_jobs, run_comparison
    from counterpoint.cli._progress import RunProgress
    from counterpoint.cli.report import write_all

    training = comparison.run.training
    workers = _default_workers(training.threads) if workers is None else workers
    if workers < 1:
        raise OptionError(f"--workers must be at least 1, got {workers}")
    tasks = [task.name for task in check_comparison(comparison)]
    jobs = make_jobs(comparison, folder, tasks)
    with RunProgress([(job.label, training.epochs) for job in jobs]) as progress:
        run_comparison(comparison, folder, workers=workers, listener=progress.listen)
    write_all(folder, as_json=as_json)
    return 1 if progress.failed else 0


def separate_networks(methods: Sequence[str], groups: Sequence[str], plan: Path | None) -> list[str]:
    """Return each method with one network per group instead of one for all tasks, trained jointly."""
    from counterpoint.bench.dimensions import DIMENSIONS, combination_name, format_spec, parse_combination, parse_spec

    (dimension,) = (own for own in DIMENSIONS if own.key == "networks")
    options = [f"groups={own}" for own in groups] + ([f"plan={str(plan)!r}"] if plan is not None else [])
    networks = [parse_spec(dimension, f"networks({own})") for own in options]
    balancers = [combination_name({"balancer": parse_combination(m)["balancer"]}) for m in methods] if networks else []
    # joint is said, so that these are not crossed with other schedules
    names = [f"{own} @ joint # {format_spec(dimension, value)}" for value in networks for own in balancers]
    return list(dict.fromkeys(names))


def match_methods(wanted: Sequence[str]) -> list[str]:
    """Return the methods that names and patterns stand for; patterns leave out methods that need an option."""
    from counterpoint import balancers

    methods: list[str] = []
    for text in wanted:
        if any(character in text for character in "*?[") and "(" not in text:
            found = [name for name in balancers.names() if fnmatch.fnmatch(name, text)]
            if not found:
                raise OptionError(f"--balancers: no balancer fits the pattern {text!r}")
            methods += [n for n in found if not any(option.required for option in balancers.describe(n).options)]
        else:
            methods.append(text)
    return methods


def _default_workers(threads: int) -> int:
    return max(1, (os.cpu_count() or 1) // threads) if threads > 0 else 1
