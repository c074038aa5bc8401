"""The figures of a diagnosis: conflict by layer and time, distribution of cosines, lengths of the gradients.

Plain data in plotly's vocabulary; nothing here imports plotly.
"""

import itertools
from collections.abc import Sequence

import numpy as np

from counterpoint.bench.figures import Figure, Section, Trace, axis, escape, layout, line_shape, short
from counterpoint.bench.numbers import plain
from counterpoint.bench.palette import COLORS, DASHES, bin_colors
from counterpoint.diagnostics import PAPER_BINS, ConflictBins, ConflictRecord

MAX_COLUMNS = 64  # of the map; more entries than this are drawn as means of neighbors
MAX_PAIRS = 6  # more pairs than this, and the ones that conflict most are drawn
_ROW, _FRAME = 15, 100  # pixels a layer, and around the map
_DIVERGING = [[0.0, "#a63603"], [0.25, "#f0a15e"], [0.5, "#f7f7f7"], [0.75, "#74aed6"], [1.0, "#08519c"]]


def chosen_pairs(record: ConflictRecord) -> list[int]:
    """Return the pairs to draw: all, or those with the highest rate of conflict, in their own order."""
    measured = record.whole_measured.sum(axis=0)
    rates = np.where(measured > 0, record.whole_conflicts(0.0) / np.maximum(measured, 1), -1.0)
    return sorted(np.argsort(-rates, kind="stable")[:MAX_PAIRS].tolist())


