"""Train with the conflict monitor on, and say which tasks conflict, in which layers, and what to do.

Writes record.npz (every measurement) and diagnose.html (one page, no network needed) to the folder.
"""

import argparse
import json
import shlex
import textwrap
from collections.abc import Sequence
from pathlib import Path

from counterpoint.cli._arguments import EPILOG as EPILOG
from counterpoint.cli._arguments import add_recipe, read_run
from counterpoint.cli._json import plain

HELP = "train with the conflict monitor on, and say where tasks conflict"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the verb."""
    add_recipe(parser)
    parser.add_argument("--balancer", metavar="NAME", help="balancer (counterpoint list balancers)")
    parser.add_argument("--schedule", metavar="NAME", help="which tasks are updated together")
    parser.add_argument("--seed", type=int, help="seed of everything random")
    parser.add_argument("--every", type=int, metavar="N", help="measure every N steps (default: about 200 times)")
    parser.add_argument("--share", type=float, default=1.0, metavar="F", help="share of the epochs (default: 1)")
    parser.add_argument("--threshold", type=float, default=0.0, metavar="S", help="cosine of a conflict (default: 0)")
    parser.add_argument(
        "--bins",
        nargs="+",
        default=["mnist"],
        metavar="NAME|EDGE",
        help="bins of cosines: mnist, cityscapes, nyuv2, pascal (Recon's paper), or falling edges (default: mnist)",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder (default: runs/diagnose-RECIPE-...)")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def run(args: argparse.Namespace, rest: Sequence[str]) -> int:
    """Train, measure and print the findings."""
    given = {"--balancer": args.balancer, "--schedule": args.schedule}
    named = [word for option, name in given.items() if name is not None for word in (option, name)]
    config = read_run(args, [*named, *rest], seed=args.seed)
    from counterpoint.bench.diagnose import PAGE, diagnose
    from counterpoint.bench.monitored import RECORD
    from counterpoint.cli._progress import RunProgress
    from counterpoint.diagnostics import findings

    name = f"diagnose-{Path(args.recipe).stem}-{config.balancer.name}-seed{config.seed}"
    path = args.out or Path("runs") / name
    epochs = config.shortened(args.share).training.epochs
    with RunProgress([(name, epochs)]) as progress:
        record = diagnose(
            config,
            path,
            every=args.every,
            share=args.share,
            threshold=args.threshold,
            bins=_bins(args.bins),
            recipe=shlex.join([args.recipe, *rest]),
            on_epoch=lambda done: progress.epoch(0, done["epoch"]),
        )
    found = findings(record, threshold=args.threshold, recipe=shlex.join([args.recipe, *rest]))
    if args.json:
        lines = [{"kind": f.kind, "supported": f.supported, "text": f.text, "numbers": plain(f.numbers)} for f in found]
        print(json.dumps({"folder": str(path), "findings": lines}, indent=2, allow_nan=False))
        return 0
    for finding in found:
        sign = "*" if finding.supported else "-"
        print(textwrap.fill(finding.text, 100, initial_indent=f"{sign} ", subsequent_indent="  "))
    print(f"measured {record.num_measurements} times: {path / RECORD}")
    print(f"page: {path / PAGE}")
    return 0


def _bins(words: Sequence[str]) -> str | list[float]:
    """Return the name of a set of bins, or edges."""
    try:
        return [float(word) for word in words]
    except ValueError:
        return " ".join(words)
