"""The figures of the report with one curve per run: validation metric and gradient cosine over training."""

import itertools
import math
import statistics
from collections.abc import Callable, Iterable

from counterpoint.bench.figures import Figure, Section, Trace, axis, escape, layout, line_shape
from counterpoint.bench.numbers import plain
from counterpoint.bench.palette import MethodStyle, method_styles
from counterpoint.bench.readings import SINGLE_TASK
from counterpoint.bench.results import Comparison, RunRecord, TaskInfo

MAX_PAIRS = 3  # with more pairs of tasks than this, their mean and minimum are shown

# What one record of a run contributes: (key to average seeds at, x positions per axis, y), or nothing.
Point = tuple[float, dict[str, float], float]
Reader = Callable[[RunRecord], list[Point]]


def curves_section(comparison: Comparison) -> Section:
    """Return the primary validation metric of each task over epochs and over training seconds."""
    figures = [
        figure
        for number, task in enumerate(comparison.tasks)
        if (figure := _curve_figure(comparison, number, task)).data
    ]
    caption = (
        "Primary metric of each task on the validation split. Bold: mean over the seeds whose run was finished, "
        "drawn while "
        "all of them have a value; faint: the seeds. "
        "Over training seconds, the mean is placed at the mean time of the seeds at that epoch. The single-task "
        "curve is "
        "that of the task's own network, with its own time."
    )
    return Section("curves", "Validation over training", caption, figures, legend=True, axis_switch=True)


def _curve_figure(comparison: Comparison, number: int, task: TaskInfo) -> Figure:
    """Return the panel of one task."""
    metric, higher = next(iter(task.higher_is_better.items()))
    unit = task.units.get(metric, "")

    def read(run: RunRecord) -> list[Point]:
        points = []
        for entry in run.history:
            value = entry.get("val", {}).get(task.name, {}).get(metric)
            if value is not None and math.isfinite(value):
                places = {"epochs": float(entry["epoch"]), "seconds": float(entry.get("train_seconds", math.nan))}
                points.append((float(entry["epoch"]), places, float(value)))
        return points

    data, seconds = method_curves(comparison, read, ("epochs", "seconds"), f" {escape(unit)}" if unit else "")
    title = f"{metric}{f', {unit}' if unit else ''}   ({'higher' if higher else 'lower'} is better)"
    return Figure(
        key=f"curve-{number}",
        title=f"{task.name}: {title}",
        label=f"Line plot of the validation {metric} of task {task.name} over training, one line per method.",
        data=data,
        layout=layout(axis("epoch", showline=True), axis(""), height=330),
        switch="axis",
        variants={
            "epochs": {"data": [], "layout": {}},
            "seconds": {"data": seconds, "layout": {"xaxis": axis("training time, s", showline=True)}},
        },
    )


def cosine_section(comparison: Comparison) -> Section:
    """Return the cosine between task gradients over training: each pair, or the mean and minimum over many pairs."""
    records = (entry["cosine"] for run in comparison.runs for entry in run.conflicts)
    pairs = list(dict.fromkeys(pair for cosine in records for pair in cosine))
    panels: list[tuple[str, Callable[[dict[str, float]], float]]] = []
    if len(pairs) <= MAX_PAIRS:
        panels = [(pair.replace("|", " and "), _picker(pair)) for pair in pairs]
    else:
        panels = [
            (f"mean over {len(pairs)} pairs", lambda cosine: statistics.fmean(cosine.values())),
            (f"minimum over {len(pairs)} pairs", lambda cosine: min(cosine.values())),
        ]
    figures = [
        figure
        for number, (title, pick) in enumerate(panels)
        if (figure := _cosine_figure(comparison, number, title, pick)).data
    ]
    caption = (
        "Cosine of the angle between task gradients on the shared parameters. Below the zero line (shaded) the tasks "
        "conflict: a step that "
        "helps one hurts the other. Bold: mean over the seeds whose run was finished; faint: the seeds. Recorded now "
        "and then, on single batches."
    )
    if not figures:
        caption = "No gradient cosines were recorded in these runs."
    return Section("cosine", "Gradient conflict over training", caption, figures, legend=bool(figures))


def _picker(pair: str) -> Callable[[dict[str, float]], float]:
    return lambda cosine: cosine.get(pair, math.nan)


