"""List what there is, with a line each."""

import argparse
import fnmatch
import json
from collections.abc import Sequence

from counterpoint.cli._arguments import reject
from counterpoint.registry import unknown

HELP = "list balancers, schedules, grouping methods, architectures, datasets, backbones or recipes"
KINDS = ("balancers", "schedules", "grouping", "architectures", "datasets", "backbones", "recipes")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the verb."""
    parser.add_argument("kind", metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("pattern", nargs="?", default="*", help="shell pattern, such as 'grad*'")
    parser.add_argument("--json", action="store_true", help="print JSON with all facts and options")


def run(args: argparse.Namespace, rest: Sequence[str]) -> int:
    """Print the list.

    Raises:
        UnknownNameError: If there is no such list.
    """
    reject(args.parser, rest)
    if args.kind not in KINDS:
        raise unknown("list", args.kind, KINDS)
    if args.kind == "recipes":
        from counterpoint.bench.recipes import RECIPES

        entries = [
            {"key": key, "summary": (recipe.__doc__ or "").split("\n")[0].replace("``", "")}
            for key, recipe in RECIPES.items()
            if fnmatch.fnmatch(key, args.pattern)
        ]
    else:
        registry = registries()[args.kind]
        entries = [registry.describe(name).to_dict() for name in registry.names(args.pattern)]
    if args.json:
        print(json.dumps(entries, indent=2))
        return 0
    width = max((len(entry["key"]) for entry in entries), default=0)
    for entry in entries:
        print(f"{entry['key']:<{width}}  {entry['summary']}")
    return 0


def registries() -> dict:
    """Return the registries by the name of their family."""
    from counterpoint.architectures import ARCHITECTURES
    from counterpoint.balancers import BALANCERS
    from counterpoint.blocks import BACKBONES, HEADS
    from counterpoint.data import DATASETS
    from counterpoint.grouping import METHODS
    from counterpoint.schedules import SCHEDULES

    return {
        "balancers": BALANCERS,
        "schedules": SCHEDULES,
        "grouping": METHODS,
        "architectures": ARCHITECTURES,
        "datasets": DATASETS,
        "backbones": BACKBONES,
        "heads": HEADS,
    }
