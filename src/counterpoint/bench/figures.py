"""The figures of the report that have one dot per run: delta_m, cost against delta_m, change of each task.

A figure is plain data in plotly's vocabulary, ready for JSON; nothing here imports plotly.
"""

import dataclasses
import html
import math
import re
from typing import Any

from counterpoint.bench.numbers import format_exact, plain
from counterpoint.bench.palette import MethodStyle, method_styles
from counterpoint.bench.readings import EQUAL, READINGS, SINGLE_TASK, find_row, get_reading, ranked_rows, relative_time
from counterpoint.bench.results import Comparison, MethodRow, Spread

GRID = "#e6e8eb"
ZERO = "#444b55"
MAX_LABEL = 20  # longer names would leave no room for the data on a phone; the tooltip has them whole
_MARKS = r" (?=[@#] )"  # between what a method has of each dimension, see bench.dimensions

Trace = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Figure:
    """One plot.

    Attributes:
        key: Its id in the page.
        title: Heading above it; empty if the section's heading says it all.
        label: What it shows, in words, for those who do not see it.
        data: Traces; ``meta.method`` is the position of the row that a trace belongs to.
        layout: Layout.
        switch: ``"reading"`` or ``"axis"`` if it follows that switch of the page.
        variants: Position of the switch -> what differs from ``data`` (one entry per trace) and ``layout``.
    """

    key: str
    title: str
    label: str
    data: list[Trace]
    layout: dict[str, Any]
    switch: str = ""
    variants: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Section:
    """Figures that belong together, with a heading, a caption and perhaps a legend of the methods."""

    key: str
    title: str
    caption: str
    figures: list[Figure]
    legend: bool = False
    axis_switch: bool = False


def escape(text: str) -> str:
    """Return text that plotly shows literally, instead of reading tags in it."""
    return html.escape(text, quote=False)


def short(name: str) -> str:
    """Return a name that fits beside an axis: what a method has of each dimension on a line of its own.

    Where options are cut, their end stays: groups of tasks differ there.
    """
    if len(name) <= MAX_LABEL or not re.search(_MARKS, name):
        return escape(name if len(name) <= MAX_LABEL else f"{name[: MAX_LABEL - 1]}\u2026")
    half = MAX_LABEL // 2
    pieces = re.split(_MARKS, name)
    cut = [piece if len(piece) <= MAX_LABEL else f"{piece[: half - 1]}\u2026{piece[-half:]}" for piece in pieces]
    return "<br>".join(escape(piece) for piece in cut)


def axis(title: str, **options: Any) -> dict[str, Any]:
    """Return an axis in the style of the report."""
    base = {
        "title": {"text": title, "standoff": 8},
        "gridcolor": GRID,
        "zeroline": False,
        "automargin": True,
        "linecolor": GRID,
        "ticks": "",
        "nticks": 7,
    }
    return base | options


def layout(xaxis: dict[str, Any], yaxis: dict[str, Any], height: int, **options: Any) -> dict[str, Any]:
    """Return a layout in the style of the report."""
    base = {
        "height": height,
        "margin": {"l": 8, "r": 14, "t": 32, "b": 8, "pad": 4},  # plotly's buttons on top, and not over the best dots
        "paper_bgcolor": "#ffffff",
        "plot_bgcolor": "#ffffff",
        "font": {"family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", "size": 12, "color": "#24292f"},
        "hovermode": "closest",
        "hoverdistance": 12,
        "hoverlabel": {"align": "left", "bgcolor": "#ffffff", "font": {"color": "#111111", "size": 12}},
        "showlegend": False,
        "xaxis": xaxis,
        "yaxis": yaxis,
    }
    return base | options


def line_shape(orientation: str, at: float, dash: str = "solid") -> dict[str, Any]:
    """Return a reference line across the whole plot at a value of one axis (``"x"`` or ``"y"``)."""
    other = "y" if orientation == "x" else "x"
    return {
        "type": "line",
        f"{orientation}0": at,
        f"{orientation}1": at,
        f"{orientation}ref": orientation,
        f"{other}0": 0,
        f"{other}1": 1,
        f"{other}ref": "paper",
        "line": {"color": ZERO, "width": 1.2, "dash": dash},
        "layer": "between",  # above the grid, which would pale it
    }


