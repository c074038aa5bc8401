"""Measure what a step costs with each balancer: time, backward passes, peak memory.

The costs stand beside those of one summed backward pass and of K sequential ones (seqK), for
the network and a batch of a run, with advice on the mode to take. Nothing is trained.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from counterpoint.cli._arguments import EPILOG as EPILOG
from counterpoint.cli._arguments import add_recipe, read_run

HELP = "measure what a step costs with each balancer, and say which mode to take"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the verb."""
    add_recipe(parser)
    parser.add_argument(
        "--balancers", nargs="+", metavar="NAME", help="names, patterns, or 'cagrad(c=0.2)'; default: five of all kinds"
    )
    parser.add_argument("--rounds", type=int, metavar="N", help="rounds of measurement (default: 15)")
    parser.add_argument(
        "--level",
        default="both",
        metavar="LEVEL",
        help="parameters, features or both (default): the gradients to balance",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything to FILE; - prints it instead")


def run(args: argparse.Namespace, rest: Sequence[str]) -> int:
    """Measure and print the table."""
    config = read_run(args, rest)
    from rich.console import Console

    from counterpoint._checks import check_choice, check_integer
    from counterpoint.bench.build import environment
    from counterpoint.bench.profile import DEFAULT, ROUNDS, profile_recipe
    from counterpoint.bench.profile_rounds import LEVELS
    from counterpoint.bench.tables import write_text
    from counterpoint.cli._progress import RoundProgress
    from counterpoint.cli.compare import match_methods

    check_choice("--level", args.level, LEVELS)
    rounds = check_integer("--rounds", ROUNDS if args.rounds is None else args.rounds, low=1)
    methods = match_methods(args.balancers or DEFAULT)
    try:
        with RoundProgress() as progress:
            profile = profile_recipe(config, balancers=methods, level=args.level, rounds=rounds, on_round=progress.note)
    except KeyboardInterrupt:
        print("counterpoint: stopped; nothing was kept", file=sys.stderr)
        return 130
    content = {**profile.to_dict(), "recipe": args.recipe, "run": config.to_dict(), "environment": environment()}
    written = json.dumps(content, indent=2, allow_nan=False)
    if args.json is not None and str(args.json) == "-":
        print(written)
        return 0
    if args.json is not None:
        write_text(args.json, written + "\n")
    profile.print_to(Console())
    return 0
