"""Write a page of docs/results and its plots from the folder of a finished ``counterpoint split``.

    counterpoint split multi_fashion_mnist_narrow --data.root DATA --data.mnist_part test --layers 25 \\
        --threshold -0.1 --balancers equal pcgrad 'cagrad(c=0.2)' pomsi --baselines rsl rsp
    python tools/recon_page.py runs/split-multi_fashion_mnist_narrow            # recon.md
    python tools/recon_page.py runs/OTHER --page docs/results/recon_first.md    # of --baselines first last

DATA holds MNIST/raw and FashionMNIST/raw; of MNIST the 10,000 test digits are enough. The command goes on where it was
stopped.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from html import escape
from pathlib import Path

import results_page

from counterpoint.bench.comparison import SEVERE, read_comparison
from counterpoint.bench.readings import SINGLE_TASK
from counterpoint.bench.results import Comparison, MethodRow, Spread
from counterpoint.bench.split_figures import conflict_shares
from counterpoint.diagnostics import PAPER_BINS
from counterpoint.splitting import SplitPlan
from counterpoint.training.run_folder import read_yaml

ROOT = Path(__file__).resolve().parent.parent
BINS = PAPER_BINS["mnist"]
NAMES = ("0 and above", "to -0.01", "to -0.02", "to -0.03", "below -0.03")
COLORS = ("#d5dbe3", "#f3d9a4", "#eeb35b", "#d9782d", "#a8321a")
MB = 2**20  # as the paper counts sizes


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of counterpoint split")
    parser.add_argument("--page", type=Path, default=ROOT / "docs/results/recon.md", help="page to write")
    args = parser.parse_args(arguments)
    write_page(args.folder, args.page)
    return 0


def spread(values: Spread | None, scale: float = 1.0, *, sign: bool = False) -> str:
    """Return mean and standard deviation."""
    if values is None or not math.isfinite(values.mean):
        return "n/a"
    finite = [value * scale for value in values.values if math.isfinite(value)]
    mean = sum(finite) / len(finite)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in finite) / (len(finite) - 1)) if len(finite) > 1 else 0.0
    return f"{mean:{'+' if sign else ''}.2f} ± {deviation:.2f}"


def write_page(folder: Path, page: Path) -> None:
    """Write the page and its plots from what was measured."""
    comparison = read_comparison(folder)
    plan = SplitPlan.load(folder / "plan.json")
    search = read_yaml(folder / "search" / "config.yaml")
    page.parent.mkdir(parents=True, exist_ok=True)
    (page.parent / f"{page.stem}-delta.svg").write_text(delta_svg(comparison), encoding="utf-8")
    (page.parent / f"{page.stem}-conflict.svg").write_text(conflict_svg(comparison), encoding="utf-8")
    results_page.write_page(page, lines_of(comparison, plan, search, page.stem))
    print(f"page: {page}")


def command(comparison: Comparison, plan: SplitPlan, page: str) -> list[str]:
    """Return the command lines that make the page."""
    balancers = [repr(m) if "(" in m else m for m in comparison.config["methods"] if "[" not in m and m != "rlw"]
    baselines = [name for name in comparison.config["splits"] if name != "recon"]
    into = "" if page == "recon" else f" --out runs/{page}"
    folder = "runs/split-multi_fashion_mnist_narrow" if page == "recon" else f"runs/{page}"
    return [
        "counterpoint split multi_fashion_mnist_narrow --data.root DATA --data.mnist_part test "
        f"--layers {len(plan.layers)} \\",
        f"    --threshold -0.1 --balancers {' '.join(balancers)} --baselines {' '.join(baselines)}{into}",
        f"python tools/recon_page.py {folder}" + ("" if page == "recon" else f" --page docs/results/{page}.md"),
    ]


TITLES = {"recon_first": "# Recon's choice of layers against the first and the last ones"}
CHOICES = {
    "rsl": "rsl: as many layers at random; drawn anew for each seed.",
    "rsp": "rsp: about as many parameters at random; drawn anew for each seed.",
    "first": "first: as many layers, from the input on.",
    "last": "last: as many layers, up to the last one.",
}


def lines_of(comparison: Comparison, plan: SplitPlan, search: dict, page: str) -> list[str]:
    """Return the page."""
    run = comparison.config["run"]
    training, options = run["training"], run["data"]["options"]
    done = sum(record.status == "done" for record in comparison.runs)
    inits = {split["init"] for by_seed in comparison.config["splits"].values() for split in by_seed.values()}
    first, second = comparison.tasks[0].name, comparison.tasks[1].name
    lines = [
        TITLES.get(page, "# Recon on Multi-(Fashion+MNIST), small"),
        "",
        "The tables and plots are written by a tool from the runs of one command:",
        "",
        "```console",
        *command(comparison, plan, page),
        "```",
        "",
        f"- Data: {options['num_train']:,} training pairs, {options['num_test']:,} test pairs. Of MNIST only the "
        "10,000 test digits are used, split by scan before pairing, so numbers cannot be compared with the paper's.",
        f"- Network: ResNet-18 of width {run['model']['backbone_options']['width']} (the paper's: 64), "
        "one head per task.",
        f"- Training: {training['epochs']} epochs, batch {training['batch_size']}, {run['optimizer']['name']} at "
        f"{run['optimizer']['options']['lr']:g}, times 0.1 after epochs "
        f"{' and '.join(map(str, run['scheduler']['options']['milestones']))}; seeds "
        f"{', '.join(map(str, comparison.seeds))}; result of {comparison.selection}.",
        f"- Search: seed {search['seed']}, balancer {search['balancer']['name']}, {search['training']['epochs']} "
        f"epochs; rule {plan.rule}; {len(plan.layers)} of {len(plan.scores)} layers are split ({plan.removed:.1%} of "
        f"the conflict found). One plan serves all seeds and methods. Copies start: {', '.join(sorted(inits))}.",
        *(f"- {text}" for name, text in CHOICES.items() if name in comparison.config["splits"]),
        f"- {done} of {len(comparison.runs)} runs are done.",
        "",
        "`equal` is joint training. Mean ± sample standard deviation over seeds. Accuracy in per cent; delta_m in "
        "per cent against the single-task networks; size in MB of 2^20 bytes of float32; severe: cosines of the whole "
        f"gradients of what is still shared below {SEVERE:g}; reduced: 1 - severe / severe of unsplit joint training, "
        "same seed.",
        "",
        f"| method | {first} | {second} | delta_m | size, MB | added, MB | severe, % | reduced, % | training, s |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    equal = next(row for row in comparison.rows if row.method == "equal")
    lines += [table_line(row, equal, (first, second)) for row in comparison.rows]
    lines += [
        "",
        f"![delta_m of every method]({page}-delta.svg)",
        "",
        "Conflict before and after, per cent of cosines:",
        "",
    ]
    lines += ["| method | " + " | ".join(NAMES) + " |", "| --- |" + " ---: |" * len(NAMES)]
    for row in comparison.rows:
        if row.method != SINGLE_TASK:
            shares = conflict_shares(comparison, row.method, BINS)
            cells = [f"{100 * share:.2f}" if math.isfinite(share) else "n/a" for share in shares]
            lines.append(f"| {row.method} | {' | '.join(cells)} |")
    lines += ["", f"![Distribution of cosines]({page}-conflict.svg)", "", "Layers split, by score:", ""]
    lines += ["| layer | conflicts | parameters |", "| --- | ---: | ---: |"]
    lines += [f"| {layer} | {plan.scores[layer]:g} | {plan.sizes[layer]:,} |" for layer in plan.layers]
    return lines


def table_line(row: MethodRow, equal: MethodRow, tasks: Sequence[str]) -> str:
    """Return one method as a line of the table."""
    metrics = {} if row.final is None else row.final.metrics
    accuracy = [spread(metrics.get(task, {}).get("accuracy")) for task in tasks]
    delta = "n/a" if row.final is None or row.method == SINGLE_TASK else spread(row.final.delta["tasks"], sign=True)
    added = Spread(
        tuple(own - base for own, base in zip(row.num_parameters.values, equal.num_parameters.values, strict=True))
    )
    cells = [
        row.method,
        *accuracy,
        delta,
        spread(row.num_parameters, 4 / MB),
        spread(added, 4 / MB),
        spread(row.severe, 100),
        spread(row.reduced, 100, sign=True) if row.method != "equal" else "n/a",
        spread(row.train_seconds),
    ]
    return f"| {' | '.join(cells)} |"


def delta_svg(comparison: Comparison) -> str:
    """Return delta_m of every method: a dot per seed and a bar at the mean."""
    rows = [row for row in comparison.rows if row.method != SINGLE_TASK and row.final is not None]
    values = {row.method: [v for v in row.final.delta["tasks"].values if math.isfinite(v)] for row in rows if row.final}
    values = {method: own for method, own in values.items() if own}
    numbers = [value for own in values.values() for value in own] or [0.0]
    low, high = min(0.0, *numbers), max(0.0, *numbers)
    left, right, height = 150, 700, 24
    scale = (right - left) / ((high - low) or 1.0)
    parts = [
        f'<line x1="{x(0, low, scale, left)}" x2="{x(0, low, scale, left)}" y1="24" '
        f'y2="{30 + height * len(values)}" stroke="#444b55"/>'
    ]
    for at, (method, own) in enumerate(values.items()):
        y = 42 + height * at
        color = "#a8321a" if "[recon]" in method else "#3b6ea8"
        parts.append(f'<text x="{left - 12}" y="{y + 4}" text-anchor="end">{escape(method)}</text>')
        parts += [f'<circle cx="{x(v, low, scale, left)}" cy="{y}" r="4" fill="{color}" opacity=".7"/>' for v in own]
        mean = sum(own) / len(own)
        parts.append(f'<rect x="{x(mean, low, scale, left) - 1}" y="{y - 8}" width="2" height="16" fill="{color}"/>')
        parts.append(f'<text x="{right + 14}" y="{y + 4}">{mean:+.2f}</text>')
    parts.append(
        f'<text x="{left}" y="16">delta_m in %, a dot per seed, a bar at the mean; line at 0: single-task</text>'
    )
    return svg(parts, 770, 50 + height * len(values))


def conflict_svg(comparison: Comparison) -> str:
    """Return the bins below zero of every method as stacked bars."""
    methods = [row.method for row in comparison.rows if row.method != SINGLE_TASK]
    shares = {method: conflict_shares(comparison, method, BINS) for method in methods}
    shares = {method: own for method, own in shares.items() if math.isfinite(own[0])}
    left, right, height = 150, 700, 24
    scale = right - left
    parts: list[str] = []
    for at, (name, color) in enumerate(zip(NAMES, COLORS, strict=True)):
        parts.append(f'<rect x="{left + 112 * at}" y="6" width="12" height="12" fill="{color}"/>')
        parts.append(f'<text x="{left + 112 * at + 17}" y="16">{name}</text>')
    for at, (method, own) in enumerate(shares.items()):
        y, begin = 34 + height * at, float(left)
        parts.append(f'<text x="{left - 12}" y="{y + 13}" text-anchor="end">{escape(method)}</text>')
        for share, color in zip(own, COLORS, strict=True):
            parts.append(f'<rect x="{begin:.1f}" y="{y}" width="{share * scale:.1f}" height="17" fill="{color}"/>')
            begin += share * scale
    return svg(parts, 770, 44 + height * len(shares))


def x(value: float, low: float, scale: float, left: float) -> float:
    """Return where a value is across."""
    return round(left + (value - low) * scale, 1)


def svg(parts: Sequence[str], width: int, height: int) -> str:
    """Return a picture."""
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
    head += 'font-family="sans-serif" font-size="12">'
    return "\n".join([head, f'<rect width="{width}" height="{height}" fill="#fff"/>', *parts, "</svg>", ""])


if __name__ == "__main__":
    sys.exit(main())
