"""The figures of the report on schedules that make groups while they train: how many, and from what affinities."""

import numpy as np

from counterpoint.bench.curves import Point, method_curves
from counterpoint.bench.figures import Figure, Section, axis, escape, layout
from counterpoint.bench.numbers import plain
from counterpoint.bench.readings import SINGLE_TASK
from counterpoint.bench.results import Comparison, RunRecord
from counterpoint.grouping import relative_effects

_SCALE = [[0.0, "#b2182b"], [0.5, "#ffffff"], [1.0, "#2166ac"]]
_LIMIT = 1.0  # an effect as large as that of a task on itself


def schedule_sections(comparison: Comparison) -> list[Section]:
    """Return the section on groups of tasks; none if no run recorded groups."""
    if not any(run.schedules for run in comparison.runs):
        return []
    data, _ = method_curves(comparison, _num_groups, ("epochs",), "", skip=SINGLE_TASK)
    figures = [
        Figure(
            key="groups",
            title="number of groups",
            label="Line plot of the mean number of task groups of each epoch, one line per method.",
            data=data,
            layout=layout(axis("epoch", showline=True), axis(""), height=330),
        )
    ]
    methods = dict.fromkeys(run.method for run in comparison.runs if run.schedules and run.status == "done")
    figures += [figure for at, method in enumerate(methods) if (figure := _map(comparison, method, at)) is not None]
    caption = (
        "Groups that a schedule makes while it trains. Left: their mean number in each epoch (bold: mean over seeds; "
        "faint: the seeds). Then, for each method, the affinities at the end, mean over seeds: the effect of an update "
        "of a task (row) on the loss of another (column), relative to that other's effect on itself. Blue helps, red "
        "harms; the clustering reads the mean of this and its transpose."
    )
    return [Section("groups", "Groups of tasks over training", caption, figures, legend=True)]


def _num_groups(run: RunRecord) -> list[Point]:
    return [
        (float(record["step"]), {"epochs": float(record["epoch"])}, float(record["num_groups"]))
        for record in run.schedules
        if "num_groups" in record  # a schedule of one's own may record other things
    ]


def _map(comparison: Comparison, method: str, number: int) -> Figure | None:
    """Return the heat map of the relative affinities at the end of training; nothing if none could be formed."""
    ends = [run.schedules[-1] for run in comparison.runs if run.method == method and run.schedules]
    matrices = [relative_effects(np.array(record["affinity"], dtype=float)) for record in ends if "affinity" in record]
    names = [task.name for task in comparison.tasks]
    found = [matrix for matrix in matrices if matrix is not None and matrix.shape == (len(names),) * 2]
    if not found:
        return None
    mean = np.mean(found, axis=0)
    places = list(range(len(names)))
    ticks = {"tickmode": "array", "tickvals": places, "ticktext": [escape(name) for name in names], "showgrid": False}
    trace = {
        "type": "heatmap",
        "meta": {"method": next(i for i, row in enumerate(comparison.rows) if row.method == method)},
        "x": places,
        "y": places,
        "z": [[plain(float(mean[i, j])) if i != j else None for j in places] for i in places],
        "zmin": -_LIMIT,
        "zmax": _LIMIT,
        "colorscale": _SCALE,
        "customdata": [[escape(f"{source} on {target}") for target in names] for source in names],
        "hovertemplate": "%{customdata}<br>%{z:.3f}<extra></extra>",
        "colorbar": {"thickness": 10, "len": 0.9, "tickfont": {"size": 10}},
        "xgap": 1,
        "ygap": 1,
    }
    return Figure(
        key=f"affinity-{number}",
        title=f"affinity at the end: {method}",
        label=f"Heat map of the relative affinities between tasks at the end of training with {method}.",
        data=[trace],
        layout=layout(
            axis("target", **ticks, tickangle=-40),
            axis("source", **ticks, autorange="reversed"),
            height=330,
            plot_bgcolor="#e9ecef",
        ),
    )