def _dots(
    comparison: Comparison, index: int, style: MethodStyle, spread: Spread | None, y: float, where: str, *, hollow: bool
) -> list[Trace]:
    """Return one row of a dot plot: every seed as a dot and the mean as a bar."""
    name = comparison.rows[index].method
    pairs = zip(comparison.seeds, spread.values, strict=True) if spread is not None else []
    seeds = [(seed, value) for seed, value in pairs if math.isfinite(value)]
    head = f"<b>{escape(name)}</b><br>{where}"
    dots = {
        "type": "scatter",
        "mode": "markers",
        "name": escape(name),
        "meta": {"method": index, "kind": "seeds"},
        "x": [plain(value) for _, value in seeds],
        "y": [y] * len(seeds),
        "hoverinfo": "text",
        "hovertext": [f"{head}, seed {seed}<br>{format_exact(value, signed=True)} %" for seed, value in seeds],
        "marker": {
            "color": style.color,
            "symbol": "circle-open" if hollow else "circle",
            "size": 8,
            "opacity": 0.75,
            "line": {"width": 1.5, "color": style.color},
        },
    }
    mean = {
        "type": "scatter",
        "mode": "markers",
        "name": escape(name),
        "meta": {"method": index, "kind": "mean"},
        "x": [],
        "y": [],
        "hoverinfo": "text",
        "hovertext": [],
        "marker": {"color": style.color, "symbol": "line-ns", "size": 15, "line": {"width": 3, "color": style.color}},
    }
    if spread is not None and seeds:
        mean |= {"x": [plain(spread.mean)], "y": [y], "hovertext": [f"{head}<br>{_mean_text(spread)} %"]}
    return [dots, mean]


def _mean_text(spread: Spread) -> str:
    std = "" if math.isnan(spread.std) else f" \u00b1 {format_exact(spread.std)}"
    count = len(spread.finite)
    return f"mean {format_exact(spread.mean, signed=True)}{std} ({count} seed{'s' * (count != 1)})"


def _method_axis(comparison: Comparison, order: list[int]) -> dict[str, Any]:
    """Return the axis with one line per method, best on top."""
    labels = []
    for index in order:
        name = short(comparison.rows[index].method)
        labels.append(name if comparison.rows[index].final is not None else f"{name} (failed)")
    return axis(
        "",
        tickmode="array",
        tickvals=list(range(len(order))),
        ticktext=labels,
        range=[len(order) - 0.5, -0.5],
        fixedrange=True,
        showgrid=True,
    )


def delta_section(comparison: Comparison) -> Section:
    """Return delta_m of every method, with every seed, at both readings."""
    order = ranked_rows(comparison)
    styles = method_styles(comparison)
    data: list[Trace] = []
    for place, index in enumerate(order):
        for shift, reading in ((-0.18, "final"), (0.18, "equal_time")):
            found = get_reading(comparison.rows[index], reading)
            spread = None if found is None else found.delta["tasks"]
            hollow = reading != "final"
            data += _dots(comparison, index, styles[index], spread, place + shift, READINGS[reading], hollow=hollow)
    shapes = [line_shape("x", 0.0)]
    equal = find_row(comparison, EQUAL)
    if equal is not None and equal.final is not None and equal.final.delta["tasks"].finite:
        shapes.append(line_shape("x", equal.final.delta["tasks"].mean, dash="dot"))
    best = comparison.rows[order[0]].method if order else "none"
    figure = Figure(
        key="delta",
        title="",
        label=f"Dot plot of delta_m (tasks) in per cent per method at both readings. Highest mean at the end: {best}.",
        data=data,
        layout=layout(
            axis("\u0394m (tasks), %   (better \u2192)"),
            _method_axis(comparison, order),
            height=max(220, 70 + 44 * len(order)),
            shapes=shapes,
        ),
    )
    caption = (
        "Every dot is one seed and the bar is their mean. Filled, upper: at the end of training. Hollow, lower: at "
        "equal "
        "wall-clock. The solid line is the single-task networks (0 %), the dotted line the mean of equal weighting "
        "at the end."
    )
    return Section("delta", "\u0394m of every method and seed", caption, [figure])


def change_section(comparison: Comparison) -> Section:
    """Return the change of each task against its single-task network, one panel per task."""
    order = [index for index in ranked_rows(comparison) if comparison.rows[index].method != SINGLE_TASK]
    styles = method_styles(comparison)
    figures = []
    for number, task in enumerate(comparison.tasks):
        variants: dict[str, dict[str, Any]] = {}
        for reading, where in READINGS.items():
            traces: list[Trace] = []
            for place, index in enumerate(order):
                found = get_reading(comparison.rows[index], reading)
                spread = None if found is None else found.change.get(task.name)
                traces += _dots(comparison, index, styles[index], spread, place, where, hollow=reading != "final")
            variants[reading] = {"data": traces, "layout": {}}
        figures.append(
            Figure(
                key=f"change-{number}",
                title=task.name,
                label=f"Dot plot of the change of task {task.name} against its single-task network, in per cent.",
                data=variants["final"]["data"],
                layout=layout(
                    axis("change, %   (better \u2192)"),
                    _method_axis(comparison, order),
                    height=max(200, 70 + 27 * len(order)),
                    shapes=[line_shape("x", 0.0)],
                ),
                switch="reading",
                variants=variants,
            )
        )
    caption = (
        "Mean relative change of the task's metrics against the mean over seeds of its single-task networks, positive "
        "is better. Dots left of the line are tasks that joint training made worse. Dots are seeds, bars are means; "
        "methods in the order of the first figure."
    )
    return Section("change", "Which tasks gain and which pay", caption, figures)


