"""The CSV, LaTeX and terminal tables hold the numbers of the records, and survive hostile text."""

import csv
import dataclasses
import io
import math
import re
import statistics

import pytest
from rich.console import Console

from counterpoint.bench.results import Spread
from counterpoint.bench.tables import escape_tex, print_table, write_csv, write_tex, write_text
from counterpoint.errors import FileError


def same(text, value):
    return float(text) == value or (math.isnan(float(text)) and math.isnan(value))


@pytest.fixture
def csv_lines(comparison, tmp_path):
    with write_csv(comparison, tmp_path / "table.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_csv_has_every_number_of_the_records(comparison, csv_lines):
    assert [(line["method"], line["reading"]) for line in csv_lines] == [
        (row.method, reading) for row in comparison.rows for reading in ("final", "equal_time")
    ]
    checked = 0
    for line, row in zip(csv_lines, [row for row in comparison.rows for _ in range(2)], strict=True):
        reading = row.final if line["reading"] == "final" else row.equal_time
        spreads = {
            f"cost/{name}": getattr(row, name)
            for name in ("step_ms", "train_seconds", "peak_memory_mb", "num_backward")
        }
        if reading is not None:
            spreads |= {f"delta_m_{name}": spread for name, spread in reading.delta.items()}
            spreads |= {f"change/{task}": spread for task, spread in reading.change.items()}
            spreads |= {name: getattr(reading, name) for name in ("against_equal", "worst", "epochs")}
            spreads |= {f"metric/{t}/{m}": spread for t, own in reading.metrics.items() for m, spread in own.items()}
            assert line["worst_task"] == reading.worst_task
            assert same(line["mean_rank"], reading.mean_rank)
        for column, spread in spreads.items():
            for seed, value in zip(comparison.seeds, spread.values, strict=True):
                assert same(line[f"{column}/seed_{seed}"], value)
            there = [value for value in spread.values if not math.isnan(value)]
            assert same(line[f"{column}/mean"], statistics.fmean(there) if there else math.nan)
            assert same(line[f"{column}/std"], statistics.stdev(there) if len(there) > 1 else math.nan)
            checked += 1
    assert checked > 20 * len(comparison.rows)


def test_csv_keeps_gaps_errors_units_and_costs_last(comparison, csv_lines, synthetic):
    lines = {(line["method"], line["reading"]): line for line in csv_lines}
    assert lines["broken", "final"]["delta_m_tasks/mean"] == "nan"
    assert lines["graddrop", "equal_time"]["num_seeds"] == "0"
    assert lines["gradvac", "final"]["num_seeds"] == "2"
    assert lines["gradvac", "final"]["errors"] == f"seed 1: {synthetic.HOSTILE_ERROR}"
    assert lines["equal", "final"]["metric/normals/mean_angle/unit"] == "°"
    names = list(csv_lines[0])
    first = next(i for i, name in enumerate(names) if name.startswith("cost/"))
    assert all(name.startswith("cost/") for name in names[first:])
    row = next(row for row in comparison.rows if row.method == "cagrad")
    equal = next(row for row in comparison.rows if row.method == "equal")
    ratio = row.train_seconds.values[2] / equal.train_seconds.values[2]
    assert float(lines["cagrad", "final"]["cost/relative_time/seed_7"]) == ratio


def tex_body(text):
    """Return the cells of the rows of the tabular, by panel."""
    panels, rows = {}, None
    for line in text.splitlines():
        if r"\emph{" in line:
            rows = panels.setdefault(re.search(r"\\emph\{(.*?)\}", line)[1], {})
        elif rows is not None and line.endswith(r" \\"):
            cells = [cell.strip() for cell in line.strip().removesuffix(r"\\").split(" & ")]
            rows[cells[0]] = cells[1:]
    return panels


def test_tex_has_structure_numbers_and_the_best_in_bold(comparison, tmp_path):
    text = write_tex(comparison, tmp_path / "table.tex").read_text(encoding="utf-8")
    opened = re.findall(r"\\(begin|end)\{(\w+)\}", text)
    assert opened == [("begin", "table"), ("begin", "tabular"), ("end", "tabular"), ("end", "table")]
    rules = [text.index(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule")]
    assert rules == sorted(rules)
    columns = re.search(r"\\begin\{tabular\}\{(l(r+))\}", text)[1]
    panels = tex_body(text)
    assert list(panels) == ["At the end of training", "At equal wall-clock"]
    for panel, name in (("At the end of training", "final"), ("At equal wall-clock", "equal_time")):
        rows = panels[panel]
        assert len(rows) == len(comparison.rows)
        assert all(len(cells) == len(columns) - 1 for cells in rows.values())
        for column, (task, metric) in enumerate([(t, m) for t in comparison.tasks for m in t.higher_is_better]):
            expected = {}
            for row, cells in zip(comparison.rows, rows.values(), strict=True):
                reading = getattr(row, name)
                if reading is None:
                    assert cells[column] == "--"
                    continue
                spread = reading.metrics[task.name][metric]
                mean, std = re.fullmatch(r"\$(?:\\mathbf\{)?(-?[\d.]+)\}? \\pm ([\d.]+)\$", cells[column]).groups()
                digits = len(mean.partition(".")[2])
                assert float(mean) == pytest.approx(spread.mean, abs=0.5001 * 10**-digits)
                assert float(std) == pytest.approx(spread.std, abs=0.5001 * 10**-digits)
                if row.method != "single_task":
                    expected[row.method] = (round(spread.mean, digits), r"\mathbf" in cells[column])
                else:
                    assert r"\mathbf" not in cells[column]
            best = (max if task.higher_is_better[metric] else min)(mean for mean, _ in expected.values())
            assert all(bold == (mean == best) for mean, bold in expected.values())


def test_tex_caption_states_conventions_and_seeds(comparison, tmp_path):
    text = write_tex(comparison, tmp_path / "table.tex").read_text(encoding="utf-8")
    caption = next(line for line in text.splitlines() if r"\caption" in line)
    assert "3 seeds (0, 1, 7)" in caption
    assert "positive is better" in caption
    assert "negative is better" in caption
    assert "4 of 42 runs failed" in caption
    assert r"pix\_acc (\%) $\uparrow$" in text
    assert r"abs\_err (m) $\downarrow$" in text


def test_tex_escapes_everything_special(comparison, tmp_path):
    assert escape_tex("a_b & 50% #1 ${x}^~\\\n<y>") == (
        r"a\_b \& 50\% \#1 \$\{x\}\textasciicircum{}\textasciitilde{}\textbackslash{} \textless{}y\textgreater{}"
    )
    text = write_tex(comparison, tmp_path / "table.tex").read_text(encoding="utf-8")
    body = text.split("\n", 1)[1]
    assert not re.search(r"(?<!\\)[%#]", body)  # a bare % would comment out the rest of the line
    row = next(line for line in body.splitlines() if "img src" in line)
    assert row.count(" & ") == next(line for line in body.splitlines() if line.strip().startswith("cagrad")).count(
        " & "
    )
    unescaped = re.sub(r"\\.", "", body)
    assert unescaped.count("{") == unescaped.count("}")
    assert unescaped.count("$") % 2 == 0


def test_single_seed_has_no_spread(comparison, tmp_path):
    def cut(value):
        if isinstance(value, Spread):
            return Spread(value.values[:1])
        if dataclasses.is_dataclass(value):
            return dataclasses.replace(
                value, **{f.name: cut(getattr(value, f.name)) for f in dataclasses.fields(value)}
            )
        return {key: cut(own) for key, own in value.items()} if isinstance(value, dict) else value

    rows = tuple(dataclasses.replace(cut(row), errors={}) for row in comparison.rows if row.method != "broken")
    one = dataclasses.replace(comparison, seeds=(0,), rows=rows, runs=tuple(r for r in comparison.runs if r.seed == 0))
    text = write_tex(one, tmp_path / "table.tex").read_text(encoding="utf-8")
    assert r"\pm" not in text
    assert "One seed (0)" in text
    console = Console(width=200, file=io.StringIO())
    print_table(one, console)
    assert "±" not in console.file.getvalue().split("At the end of training")[0].split("seed", 1)[1]


@pytest.mark.parametrize("width", [80, 120, 260])
def test_terminal_table_fits_and_keeps_the_essential(synthetic, width):
    made = synthetic.make_comparison(hostile=False)
    console = Console(width=width, file=io.StringIO())
    print_table(made, console)
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert "\u2026" not in console.file.getvalue()  # nothing was cut
    for row in made.rows:
        line = next(line for line in lines if line.split()[:1] == [row.method])
        if row.final is not None:
            assert f"{row.final.delta['tasks'].mean:+.2f}".replace("-", "\u2212").replace("+0.00", "0.00") in line
    header = "\n".join(lines[:6])
    assert "equal time" in header
    assert ("Worst" in header) == (width > 80)
    assert ("miou" in header) == ("Memory" in header) == (width > 200)


def test_terminal_table_shows_the_metrics_of_every_task_or_of_none(synthetic):
    made = synthetic.make_comparison(hostile=False)
    seen = set()
    for width in range(80, 260, 10):
        console = Console(width=width, file=io.StringIO())
        print_table(made, console)
        header = "\n".join(console.file.getvalue().splitlines()[:6])
        seen.add(tuple(metric in header for metric in ("miou", "abs_err", "within_11")))
    assert seen == {(False,) * 3, (True,) * 3}


def test_terminal_table_shows_hostile_text_literally(comparison):
    console = Console(width=400, file=io.StringIO(), force_terminal=False)
    print_table(comparison, console)
    out = console.file.getvalue()
    assert "\x1b" not in out
    assert '</script><script>window.boom = 1</script> & "quotes"' in out
    markup = dataclasses.replace(comparison, title="[red]not markup[/red]")
    console = Console(width=400, file=io.StringIO())
    print_table(markup, console)
    assert "[red]not markup[/red]" in console.file.getvalue()


def test_files_are_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "table.csv"
    path.write_text("old")

    def fail(*_args):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.replace", fail)
        with pytest.raises(FileError, match=r"table\.csv: cannot be written \(disk full\); choose a folder"):
            write_text(path, "new")
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["table.csv"]
    write_text(path, "new")
    assert path.read_text() == "new"
    with pytest.raises(FileError, match="cannot be written"):
        write_text(tmp_path / "missing" / "table.csv", "new")
