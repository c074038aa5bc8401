"""The figures of the report on networks with split layers: conflict before and after, and what the copies cost."""

import itertools
import math

import numpy as np

from counterpoint.bench.dimensions import part_split
from counterpoint.bench.figures import Figure, Section, Trace, axis, escape, layout, short
from counterpoint.bench.numbers import plain
from counterpoint.bench.palette import bin_colors
from counterpoint.bench.readings import SINGLE_TASK
from counterpoint.bench.results import Comparison
from counterpoint.diagnostics import PAPER_BINS, ConflictBins


def conflict_shares(comparison: Comparison, method: str, bins: ConflictBins) -> list[float]:
    """Return the share of the measured cosines between whole task gradients in each bin, all seeds together.

    Args:
        comparison: The records.
        method: Name of a row.
        bins: Edges, falling.

    Returns:
        One more share than edges; NaN if nothing was measured.
    """
    cosines = [
        cosine
        for run in comparison.runs
        if run.method == method and run.status == "done"
        for record in run.conflicts
        for cosine in record["cosine"].values()
    ]
    bounds = [math.inf, *bins.edges, -math.inf]
    counts = [sum(low <= cosine < high for cosine in cosines) for high, low in itertools.pairwise(bounds)]
    return [count / len(cosines) if cosines else math.nan for count in counts]


def split_sections(comparison: Comparison) -> list[Section]:
    """Return the section on split layers; none if no network was split."""
    rows = [row.method for row in comparison.rows if row.method != SINGLE_TASK]
    bases = {base for base, name in map(part_split, rows) if name}
    methods = [method for method in rows if part_split(method)[0] in bases]
    if not methods:
        return []
    order = sorted(methods, key=lambda method: (methods.index(part_split(method)[0]), methods.index(method)))
    index = {row.method: at for at, row in enumerate(comparison.rows)}
    bins = PAPER_BINS["mnist"]
    lines = axis(
        "",
        tickmode="array",
        tickvals=list(range(len(order))),
        ticktext=[short(method) for method in order],
        range=[len(order) - 0.5, -0.5],
        fixedrange=True,
        showgrid=False,
    )
    height = max(240, 70 + 30 * len(order))
    conflict = Figure(
        key="split-conflict",
        title="Conflict before and after",
        label="Stacked bars: share of the measured cosines between task gradients in five bins, one bar per method.",
        data=[
            _bar(
                index[method], place, 100 * share, color, f"{escape(method)}</b><br>cosine {name}: {100 * share:.1f} %"
            )
            for place, method in enumerate(order)
            for name, share, color in zip(
                bins.names(), conflict_shares(comparison, method, bins), bin_colors(len(bins.names())), strict=True
            )
            if math.isfinite(share)
        ],
        layout=layout(axis("measurements, %", range=[0, 100]), lines, height, barmode="stack", bargap=0.3),
    )
    sizes = {method: size for method in order if math.isfinite(size := _added(comparison, method))}
    size = Figure(
        key="split-size",
        title="Parameters added by the copies",
        label="Bars: parameters that the copies of split layers add to the network, in per cent, one bar per method.",
        data=[
            _bar(index[method], place, sizes[method], "#5b6b7d", f"{escape(method)}</b><br>{sizes[method]:+.2f} %")
            | {"text": [f"{sizes[method]:.1f}"], "textposition": "outside", "cliponaxis": False}
            for place, method in enumerate(order)
            if method in sizes
        ],
        layout=layout(
            axis("added, %", range=[0, 1.2 * max([1.0, *sizes.values()])]), lines, height, bargap=0.3, barmode="overlay"
        ),
    )
    caption = (
        "Networks with some layers split, one copy per task, beside the same method on the network as it was. Left: "
        "cosines between the task gradients of everything that is still shared, all seeds together, in the bins of the "
        f"Recon paper: {', '.join(bins.names())} (from blue to brown). Right: how much larger the network became. "
        "\u0394m is in the table and the first figure."
    )
    return [Section("splits", "What splitting did", caption, [conflict, size])]


def _bar(method: int, place: int, value: float, color: str, hover: str) -> Trace:
    """Return one horizontal bar."""
    return {
        "type": "bar",
        "orientation": "h",
        "meta": {"method": method},
        "y": [place],
        "x": [plain(value)],
        "marker": {"color": color},
        "hoverinfo": "text",
        "hovertext": [f"<b>{hover}"],
    }


def _added(comparison: Comparison, method: str) -> float:
    """Return how many per cent more parameters a method's network has than the same that is not split."""
    rows = {row.method: row for row in comparison.rows}
    own, base = rows[method].num_parameters.finite, rows[part_split(method)[0]].num_parameters.finite
    return 100 * (float(np.mean(own)) / float(np.mean(base)) - 1) if own and base else math.nan
