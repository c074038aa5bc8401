"""Recon: find the layers in which tasks conflict, give each task its own copy of them, train again.

Trains a share of the epochs and counts conflicts, splits the layers with the most of them, trains
every balancer anew on both networks. Goes on where it was stopped, and writes report.html.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from counterpoint._checks import check_choice, check_range
from counterpoint.cli._arguments import EPILOG as EPILOG
from counterpoint.cli._arguments import add_recipe, read_run
from counterpoint.cli.compare import match_methods, run_and_report
from counterpoint.errors import OptionError
from counterpoint.registry import nearest

HELP = "find the layers in which tasks conflict, split them, train again and compare (Recon)"

BASELINES = ("rsl", "rsp", "first", "last")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the verb."""
    parser.usage = "counterpoint split RECIPE --layers K | --share S | --budget-mb MB | --plan FILE [...]"
    add_recipe(parser)
    parser.add_argument("--layers", type=int, metavar="K", help="split K layers, those with the most conflict")
    parser.add_argument("--share", type=float, metavar="S", help="or the fewest with this share of all conflict")
    parser.add_argument("--budget-mb", type=float, metavar="MB", help="or what fits in so many MB of copies")
    parser.add_argument("--plan", type=Path, metavar="FILE", help="or those of a plan; no search then")
    parser.add_argument(
        "--threshold", type=float, default=0.0, metavar="S", help="conflict: a cosine below it (default: 0)"
    )
    parser.add_argument(
        "--search-share", type=float, default=0.25, metavar="F", help="share of the epochs to search (default: 0.25)"
    )
    parser.add_argument(
        "--search-balancer", default="equal", metavar="NAME", help="balancer of the search (default: equal)"
    )
    parser.add_argument("--every", type=int, default=1, metavar="N", help="measure every N steps (default: 1)")
    parser.add_argument("--init", default="same", metavar="HOW", help="copies start same (default) or independent")
    parser.add_argument(
        "--balancers", nargs="+", default=["equal"], metavar="NAME", help="as in compare (default: equal)"
    )
    parser.add_argument(
        "--baselines",
        nargs="+",
        default=[],
        metavar="NAME",
        help="other choices beside it: rsl and rsp (random), first, last",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N", help="default: 0 1 2")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder (default: runs/split-RECIPE)")
    parser.add_argument("--workers", type=int, metavar="N", help="processes")
    parser.add_argument("--plan-only", action="store_true", help="search and write the plan only")
    parser.add_argument("--json", action="store_true", help="print the table as JSON")


def run(args: argparse.Namespace, rest: Sequence[str]) -> int:
    """Search, plan, train and compare; print plan and table."""
    config = read_run(args, rest)
    import dataclasses

    from counterpoint.bench import recon
    from counterpoint.bench.compare import check_folder, make_config
    from counterpoint.bench.compare import parse_method as parse
    from counterpoint.cli._progress import RunProgress
    from counterpoint.splitting import SplitPlan

    for name in args.baselines:
        if name not in BASELINES:
            raise OptionError(f"--baselines: no choice is called {name!r}{nearest(name, BASELINES)}")
    check_range("--threshold", args.threshold, low=-1.0, high=1.0)
    if config.split.layers:
        raise OptionError("split chooses the layers itself: leave out --split.layers, or compare with --split.plan")
    methods = match_methods(args.balancers)
    make_config(config, methods, args.seeds)  # what is mistyped is said before the search
    check_choice("--init", args.init, ("same", "independent"))
    folder = args.out or Path("runs") / f"split-{Path(args.recipe).stem}"
    told = sys.stderr if args.json else sys.stdout
    if args.plan is not None:
        if any(value is not None for value in (args.layers, args.share, args.budget_mb)):
            raise OptionError("--plan has its layers already: leave out --layers, --share and --budget-mb")
        plan = SplitPlan.load(args.plan)
        plan.check(recon.network_sizes(config))
    else:
        choice = recon.Choice(args.layers, args.share, args.budget_mb)
        search = dataclasses.replace(recon.search_config(config, args.search_share), seed=args.seeds[0])
        search = dataclasses.replace(search, balancer=parse(args.search_balancer))
        with RunProgress([(f"search seed {args.seeds[0]}", search.training.epochs)]) as progress:
            record = recon.record_run(
                search, folder / "search", every=args.every, on_epoch=lambda found: progress.epoch(0, found["epoch"])
            )
        plan = recon.choose(record, args.threshold, choice)
    print(recon.describe(plan, config), file=told)
    if args.plan_only or not plan.layers:
        folder.mkdir(parents=True, exist_ok=True)
        plan.save(folder / "plan.json")
        print(f"plan: {folder / 'plan.json'}", file=told)
        if args.json:
            print(json.dumps({"plan": str(folder / "plan.json"), "layers": list(plan.layers)}, indent=2))
        return 0
    splits = {
        "recon" if args.plan is None else "plan": dict.fromkeys(args.seeds, recon.split_config(plan, init=args.init))
    }
    for name in args.baselines:
        splits[name] = {
            each: recon.split_config(recon.other_plan(plan, name, seed=each), init=args.init) for each in args.seeds
        }
    comparison = make_config(config, methods, args.seeds, splits=splits)
    check_folder(comparison, folder)
    folder.mkdir(parents=True, exist_ok=True)
    plan.save(folder / "plan.json")
    print(f"plan: {folder / 'plan.json'}", file=told)
    return run_and_report(comparison, folder, workers=args.workers, as_json=args.json)