def cost_section(comparison: Comparison) -> Section:
    """Return training time relative to equal weighting against delta_m at the end."""
    styles = method_styles(comparison)
    relative = any(relative_time(comparison, row).finite for row in comparison.rows)
    points: list[tuple[int, Spread, Spread]] = []
    for index, row in enumerate(comparison.rows):
        cost = relative_time(comparison, row) if relative else row.train_seconds
        if row.final is not None and cost.finite and row.final.delta["tasks"].finite:
            points.append((index, cost, row.final.delta["tasks"]))
    data = [
        _cost_point(comparison.rows[index], index, styles[index], cost, delta, relative)
        for index, cost, delta in points
    ]
    costs = [cost.mean for _, cost, _ in points]
    wide = bool(costs) and min(costs) > 0 and max(costs) / min(costs) > 8  # a linear axis would crush the cheap ones
    unit = "time, \u00d7 equal" if relative else "time, s"  # short: on a phone a longer title is cut off
    figure = Figure(
        key="cost",
        title="",
        label="Scatter plot of training time relative to equal weighting against delta_m (tasks), by method.",
        data=data,
        layout=layout(
            axis(f"{unit}   (\u2190 cheaper)", type="log" if wide else "linear", showline=True),
            axis("\u0394m (tasks), %   (better \u2192)"),
            height=440,
            shapes=[line_shape("y", 0.0)],
            annotations=_frontier_labels(comparison, points, log=wide),
        ),
    )
    caption = (
        "Mean over seeds; the whiskers are one sample standard deviation. Named, where there is "
        "room, are the baselines and the methods that no other beats in both mean time and mean \u0394m. Single-task "
        "time is the sum over the tasks' networks. Time is that of the training steps by the clock, taken while the "
        "other processes of the comparison ran beside it, and so are the readings at equal wall-clock: differences of "
        "a few per cent are noise. Hover for step time, memory and backward passes."
    )
    return Section("cost", "What it costs", caption, [figure], legend=True)


def _cost_point(row: MethodRow, index: int, style: MethodStyle, cost: Spread, delta: Spread, relative: bool) -> Trace:
    """Return one marker with whiskers."""
    facts = [
        f"<b>{escape(row.method)}</b>",
        f"\u0394m (tasks) {_mean_text(delta)} %",
        f"training time {format_exact(row.train_seconds.mean)} s",
        f"step {format_exact(row.step_ms.mean)} ms",
        f"peak memory {format_exact(row.peak_memory_mb.mean)} MB",
        f"backward passes {format_exact(row.num_backward.mean)}",
    ]
    if relative:
        facts.insert(2, f"training time {format_exact(cost.mean)} \u00d7 equal weighting")

    def whisker(spread: Spread) -> dict[str, Any]:
        return {
            "type": "data",
            "array": [plain(spread.std) or 0.0],
            "thickness": 1.2,
            "width": 0,
            "color": style.color,
            "visible": True,
        }

    return {
        "type": "scatter",
        "mode": "markers",
        "name": escape(row.method),
        "meta": {"method": index, "kind": "mean"},
        "x": [plain(cost.mean)],
        "y": [plain(delta.mean)],
        "error_x": whisker(cost),
        "error_y": whisker(delta),
        "hoverinfo": "text",
        "hovertext": ["<br>".join(facts)],
        "marker": {"color": style.color, "symbol": style.symbol, "size": 12, "line": {"width": 1, "color": "#ffffff"}},
    }


def _frontier_labels(
    comparison: Comparison, points: list[tuple[int, Spread, Spread]], *, log: bool
) -> list[dict[str, Any]]:
    """Return the names of the baselines and of the methods that none beats in both time and delta_m."""
    places = {index: (math.log10(cost.mean) if log else cost.mean, delta.mean) for index, cost, delta in points}
    spans = [max(axis) - min(axis) or 1.0 for axis in zip(*places.values(), strict=True)]
    beaten = {
        index
        for index, (cost, delta) in places.items()
        if any(c <= cost and d >= delta and (c < cost or d > delta) for c, d in places.values())
    }
    baselines = [index for index in places if comparison.rows[index].method in (EQUAL, SINGLE_TASK)]
    labels: dict[int, dict[str, Any]] = {}
    for index in [*baselines, *sorted(set(places) - beaten - set(baselines), key=lambda i: -places[i][1])]:
        x, y = places[index]
        near = any(
            abs(x - places[other][0]) < 0.15 * spans[0] and abs(y - places[other][1]) < 0.08 * spans[1]
            for other in labels
        )
        if near:
            continue  # two names on top of each other are none; the tooltip and the legend have it
        labels[index] = {
            "x": plain(x),
            "y": plain(y),
            "text": short(comparison.rows[index].method),
            "showarrow": False,
            "yshift": -16 if index in beaten else 16,
            "bgcolor": "rgba(255,255,255,0.8)",
            "font": {"size": 12, "color": "#24292f"},
        }
    return list(labels.values())