def _cosine_figure(
    comparison: Comparison, number: int, title: str, pick: Callable[[dict[str, float]], float]
) -> Figure:
    """Return one panel of cosines."""

    def read(run: RunRecord) -> list[Point]:
        points = []
        for entry in run.conflicts:
            finite = {pair: value for pair, value in entry["cosine"].items() if math.isfinite(value)}
            value = pick(finite) if finite else math.nan
            if math.isfinite(value):
                points.append((float(entry["step"]), {"epochs": float(entry["epoch"])}, float(value)))
        return points

    data, _ = method_curves(comparison, read, ("epochs",), "", skip=SINGLE_TASK)
    shade = {
        "type": "rect",
        "xref": "paper",
        "yref": "y",
        "x0": 0,
        "x1": 1,
        "y0": -1,
        "y1": 0,
        "fillcolor": "#fbe9e4",
        "opacity": 0.6,
        "line": {"width": 0},
        "layer": "below",
    }
    values = [value for trace in data for value in trace["y"] if value is not None]
    low, high = (min(values), max(values)) if values else (-1.0, 1.0)
    pad = 0.05 * max(high - low, 0.1)
    bounds = [max(-1.0, min(low - pad, -0.05)), min(1.0, max(high + pad, 0.05))]
    return Figure(
        key=f"cosine-{number}",
        title=title,
        label=f"Line plot of the gradient cosine, {title}, over training, one line per method, zero line marked.",
        data=data,
        layout=layout(
            axis("epoch", showline=False),
            axis("cosine", range=bounds),
            height=330,
            shapes=[shade, line_shape("y", 0.0)],
        ),
    )


def method_curves(
    comparison: Comparison, read: Reader, places: tuple[str, ...], unit: str, skip: str = ""
) -> tuple[list[Trace], list[Trace]]:
    """Return the traces of all methods at the first place, and what differs for the last place."""
    traces: list[Trace] = []
    overrides: list[Trace] = []
    for index, (row, style) in enumerate(zip(comparison.rows, method_styles(comparison), strict=True)):
        curves = [(run, points) for run in comparison.runs if run.method == row.method and (points := read(run))]
        if row.method == skip or not curves:
            continue
        seeds = _seed_points(curves)
        done = [points for run, points in curves if run.status == "done"]
        mean = _mean_points(done)
        for kind, points, seed_labels in (("seeds", seeds[0], seeds[1]), ("mean", mean, [])):
            traces.append(_curve(row.method, index, style, kind, points, places[0], unit, seed_labels))
            overrides.append({"x": _positions(points, places[-1]), "hovertemplate": _template(kind, places[-1], unit)})
    return traces, overrides


def _seed_points(curves: list[tuple[RunRecord, list[Point]]]) -> tuple[list[Point | None], list[str | None]]:
    """Join the curves of the seeds into one, with a gap (``None``) after each; also the label of each point."""
    points: list[Point | None] = []
    labels: list[str | None] = []
    for run, own in curves:
        points += [*own, None]
        labels += [f"seed {run.seed}{' (failed)' if run.status != 'done' else ''}"] * len(own) + [None]
    return points, labels


def _mean_points(curves: list[list[Point]]) -> list[Point | None]:
    """Average the seeds where all of them have a point, so that a seed that ends early makes no jump."""
    everything = sorted(itertools.chain.from_iterable(curves), key=lambda point: point[0])
    mean: list[Point | None] = []
    for key, grouped in itertools.groupby(everything, key=lambda point: point[0]):
        group = list(grouped)
        if len(group) == len(curves):
            places = {name: statistics.fmean(point[1][name] for point in group) for name in group[0][1]}
            mean.append((key, places, statistics.fmean(point[2] for point in group)))
    return mean


def _positions(points: Iterable[Point | None], place: str) -> list[float | None]:
    return [None if point is None else plain(point[1][place]) for point in points]


def _template(kind: str, place: str, unit: str) -> str:
    """Return the tooltip; names come through ``meta`` and ``customdata``, so that they cannot act as a template."""
    where = "epoch %{x:.4~g}" if place == "epochs" else "%{x:.6~g} s"
    who = "%{customdata}" if kind == "seeds" else "mean"
    return f"<b>%{{meta.name}}</b><br>{who}, {where}<br>%{{y:.6~g}}{unit.replace('%', '&#37;')}<extra></extra>"


def _curve(
    name: str,
    index: int,
    style: MethodStyle,
    kind: str,
    points: list[Point | None],
    place: str,
    unit: str,
    labels: list[str | None],
) -> Trace:
    """Return one trace: all seeds faint, or their mean."""
    seeds = kind == "seeds"
    trace: Trace = {
        "type": "scatter",
        "mode": "lines" if seeds or len(points) > 1 else "markers",
        "name": escape(name),
        "meta": {"method": index, "kind": kind, "name": escape(name)},
        "x": _positions(points, place),
        "y": [None if point is None else plain(point[2]) for point in points],
        "opacity": 0.28 if seeds else 1.0,
        "line": {"color": style.color, "width": 1 if seeds else 2.2, "dash": style.dash if not seeds else "solid"},
        "marker": {"color": style.color, "symbol": style.symbol},
        "connectgaps": False,
        "hovertemplate": _template(kind, place, unit),
    }
    if seeds:
        trace["customdata"] = labels
    return trace
