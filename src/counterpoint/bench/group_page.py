"""The page of ``counterpoint group``: affinity with the groups marked, its change over training, the proposals."""

import math
from pathlib import Path
from typing import Any

from counterpoint._optional import require
from counterpoint.bench.group_plan import GroupPlan
from counterpoint.bench.numbers import format_number, plain
from counterpoint.bench.page import TEMPLATES, hash_source, inline_script
from counterpoint.bench.tables import write_text
from counterpoint.grouping import AffinityMatrix, Grouping

MAX_PANELS = 12  # of the epochs, evenly spread
_SCALE = [[0, "#b2182b"], [0.25, "#f4a582"], [0.5, "#ffffff"], [0.75, "#92c5de"], [1, "#2166ac"]]
_FONT = {"family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", "size": 12, "color": "#24292f"}


def write_page(plan: GroupPlan, path: Path) -> Path:
    """Write the page as one self-contained HTML file.

    Raises:
        MissingExtraError: If plotly or jinja2 is not installed.
        FileError: If the file cannot be written.
    """
    jinja2 = require("jinja2", extra="bench")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined
    )
    order = _order(plan.proposal())
    high = _largest([plan.affinity])
    panels = _spread(list(plan.over_time))
    high_panels = _largest([matrix for _, matrix in panels])
    figures = [_heat("affinity", plan.affinity, order, high, plan.proposal())]
    figures += [
        _heat(f"epoch-{epoch}", matrix, order, high_panels, plan.proposal(), small=True) for epoch, matrix in panels
    ]
    scripts = {
        "plotly": inline_script(require("plotly.offline", extra="bench").get_plotlyjs()),
        "page": inline_script((TEMPLATES / "group.js").read_text(encoding="utf-8")),
    }
    return write_text(
        path,
        environment.get_template("group.html.jinja").render(
            plan=plan,
            panels=[(f"epoch-{epoch}", epoch) for epoch, _ in panels],
            rows=[_row(plan, budget) for budget in range(1, len(plan.proposals) + 1)],
            figures=figures,
            css=(TEMPLATES / "report.css").read_text(encoding="utf-8"),
            scripts=scripts,
            hashes=[hash_source(text) for text in scripts.values()],
        ),
    )


def _row(plan: GroupPlan, budget: int) -> dict[str, Any]:
    """Return one line of the table of proposals."""
    grouping = plan.proposals[budget - 1]
    return {
        "budget": budget,
        "groups": groups_text(grouping),
        "score": format_number(grouping.score, 4, signed=True),
        "gain": format_number(plan.gain(budget), 4, signed=True),
        "best": budget == plan.best,
    }


def groups_text(grouping: Grouping) -> str:
    """Return groups as text; where they overlap, a task that a group does not serve is in brackets."""
    return " | ".join(
        " ".join(task if grouping.serves[grouping.tasks.index(task)] == at else f"({task})" for task in group)
        for at, group in enumerate(grouping.groups)
    )


def _order(grouping: Grouping) -> list[int]:
    """Return the tasks with those of a group beside each other."""
    return sorted(range(len(grouping.tasks)), key=lambda task: (grouping.serves[task], task))


def _spread(entries: list[Any]) -> list[Any]:
    """Return at most :data:`MAX_PANELS` entries, the first and the last among them."""
    if len(entries) <= MAX_PANELS:
        return entries
    return [entries[round(at * (len(entries) - 1) / (MAX_PANELS - 1))] for at in range(MAX_PANELS)]


def _largest(matrices: list[AffinityMatrix]) -> float:
    """Return the largest size of an entry off the diagonal, which the scale of colors ends at."""
    sizes = [
        abs(value)
        for matrix in matrices
        for i, row in enumerate(matrix.values.tolist())
        for j, value in enumerate(row)
        if i != j and math.isfinite(value)
    ]
    return max(sizes, default=0.0) or 1.0


def _heat(
    key: str, matrix: AffinityMatrix, order: list[int], high: float, grouping: Grouping, *, small: bool = False
) -> dict[str, Any]:
    """Return a heat map in plotly's vocabulary; a box marks the tasks that one group serves."""
    names = [matrix.tasks[task] for task in order]
    values = [[plain(float(matrix.values[i, j])) if i != j else None for j in order] for i in order]
    written = [["" if value is None else format_number(value, _decimals(high)) for value in row] for row in values]
    shapes, start = [], 0
    for at in range(len(grouping.groups)):
        size = sum(server == at for server in grouping.serves)
        if size:
            box = {"x0": start - 0.5, "x1": start + size - 0.5, "y0": start - 0.5, "y1": start + size - 0.5}
            shapes.append({"type": "rect", **box, "line": {"color": "#111111", "width": 1.5 if small else 3}})
        start += size
    turned = _SCALE if matrix.higher_is_better else [[1 - at, color] for at, color in reversed(_SCALE)]
    places = list(range(len(names)))
    trace = {
        "type": "heatmap",
        "x": places,
        "y": places,
        "z": values,
        "zmin": -high,
        "zmax": high,
        "colorscale": turned,
        "text": written,
        "customdata": [[f"{source} on {target}" for target in names] for source in names],
        "hovertemplate": "%{customdata}<br>%{z:.5g}<extra></extra>",
        "showscale": not small,
        "colorbar": {"thickness": 10, "len": 0.9, "tickfont": {"size": 10}},
        "xgap": 1,
        "ygap": 1,
    }
    if not small and len(names) <= 8:
        trace["texttemplate"] = "%{text}"
        trace["textfont"] = {"size": 10}
    ticks = {"tickmode": "array", "tickvals": places, "ticktext": names, "showgrid": False, "zeroline": False}
    ticks |= {"fixedrange": True, "automargin": True, "tickfont": {"size": 8 if small else 11}, "ticks": ""}
    layout = {
        "height": 220 if small else max(320, 120 + 34 * len(names)),
        "margin": {"l": 4, "r": 4, "t": 8, "b": 4},
        "font": _FONT,
        "paper_bgcolor": "#ffffff",
        "plot_bgcolor": "#e9ecef",
        "xaxis": {**ticks, "tickangle": -40, "title": {"text": "" if small else "target", "standoff": 4}},
        "yaxis": {**ticks, "autorange": "reversed", "title": {"text": "" if small else "source", "standoff": 4}},
        "shapes": shapes,
    }
    return {"key": key, "data": [trace], "layout": layout}


def _decimals(high: float) -> int:
    """Return the decimals that show two digits of the largest entry."""
    return max(0, min(6, 1 - math.floor(math.log10(high))))