def coarser(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return means over neighboring entries, at most :data:`MAX_COLUMNS` of them, weighted by their counts."""
    groups = np.array_split(np.arange(len(values)), min(len(values), MAX_COLUMNS))
    means = []
    for group in groups:
        weights = np.where(np.isnan(values[group]), 0, counts[group])
        total = weights.sum(axis=0)
        summed = np.nansum(values[group] * weights, axis=0)
        means.append(np.where(total > 0, summed / np.maximum(total, 1), np.nan))
    return np.array(means)


def coarser_steps(record: ConflictRecord) -> list[int]:
    """Return the first step of each column."""
    groups = np.array_split(record.steps, min(len(record.steps), MAX_COLUMNS))
    return [int(group[0]) for group in groups]


def map_section(record: ConflictRecord) -> Section:
    """Return the mean cosine of each layer over time, one map per pair of tasks."""
    shown = chosen_pairs(record)
    figures = [_map(record, number, at) for number, at in enumerate(shown)]
    left_out = len(record.pairs) - len(shown)
    caption = (
        "Mean cosine between the gradients of two tasks in each layer, in the network's order from the top, over the "
        "steps of training from left to right. Orange: they pull against each other; blue: they agree; gray: nothing "
        "to measure. Each map has a scale of its own."
    )
    if left_out:
        caption += f" The {len(shown)} pairs that conflict most are shown, {left_out} are left out."
    return Section("map", "Where and when tasks conflict", caption, figures)


def _map(record: ConflictRecord, number: int, at: int) -> Figure:
    """Return the map of one pair."""
    steps, count = coarser_steps(record), len(record.layers)
    means = coarser(record.cosines[:, :, at].astype(np.float64), record.measured[:, :, at])  # (columns, n)
    finite = np.abs(means[np.isfinite(means)])
    bound = max(float(np.quantile(finite, 0.98)), 0.01) if len(finite) else 1.0
    trace: Trace = {
        "type": "heatmap",
        "meta": {"method": number},
        "x": steps,
        "y": list(range(count)),
        "z": [[plain(value) for value in row] for row in means.T],
        "zmin": -bound,
        "zmax": bound,
        "colorscale": _DIVERGING,
        "hoverinfo": "text",
        "text": [
            [_cell(record, layer, step, value) for step, value in zip(steps, row, strict=True)]
            for layer, row in enumerate(means.T)
        ],
        "ygap": 1,
        "colorbar": {
            "orientation": "h",
            "thickness": 8,
            "len": 0.9,
            "y": 1.0,
            "yanchor": "bottom",
            "ypad": 10,
            "outlinewidth": 0,
            "tickfont": {"size": 11},
            "title": {"text": "mean cosine", "side": "top", "font": {"size": 11}},
        },
    }
    prefix = _common_part(record.layers)
    vertical = axis(
        "",
        tickmode="array",
        tickvals=list(range(count)),
        ticktext=[_layer_label(name[len(prefix) :]) for name in record.layers],
        tickfont={"size": 10},
        range=[count - 0.5, -0.5],
        showgrid=False,
    )
    half = (steps[-1] - steps[0]) / max(len(steps) - 1, 1) / 2 or 0.5
    horizontal = axis(
        "", tickprefix="step ", showtickprefix="first", showgrid=False, range=[steps[0] - half, steps[-1] + half]
    )
    one, other = (escape(task) for task in record.pairs[at])
    words = f"Map of the mean cosine of the gradients of {one} and {other} by layer and step."
    return Figure(
        key=f"map-{number}",
        title=" and ".join(record.pairs[at]),
        label=f"{words} {_worst_layer(record, at)}",
        data=[trace],
        layout=layout(horizontal, vertical, _FRAME + _ROW * max(count, 6), plot_bgcolor="#e9e9e9"),
    )


def distribution_section(record: ConflictRecord, bins: ConflictBins = PAPER_BINS["mnist"]) -> Section:
    """Return the share of measurements in each of some bins, and a fine histogram of each pair."""
    shares, names = record.distribution(bins.edges), bins.names()
    bars: Trace = {
        "type": "bar",
        "meta": {"method": 0},
        "x": names,
        "y": [plain(100 * share) for share in shares],
        "marker": {"color": bin_colors(len(names))},
        "text": [f"{100 * share:.1f}" for share in shares],
        "textposition": "outside",
        "cliponaxis": False,
        "hoverinfo": "text",
        "hovertext": [f"{name}: {100 * share:.2f} %" for name, share in zip(names, shares, strict=True)],
    }
    top = float(np.nanmax(shares)) if np.isfinite(shares).any() else 1.0
    paper = Figure(
        key="bins",
        title="All pairs, in the bins of the Recon paper" if bins in PAPER_BINS.values() else "All pairs, in bins",
        label=f"Bar chart of the share of measurements in {len(names)} bins of the cosine.",
        data=[bars],
        layout=layout(
            axis("cosine", type="category", tickfont={"size": 10}), axis("measurements, %", range=[0, 115 * top]), 300
        ),
    )
    traces = [_histogram(record, place, at) for place, at in enumerate(chosen_pairs(record))]
    pairs = Figure(
        key="histogram",
        title="Each pair",
        label="Histogram of the cosines of the whole gradients, a line for each pair of tasks.",
        data=traces,
        layout=_with_legend(
            layout(axis("cosine"), axis("measurements, %", rangemode="tozero"), 320, shapes=[line_shape("x", 0.0)])
        ),
    )
    severe = 100 * float(record.conflict_rate(bins.severe))
    named = [name for name, own in PAPER_BINS.items() if own == bins]
    whose = f", what the paper calls severe ({', '.join(named)})" if named else ", the severe ones"
    caption = (
        "Cosines of the gradients of all shared layers together, one per pair and measurement. "
        f"{severe:.1f} % are below {bins.severe:g}{whose}. A network that was changed is compared with this one by the "
        "reduction, 1 - its share of severe ones / this share (counterpoint.diagnostics.reduction)."
    )
    return Section("distribution", "How strongly tasks conflict", caption, [paper, pairs])


def lengths_section(record: ConflictRecord) -> Section:
    """Return the lengths of the task gradients over time, and how many directions they span."""
    steps = coarser_steps(record)
    means = coarser(
        record.whole_norms.astype(np.float64), np.broadcast_to(record.counts[:, None], record.whole_norms.shape)
    )
    traces = [
        _line(place, task, steps, means[:, place], f"{escape(task)}: length") for place, task in enumerate(record.tasks)
    ]
    lengths = Figure(
        key="lengths",
        title="Length of each task's gradient",
        label="Line chart of the length of the gradient of each task over the steps, on a logarithmic axis.",
        data=traces,
        layout=_with_legend(layout(axis("step"), _log_axis("length", means), 320)),
    )
    rank = coarser(record.effective_rank.astype(np.float64)[:, None], record.counts[:, None])[:, 0]
    directions = Figure(
        key="rank",
        title="Effective rank of the gradients",
        label="Line chart of the effective rank of the matrix of task gradients over the steps.",
        data=[_line(0, "effective rank", steps, rank, "effective rank")],
        layout=layout(axis("step"), axis("directions", range=[0.9, len(record.tasks) + 0.1]), 320),
    )
    caption = (
        "Of all shared layers together. A task whose gradient is many times longer than another's decides a plain sum "
        "alone. The effective rank is 1 if all gradients lie on one line (or one is much longer than the others) and "
        f"{len(record.tasks)}, the number of tasks, if they are orthogonal and equally long."
    )
    return Section("lengths", "Who dominates", caption, [lengths, directions])


def _histogram(record: ConflictRecord, place: int, at: int) -> Trace:
    """Return the cosines of one pair, in about 24 bins over what all pairs take up, as a line of steps."""
    below = record.whole_below[at]
    used = record.whole_below.sum(axis=0)
    inside = np.flatnonzero((used > 0) & (used < used[-1])) if used[-1] else np.array([100])
    first, last = (max(inside[0] - 2, 0), min(inside[-1] + 3, 200)) if len(inside) else (90, 110)
    width = max((last - first) // 24, 1)
    edges = np.arange(first, last + width, width).clip(max=200)
    total = max(int(record.whole_measured[:, at].sum()), 1)
    shares = 100 * np.diff(below[edges]) / total
    middles = (-1 + (edges[:-1] + edges[1:]) / 200).round(4)
    name = " and ".join(escape(task) for task in record.pairs[at])
    return _line(place, name, middles.tolist(), shares, name) | {"line": _style(place) | {"shape": "hvh"}}


def _line(place: int, name: str, x: list, y: np.ndarray, hover: str) -> Trace:
    return {
        "type": "scatter",
        "mode": "lines" if len(x) > 1 else "markers",
        "name": name if len(name) <= 32 else short(name),
        "meta": {"method": place},
        "x": x,
        "y": [plain(value) for value in y.tolist()],
        "line": _style(place),
        "hovertemplate": f"{hover}<br>%{{x}}: %{{y:.3g}}<extra></extra>",
    }


def _style(place: int) -> dict:
    return {"color": COLORS[place % len(COLORS)], "width": 2, "dash": DASHES[(place // len(COLORS)) % len(DASHES)]}


def _with_legend(made: dict) -> dict:
    place = {"orientation": "h", "x": 0, "y": -0.22, "yanchor": "top", "font": {"size": 11}}
    return made | {"showlegend": True, "legend": place, "margin": {**made["margin"], "b": 60}}


def _cell(record: ConflictRecord, layer: int, step: int, value: float) -> str:
    shown = "nothing to measure" if np.isnan(value) else f"mean cosine {value:.3f}"
    return f"<b>{escape(record.layers[layer])}</b><br>from step {step}<br>{shown}"


def _layer_label(name: str, length: int = 18) -> str:
    """Return the end of a layer's name, which tells most, short enough for a phone."""
    return escape(name if len(name) <= length else f"\u2026{name[1 - length :]}") or "(network)"


def _common_part(names: Sequence[str]) -> str:
    """Return what all names begin with, up to a dot and with it, such that something else than a number follows."""
    pieces = [name.split(".")[:-1] for name in names]
    same = [column[0] for column in itertools.takewhile(lambda all_: len(set(all_)) == 1, zip(*pieces, strict=False))]
    while same and any(name.split(".")[len(same)].isdecimal() for name in names):
        same.pop()  # 0.1 would look like a number
    return "".join(f"{part}." for part in same)


def _log_axis(title: str, values: np.ndarray) -> dict:
    """Return a logarithmic axis with marks at 1, 2 and 5 times powers of ten."""
    real = values[np.isfinite(values) & (values > 0)]
    if not len(real):
        return axis(title)
    low, high = np.floor(np.log10(real.min())), np.ceil(np.log10(real.max()))
    steps = (1,) if high - low > 4 else (1, 2, 5)
    marks = [step * 10.0**power for power in np.arange(low, high + 1) for step in steps]
    return axis(title, type="log", tickmode="array", tickvals=marks, ticktext=[f"{mark:g}" for mark in marks])


def _worst_layer(record: ConflictRecord, at: int) -> str:
    """Return the layer with the lowest mean cosine in words, for those who do not see the map."""
    weights = record.measured[:, :, at]
    sums = np.nansum(record.cosines[:, :, at] * weights, axis=0)
    means = np.where(weights.sum(axis=0) > 0, sums / np.maximum(weights.sum(axis=0), 1), np.nan)
    if not np.isfinite(means).any():
        return "Nothing was measured."
    worst = int(np.nanargmin(means))
    return f"Lowest in {escape(record.layers[worst])}: {means[worst]:.3f}."
