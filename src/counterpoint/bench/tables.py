"""The table of a comparison: CSV with every number, LaTeX to paste, and the terminal."""

import csv
import io
import os
import re
import tempfile
import textwrap
from pathlib import Path
from typing import Any

from counterpoint._optional import require
from counterpoint.bench.columns import COST, Column, cost_columns, metric_columns, split_columns, summary_columns
from counterpoint.bench.numbers import MINUS, MISSING, format_number, format_spread
from counterpoint.bench.readings import READINGS, SINGLE_TASK, failed_runs, get_reading, relative_time
from counterpoint.bench.results import Comparison, MethodRow, Spread
from counterpoint.bench.verdict import rule, verdict
from counterpoint.errors import FileError


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Write a file so that a reader sees the old one or the new one, never half of one.

    Raises:
        FileError: If the folder is missing or not writable.
    """
    target = Path(path)
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp")
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
            file.write(text)
        umask = os.umask(0)
        os.umask(umask)
        Path(temporary).chmod(0o666 & ~umask)  # mkstemp makes it private, a report is to be shared
        Path(temporary).replace(target)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise FileError(
            f"{target}: cannot be written ({error.strerror or error}); choose a folder you may write to"
        ) from error
    return target


def write_csv(comparison: Comparison, path: str | os.PathLike[str]) -> Path:
    """Write one line per method and reading with every number in full precision.

    Columns, in order (``<stat>`` is ``mean``, ``std`` (sample standard deviation over seeds) or ``seed_<seed>``):

    - ``method``, ``family``, ``reading`` (``final`` or ``equal_time``), ``num_seeds`` (seeds with a result);
    - ``delta_m_<convention>/<stat>``: per cent against the mean over seeds of the single-task networks;
    - ``against_equal/<stat>``: difference of delta_m_tasks to equal weighting with the same seed, percentage points;
    - ``worst/<stat>``, ``worst_task``, ``mean_rank``, ``epochs/<stat>``;
    - ``change/<task>/<stat>``: per cent against the single-task network, positive is better;
    - ``metric/<task>/<metric>/<stat>``: on the test split, and ``metric/<task>/<metric>/unit``;
    - ``errors``: failed runs, as ``seed <seed>: <message>``, separated by `` | ``;
    - measured cost, which differs from machine to machine and from run to run, and is the same at both readings:
      ``cost/step_ms``, ``cost/train_seconds``, ``cost/relative_time`` (to equal weighting), ``cost/peak_memory_mb``,
      ``cost/num_backward``, ``cost/num_updates`` (forward passes and optimizer steps for each batch),
      ``cost/num_parameters`` (summed over the networks of a method), each with ``/<stat>``;
    - where networks are split: ``conflict/severe/<stat>`` (share of measured cosines of task gradients below -0.01)
      and ``conflict/reduced/<stat>``.

    A number that does not exist is ``nan``.

    Args:
        comparison: The records.
        path: File to write.

    Raises:
        FileError: If the file cannot be written.
    """
    lines = [_csv_line(comparison, row, reading) for row in comparison.rows for reading in READINGS]
    buffer = io.StringIO()
    if lines:
        writer = csv.DictWriter(buffer, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
    return write_text(path, buffer.getvalue())


def _csv_line(comparison: Comparison, row: MethodRow, name: str) -> dict[str, Any]:
    """Return one line as column -> text."""
    reading = get_reading(row, name)
    line: dict[str, Any] = {"method": row.method, "family": row.family, "reading": name}
    line["num_seeds"] = 0 if reading is None else len(reading.delta["tasks"].finite)

    def put(column: str, spread: Spread | None) -> None:
        values = (float("nan"),) * len(comparison.seeds) if spread is None or not spread.values else spread.values
        spread = Spread(values)
        line[f"{column}/mean"] = repr(float(spread.mean))
        line[f"{column}/std"] = repr(float(spread.std))
        for seed, value in zip(comparison.seeds, values, strict=True):
            line[f"{column}/seed_{seed}"] = repr(float(value))

    for convention in _conventions(comparison):
        put(f"delta_m_{convention}", None if reading is None else reading.delta.get(convention))
    put("against_equal", None if reading is None else reading.against_equal)
    put("worst", None if reading is None else reading.worst)
    line["worst_task"] = "" if reading is None else reading.worst_task
    line["mean_rank"] = repr(float("nan") if reading is None else float(reading.mean_rank))
    put("epochs", None if reading is None else reading.epochs)
    for task in comparison.tasks:
        put(f"change/{task.name}", None if reading is None else reading.change.get(task.name))
    for task in comparison.tasks:
        for metric in task.higher_is_better:
            found = None if reading is None else reading.metrics.get(task.name, {}).get(metric)
            put(f"metric/{task.name}/{metric}", found)
            line[f"metric/{task.name}/{metric}/unit"] = task.units.get(metric, "")
    line["errors"] = " | ".join(f"seed {seed}: {text}" for seed, text in row.errors.items())
    costs = {
        "step_ms": row.step_ms,
        "train_seconds": row.train_seconds,
        "relative_time": relative_time(comparison, row),
        "peak_memory_mb": row.peak_memory_mb,
        "num_backward": row.num_backward,
        "num_updates": row.num_updates,
        "num_parameters": row.num_parameters,
    }
    for cost, spread in costs.items():
        put(f"cost/{cost}", spread)
    if comparison.config.get("splits"):
        put("conflict/severe", row.severe)
        put("conflict/reduced", row.reduced)
    return line


def _conventions(comparison: Comparison) -> list[str]:
    """Return the conventions of delta_m that any reading has, "tasks" and "metrics" first."""
    found = {"tasks": None, "metrics": None}
    for row in comparison.rows:
        for reading in (row.final, row.equal_time):
            found |= dict.fromkeys(reading.delta if reading is not None else ())
    return list(found)


_TEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "\u0394": r"$\Delta$",
    "\u00b0": r"\textdegree{}",
    "\u00d7": r"$\times$",
    "\u00b2": r"\textsuperscript{2}",
    "\u00b5": r"\textmu{}",
}


def escape_tex(text: str) -> str:
    """Return text as LaTeX prints it literally, on one line."""
    return "".join(_TEX.get(character, character) for character in re.sub(r"\s+", " ", text))


def _tex_number(column: Column, spread: Spread | None, decimals: int, *, bold: bool) -> str:
    """Return a cell in math mode; bold marks the mean only."""
    if spread is None:
        return "--"
    mean = format_number(spread.mean, decimals, signed=column.signed).replace(MINUS, "-").replace("\u221e", r"\infty")
    mean = rf"\mathbf{{{mean}}}" if bold else mean
    std = format_number(spread.std, decimals)
    return f"${mean}$" if std == MISSING else rf"${mean} \pm {std}$"


def write_tex(comparison: Comparison, path: str | os.PathLike[str]) -> Path:
    """Write a booktabs table: metrics, mean rank and delta_m of each method, at both readings.

    The best mean of each column among the multi-task methods, as it is printed, is bold; ties are all bold.

    Args:
        comparison: The records.
        path: File to write.

    Raises:
        FileError: If the file cannot be written.
    """
    summary = summary_columns()
    columns = [column for task in comparison.tasks for column in metric_columns(task)] + [summary[4], *summary[:2]]
    groups = [
        rf"\multicolumn{{{len(task.higher_is_better)}}}{{c}}{{{escape_tex(task.name)}}}" for task in comparison.tasks
    ]
    rules, start = [], 2
    for task in comparison.tasks:
        stop = start + len(task.higher_is_better) - 1
        rules.append(rf"\cmidrule(lr){{{start}-{stop}}}")
        start = stop + 1
    lines = [
        "% needs \\usepackage{booktabs,textcomp}",
        r"\begin{table}",
        r"  \centering",
        rf"  \caption{{{_tex_caption(comparison)}}}",
        r"  \small",
        rf"  \begin{{tabular}}{{l{'r' * len(columns)}}}",
        r"    \toprule",
        "    " + " & ".join(["", *groups, "", "", ""]) + r" \\",
        "    " + " ".join(rules),
        "    " + " & ".join(["Method", *(_tex_heading(column) for column in columns)]) + r" \\",
    ]
    shown = [name for name in READINGS if any(get_reading(row, name) is not None for row in comparison.rows)]
    for name in shown or ["final"]:
        panel = rf"\multicolumn{{{len(columns) + 1}}}{{l}}{{\emph{{{READINGS[name].capitalize()}}}}} \\"
        lines += [r"    \midrule", f"    {panel}"]
        best = [column.best(comparison, name) for column in columns]
        decimals = [column.decimals(comparison) for column in columns]
        for row in comparison.rows:
            cells = [
                _tex_number(column, column.of(row, name), places, bold=row.method in top)
                for column, places, top in zip(columns, decimals, best, strict=True)
            ]
            lines.append("    " + " & ".join([escape_tex(row.method), *cells]) + r" \\")
    lines += [r"    \bottomrule", r"  \end{tabular}", r"\end{table}"]
    return write_text(path, "\n".join(lines) + "\n")


def _tex_heading(column: Column) -> str:
    arrow = {True: r" $\uparrow$", False: r" $\downarrow$", None: ""}[column.higher_is_better]
    unit = f" ({escape_tex(column.unit)})" if column.unit else ""
    label = (
        r"$\Delta_m$ " + escape_tex(column.label.split(" ")[1])
        if "\u0394m" in column.label
        else escape_tex(column.label)
    )
    return f"{label}{unit}{arrow}"


def _tex_caption(comparison: Comparison) -> str:
    """Return the caption: what, how many seeds, which conventions, what bold means, what failed."""
    count = len(comparison.seeds)
    spread = (
        rf"Mean $\pm$ sample standard deviation over {count} seeds ({', '.join(map(str, comparison.seeds))})."
        if count > 1
        else f"One seed ({', '.join(map(str, comparison.seeds))}), so no spread."
    )
    failed = len(failed_runs(comparison))
    parts = [
        escape_tex(comparison.title).rstrip(".") + ".",
        spread,
        r"$\Delta_m$ (tasks): mean over tasks of each task's mean relative change against the mean of its "
        r"single-task networks, in per cent, positive is better; "
        r"$\Delta_m$ (metrics): flat mean over metrics with the sign turned, negative is better.",
        "Equal wall-clock: read at the training time at which equal weighting with the same seed had ended.",
        "Bold: best mean among the multi-task methods.",
        escape_tex(f"Selection: {comparison.selection.rstrip('.')}."),
        f"{failed} of {len(comparison.runs)} runs failed." if failed else "",
    ]
    return " ".join(part for part in parts if part)


def print_table(comparison: Comparison, console: Any) -> None:
    """Print the table, the verdict and the failed runs; as many columns as the terminal has room for.

    Args:
        comparison: The records.
        console: A ``rich.console.Console``.
    """
    summary, cost = summary_columns(), cost_columns(comparison)
    chosen = [(summary[0], "final"), (summary[0], "equal_time")]
    sizes = split_columns(comparison)
    chosen += [(column, "final") for column in (summary[2], summary[4], *([] if sizes else [cost[0]]), *sizes)]
    table = _terminal_table(comparison, chosen)
    metrics = [column for task in comparison.tasks for column in metric_columns(task)]  # of every task or of none
    for extra in ([summary[3]], metrics, [summary[1]], [cost[2]], [cost[3]]):
        wider = _terminal_table(comparison, [*chosen, *((column, "final") for column in extra)])
        if console.measure(wider, options=console.options.update_width(10_000)).maximum <= console.width:
            table = wider
            chosen += [(column, "final") for column in extra]
    text = require("rich.text", extra="bench").Text
    console.print(table)
    console.print(text(_printable(verdict(comparison)), style="bold"))
    if any(row.equal_time is not None for row in comparison.rows):
        console.print(text(_printable(verdict(comparison, "equal_time"))))
    console.print(text(rule(comparison), style="dim"))
    for method, task, seed, message in failed_runs(comparison):
        where = f"{method}{f' ({task})' if task else ''}, seed {seed}"
        first = (message.strip().splitlines() or ["no message"])[-1]
        console.print(text(_printable(f"failed: {where}: {first}"), style="red"))


def _terminal_table(comparison: Comparison, chosen: list[tuple[Column, str]]) -> Any:
    """Return the table of some columns, each at a reading."""
    rich_table = require("rich.table", extra="bench")
    rich_box = require("rich.box", extra="bench")
    text = require("rich.text", extra="bench").Text
    count = len(comparison.seeds)
    title = f"{comparison.title}: mean \u00b1 sample std over {count} seed{'s' * (count != 1)}"
    table = rich_table.Table(
        title=text(_printable(title), style="bold"), box=rich_box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False
    )
    marked = any(" @ " in row.method or " # " in row.method for row in comparison.rows)  # their end tells them apart
    if marked:
        table.add_column("method", overflow="fold", max_width=32, min_width=20)
    else:
        table.add_column("method", overflow="ellipsis", no_wrap=True, max_width=22, min_width=12)
    for column, name in chosen:
        place = "\nequal time" if name == "equal_time" else ""
        unit = f"\n{column.unit}" if column.unit and not place else ""
        group = f"{column.group}\n" if column.group in {task.name for task in comparison.tasks} else ""
        label = (
            column.label if group else "\n".join(textwrap.wrap(column.label, 8, break_long_words=False))
        )  # narrow, so that more columns fit
        table.add_column(text(_printable(f"{group}{label} {column.arrow}{unit}{place}")), justify="right", no_wrap=True)
    decimals = [column.decimals(comparison) for column, _ in chosen]
    best = [column.best(comparison, name) for column, name in chosen]
    for row in comparison.rows:
        cells = [
            text(_printable(_terminal_cell(row, column, name, places)), style="bold" if row.method in top else "")
            for (column, name), places, top in zip(chosen, decimals, best, strict=True)
        ]
        failed = f" ({len(row.errors)} failed)" if row.errors else ""
        style = "dim" if row.method == SINGLE_TASK else "red" if row.final is None else ""
        table.add_row(text(_printable(row.method) + failed, style=style), *cells)
    return table


def _terminal_cell(row: MethodRow, column: Column, name: str, decimals: int) -> str:
    """Return what a cell says; times and memory without their spread, which the report has."""
    spread = column.of(row, name)
    if spread is not None and column.group == COST:
        spread = Spread((spread.mean,))
    written = format_spread(spread, decimals, signed=column.signed)
    reading = get_reading(row, name)
    if column.remark is not None and reading is not None and written != MISSING:
        written += f" {column.remark(reading)}"
    return written


def _printable(text: str) -> str:
    """Return text without control characters, which could steer the terminal."""
    return "".join(character if character.isprintable() or character == "\n" else "\ufffd" for character in text)
