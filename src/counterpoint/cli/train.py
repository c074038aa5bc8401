"""Train one network on several tasks. A run that was stopped goes on where it was."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from counterpoint.cli._arguments import EPILOG as EPILOG
from counterpoint.cli._arguments import add_recipe, read_run
from counterpoint.errors import OptionError

HELP = "train one network with one balancer"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the verb."""
    add_recipe(parser)
    parser.add_argument("--balancer", metavar="NAME", help="balancer (counterpoint list balancers)")
    parser.add_argument(
        "--schedule", metavar="NAME", help="which tasks are updated together (counterpoint list schedules)"
    )
    parser.add_argument(
        "--plan", type=Path, metavar="FILE", help="update the groups of a plan of counterpoint group one after another"
    )
    parser.add_argument("--seed", type=int, help="seed of everything random")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder of the run (default: runs/RECIPE-BALANCER-seedN)"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace, rest: Sequence[str]) -> int:
    """Train and print the result."""
    given = {"--balancer": args.balancer, "--schedule": args.schedule}
    if args.plan is not None:
        from counterpoint.bench.group_plan import GroupPlan

        if args.schedule is not None:
            raise OptionError("train: give --plan or --schedule, not both")
        groups = [list(group) for group in GroupPlan.load(args.plan).proposal().groups]
        given |= {"--schedule": "fixed_groups", "--schedule.groups": json.dumps(groups)}
    named = [word for option, name in given.items() if name is not None for word in (option, name)]
    config = read_run(args, [*named, *rest], seed=args.seed)
    from counterpoint.bench.run_config import RunConfig
    from counterpoint.bench.runner import run_one
    from counterpoint.cli._progress import RunProgress

    schedule = "" if config.schedule.name == RunConfig().schedule.name else f"-{config.schedule.name}"
    name = f"{Path(args.recipe).stem}-{config.balancer.name}{schedule}-seed{config.seed}"
    path = args.out or Path("runs") / name
    with RunProgress([(name, config.training.epochs)]) as progress:
        result = run_one(config, path, lambda record: progress.epoch(0, record["epoch"]))
    if args.json:
        print(json.dumps({"folder": str(path), **result}, indent=2))
        return 0
    chosen = f"{result['epochs']} epochs, result of epoch {result['selected_epoch']}"
    print(f"{config.balancer.name} on {config.data.name}, {chosen}")
    for task, metrics in result["test"].items():
        shown = ", ".join(
            f"{metric} {value:.4g}" if value is not None else f"{metric} -" for metric, value in metrics.items()
        )
        print(f"  {task}: {shown} (test)")
    print(f"folder: {path}")
    return 0
