"""The report of a comparison: one HTML file that needs no network."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from counterpoint._optional import require
from counterpoint.bench.columns import Column, all_columns
from counterpoint.bench.curves import cosine_section, curves_section
from counterpoint.bench.figures import Section, change_section, cost_section, delta_section
from counterpoint.bench.numbers import MISSING, format_exact, format_spread
from counterpoint.bench.page import render_page
from counterpoint.bench.palette import method_styles
from counterpoint.bench.readings import READINGS, SINGLE_TASK, failed_runs, get_reading, ranked_rows
from counterpoint.bench.results import Comparison, MethodRow
from counterpoint.bench.schedule_figures import schedule_sections
from counterpoint.bench.split_figures import split_sections
from counterpoint.bench.tables import write_text
from counterpoint.bench.verdict import rule, verdict

MAX_SHOWN = 9  # with more methods, the figures start with the baselines and the best ones, the others are a click away


def write_report(comparison: Comparison, path: str | os.PathLike[str]) -> Path:
    """Write the report as one self-contained HTML file, replacing an older one in one step.

    Args:
        comparison: The records.
        path: File to write.

    Raises:
        MissingExtraError: If plotly, jinja2 or PyYAML is not installed.
        FileError: If the file cannot be written.
    """
    return write_text(path, render_report(comparison))


def render_report(comparison: Comparison) -> str:
    """Return the report as HTML.

    Raises:
        MissingExtraError: If plotly, jinja2 or PyYAML is not installed.
    """
    sections = _sections(comparison)
    return render_page(
        "report.html.jinja",
        sections,
        comparison=comparison,
        num_methods=sum(row.method != SINGLE_TASK for row in comparison.rows),
        readings=READINGS,
        verdict=verdict(comparison),
        verdict_equal_time=verdict(comparison, "equal_time"),
        rule=rule(comparison),
        groups=_groups(all_columns(comparison)),
        columns=all_columns(comparison),
        bodies={name: _body(comparison, name) for name in READINGS},
        legend=_legend(comparison),
        max_shown=MAX_SHOWN,
        failed=failed_runs(comparison),
        config=_yaml(comparison.config),
        versions=_yaml(comparison.environment),
    )


def _sections(comparison: Comparison) -> list[Section]:
    return [
        delta_section(comparison),
        curves_section(comparison),
        cosine_section(comparison),
        *split_sections(comparison),
        *schedule_sections(comparison),
        cost_section(comparison),
        change_section(comparison),
    ]


def _groups(columns: list[Column]) -> list[tuple[str, int]]:
    """Return the headings above the columns with the number of columns that each spans."""
    groups: list[tuple[str, int]] = []
    for column in columns:
        if groups and groups[-1][0] == column.group:
            groups[-1] = (column.group, groups[-1][1] + 1)
        else:
            groups.append((column.group, 1))
    return groups


def _body(comparison: Comparison, name: str) -> list[dict[str, Any]]:
    """Return the lines of the table at a reading, best first."""
    columns = all_columns(comparison)
    decimals = [column.decimals(comparison) for column in columns]
    best = [column.best(comparison, name) for column in columns]
    styles = method_styles(comparison)
    lines = []
    for index in ranked_rows(comparison, name):
        row = comparison.rows[index]
        cells = [
            _cell(comparison, row, name, column, places) | {"best": row.method in top}
            for column, places, top in zip(columns, decimals, best, strict=True)
        ]
        state = _state(comparison, row, name)
        lines.append({"row": row, "style": styles[index], "cells": cells, "state": state, "errors": _errors(row)})
    return lines


def _cell(comparison: Comparison, row: MethodRow, name: str, column: Column, decimals: int) -> dict[str, Any]:
    """Return one cell: what is written, what it is sorted by, and its seeds for the tooltip."""
    spread = column.of(row, name)
    text = format_spread(spread, decimals, signed=column.signed)
    if spread is None or text == MISSING:
        return {"text": MISSING, "sort": "", "remark": "", "title": "no value"}
    reading = get_reading(row, name)
    seeds = []
    if len(spread.values) == len(comparison.seeds):
        pairs = zip(comparison.seeds, spread.values, strict=True)
        seeds = [f"seed {seed}: {format_exact(value, signed=column.signed)}" for seed, value in pairs]
    remark = column.remark(reading) if column.remark is not None and reading is not None else ""
    return {"text": text, "sort": repr(float(spread.mean)), "remark": remark, "title": "; ".join(seeds)}


def _errors(row: MethodRow) -> list[tuple[str, str]]:
    """Return (seeds, message) of the failures of a row; seeds with the same message together."""
    seeds: dict[str, list[str]] = {}
    for seed, message in row.errors.items():
        seeds.setdefault(message, []).append(str(seed))
    return [(f"seed{'s' * (len(own) > 1)} {', '.join(own)}", message) for message, own in seeds.items()]


def _state(comparison: Comparison, row: MethodRow, name: str) -> str:
    """Return what is to be said about a row that misses something."""
    if row.final is None:
        return "every run failed"
    notes = []
    if row.errors:
        notes.append(f"{len(row.errors)} of {len(comparison.seeds)} seeds failed")
    if get_reading(row, name) is None:
        notes.append("the reference, not read here" if row.method == SINGLE_TASK else "no epoch had ended by then")
    return "; ".join(notes)


def _legend(comparison: Comparison) -> list[dict[str, Any]]:
    """Return name, style and whether it is shown at first, per method."""
    order = ranked_rows(comparison)
    baselines = [index for index in order if comparison.rows[index].family == "baseline"]
    best = [index for index in order if index not in baselines]
    shown = set(order if len(order) <= MAX_SHOWN else [*baselines, *best][:MAX_SHOWN])
    styles = method_styles(comparison)
    return [
        {
            "index": index,
            "name": comparison.rows[index].method,
            "style": styles[index],
            "shown": index in shown,
            "dotted": comparison.rows[index].method == SINGLE_TASK,
        }
        for index in order
    ]


def _yaml(content: Mapping[str, Any]) -> str:
    """Return a mapping as YAML; what YAML does not know is written as text."""
    return require("yaml", extra="bench").safe_dump(_simple(content), sort_keys=False, allow_unicode=True, width=100)


def _simple(content: Any) -> Any:
    """Return content made of the types that YAML knows."""
    if isinstance(content, Mapping):
        return {str(key): _simple(value) for key, value in content.items()}
    if isinstance(content, list | tuple | set | frozenset):
        return [_simple(value) for value in content]
    return content if isinstance(content, str | int | float | bool | None) else str(content)
