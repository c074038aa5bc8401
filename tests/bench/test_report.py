"""The HTML report holds the numbers of the records, escapes hostile text and needs no network."""

import dataclasses
import html.parser
import json
import math
import re
import statistics
import subprocess
import sys

import plotly.graph_objects
import pytest

from counterpoint.bench import page as page_module
from counterpoint.bench.curves import cosine_section, curves_section
from counterpoint.bench.figures import change_section, cost_section, delta_section
from counterpoint.bench.palette import COLORS, method_styles
from counterpoint.bench.readings import find_row
from counterpoint.bench.report import write_report

SECTIONS = (delta_section, curves_section, cosine_section, cost_section, change_section)


class Page(html.parser.HTMLParser):
    """Collects tags, the cells of the tables, scripts and all text outside of scripts."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.scripts, self.bodies, self.row = [], [], [], {}, None
        self.inside = self.body = None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append((tag, attrs))
        self.inside = tag if tag in ("script", "style") else None
        if tag == "script":
            self.scripts.append((attrs, []))
        if tag == "tbody":
            self.body = attrs.get("data-reading")
            self.bodies.setdefault(self.body, [])
        if tag == "tr" and self.body:
            self.bodies[self.body].append([])
        if "data-sort" in attrs:
            self.bodies[self.body][-1].append((attrs["data-sort"], []))
            self.row = self.bodies[self.body][-1][-1]

    def handle_endtag(self, tag):
        self.inside = None
        if tag in ("td", "th"):
            self.row = None

    def handle_data(self, data):
        if self.inside == "script":
            self.scripts[-1][1].append(data)
        elif self.inside is None:
            self.text.append(data)
            if self.row is not None:
                self.row[1].append(data)


@pytest.fixture(scope="module")
def source(comparison, tmp_path_factory):
    return write_report(comparison, tmp_path_factory.mktemp("report") / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(source):
    return Page(source)


def test_table_has_the_numbers_of_the_records(comparison, page):
    by_method = {row.method: row for row in comparison.rows}
    for name in ("final", "equal_time"):
        lines = page.bodies[name]
        assert {line[0][0] for line in lines} == set(by_method)
        for line in lines:
            row = by_method[line[0][0]]
            reading = getattr(row, name)
            if reading is None:
                assert line[1][0] == ""
                assert "".join(line[1][1]) == "\u2013"
                continue
            spreads = [reading.delta["tasks"], reading.delta["metrics"], reading.against_equal, reading.worst, None]
            spreads += [
                reading.metrics[task.name][metric] for task in comparison.tasks for metric in task.higher_is_better
            ]
            for (sort, text), spread in zip(line[1:], spreads, strict=False):
                if spread is None:
                    continue
                values = [value for value in spread.values if not math.isnan(value)]
                assert float(sort) == statistics.fmean(values)
                mean, std = (part.strip() for part in text[0].replace("\u2212", "-").split("\u00b1"))
                half = 0.5001 * 10 ** -len(mean.partition(".")[2])
                assert float(mean) == pytest.approx(statistics.fmean(values), abs=half)
                assert float(std) == pytest.approx(statistics.stdev(values), abs=half)


@pytest.mark.parametrize("reading", ["final", "equal_time"])
def test_lines_are_best_first_and_failures_last(page, reading):
    sorts = [line[1][0] for line in page.bodies[reading]]
    values = [float(sort) for sort in sorts if sort]
    assert values == sorted(values, reverse=True)
    assert sorts[-1] == ""


def test_nothing_is_loaded_and_only_our_scripts_run(page):
    assert not [attrs for tag, attrs in page.tags if attrs.get("src")]
    links = [attrs["href"] for _, attrs in page.tags if attrs.get("href")]
    assert all(link.startswith(("#", "data:")) for link in links)
    assert len(page.scripts) == 3
    policy = next(attrs["content"] for tag, attrs in page.tags if attrs.get("http-equiv"))
    assert "default-src 'none'" in policy
    assert policy.count("'sha256-") == 2


def test_hostile_text_is_text(comparison, page, source, synthetic):
    assert source.count("window.boom = 1</script>") == 0
    assert not [attrs for tag, attrs in page.tags if tag == "img" or "onerror" in attrs]
    text = "".join(page.text)
    for hostile in (
        comparison.title,
        synthetic.HOSTILE,
        synthetic.HOSTILE_ERROR,
        "</pre><script>window.boom = 2</script>",
    ):
        assert hostile in text


def test_hostile_units_do_not_break_out_of_the_payload(comparison, tmp_path):
    first = dataclasses.replace(comparison.tasks[0], units={"miou": "</script><img src=x>"})
    made = dataclasses.replace(comparison, tasks=(first, *comparison.tasks[1:]))
    page = Page(write_report(made, tmp_path / "report.html").read_text(encoding="utf-8"))
    assert len(page.scripts) == 3
    assert not [attrs for tag, attrs in page.tags if tag == "img"]
    payload = json.loads("".join(page.scripts[0][1]))
    assert any("</script><img src=x>" in figure["title"] for figure in payload["figures"])


def test_payload_is_json_without_nan(page):
    attrs, text = page.scripts[0]
    assert attrs["type"] == "application/json"

    def refuse(constant):
        raise AssertionError(constant)

    payload = json.loads("".join(text), parse_constant=refuse)
    assert len({figure["key"] for figure in payload["figures"]}) == len(payload["figures"]) == 1 + 3 + 3 + 1 + 3
    ids = {attrs.get("id") for _, attrs in page.tags}
    assert all(f"figure-{figure['key']}" in ids for figure in payload["figures"])


def test_ids_are_unique_and_labels_are_there(page):
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert ("html", {"lang": "en"}) in page.tags
    assert any(tag == "caption" for tag, _ in page.tags)
    assert all(attrs.get("aria-label") for _, attrs in page.tags if attrs.get("class") == "plot")


@pytest.mark.parametrize("section", SECTIONS)
def test_figures_are_valid_plotly(comparison, section):
    for figure in section(comparison).figures:
        for variant in figure.variants.values() or ({"data": [], "layout": {}},):
            extra = variant["data"] or [{}] * len(figure.data)
            data = [{**trace, **own} for trace, own in zip(figure.data, extra, strict=True)]
            plotly.graph_objects.Figure(
                data=data, layout={**figure.layout, **variant["layout"]}
            )  # raises on a bad name


def test_delta_figure_shows_every_seed_and_the_mean(comparison):
    figure = delta_section(comparison).figures[0]
    for index, row in enumerate(comparison.rows):
        traces = [trace for trace in figure.data if trace["meta"]["method"] == index]
        shown = {"final": traces[:2], "equal_time": traces[2:]}
        for name, (seeds, mean) in shown.items():
            reading = getattr(row, name)
            values = [] if reading is None else list(reading.delta["tasks"].finite)
            assert seeds["x"] == pytest.approx(values, rel=1e-6)
            assert mean["x"] == pytest.approx([statistics.fmean(values)] if values else [], rel=1e-6)
            assert len(seeds["hovertext"]) == len(values)


def test_curves_average_the_finished_seeds(comparison):
    figure = curves_section(comparison).figures[1]
    index = next(i for i, row in enumerate(comparison.rows) if row.method == "gradvac")
    runs = [run for run in comparison.runs if run.method == "gradvac"]
    seeds, mean = (trace for trace in figure.data if trace["meta"]["method"] == index)
    done = [run for run in runs if run.status == "done"]
    assert len(done) == 2
    for place in range(20):
        entries = [run.history[place] for run in done]
        assert mean["y"][place] == pytest.approx(
            statistics.fmean(e["val"]["depth"]["abs_err"] for e in entries), rel=1e-6
        )
        position = figure.data.index(mean)
        seconds = figure.variants["seconds"]["data"][position]["x"][place]
        assert seconds == pytest.approx(statistics.fmean(e["train_seconds"] for e in entries), rel=1e-6)
    assert mean["x"] == list(range(1, 21))
    assert sum(value is not None for value in seeds["y"]) == 20 + 20 + 4  # the failed seed is there as far as it got
    assert "seed 1 (failed)" in seeds["customdata"]


def test_single_task_curves_are_those_of_the_own_network(comparison):
    for task, figure in zip(comparison.tasks, curves_section(comparison).figures, strict=True):
        runs = [run for run in comparison.runs if run.method == "single_task" and run.task == task.name]
        metric = next(iter(task.higher_is_better))
        expected = statistics.fmean(run.history[-1]["val"][task.name][metric] for run in runs)
        assert figure.data[1]["y"][-1] == pytest.approx(expected, rel=1e-6)


def test_cosines_are_pairs_or_mean_and_minimum(comparison):
    section = cosine_section(comparison)
    assert [figure.title for figure in section.figures] == ["seg and depth", "seg and normals", "depth and normals"]
    extra = tuple(
        dataclasses.replace(
            run,
            conflicts=tuple(
                {**entry, "cosine": {**entry["cosine"], "a|b": -0.9 if i % 2 else math.nan}}
                for i, entry in enumerate(run.conflicts)
            ),
        )
        for run in comparison.runs
    )
    many = dataclasses.replace(comparison, runs=extra)
    mean, low = cosine_section(many).figures
    assert (mean.title, low.title) == ("mean over 4 pairs", "minimum over 4 pairs")
    runs = [run for run in many.runs if run.method == comparison.rows[1].method]
    for place in (0, 1):
        found = [[v for v in run.conflicts[place]["cosine"].values() if not math.isnan(v)] for run in runs]
        trace = next(trace for trace in mean.data if trace["meta"] == {**trace["meta"], "method": 1, "kind": "mean"})
        assert trace["y"][place] == pytest.approx(statistics.fmean(map(statistics.fmean, found)), rel=1e-6)
        trace = next(trace for trace in low.data if trace["meta"] == {**trace["meta"], "method": 1, "kind": "mean"})
        assert trace["y"][place] == pytest.approx(statistics.fmean(map(min, found)), rel=1e-6)
    none = dataclasses.replace(
        comparison, runs=tuple(dataclasses.replace(run, conflicts=()) for run in comparison.runs)
    )
    assert cosine_section(none).figures == []


def test_cost_is_relative_to_equal_weighting_of_the_same_seed(comparison):
    equal = next(row for row in comparison.rows if row.method == "equal")
    for trace in cost_section(comparison).figures[0].data:
        row = comparison.rows[trace["meta"]["method"]]
        pairs = zip(row.train_seconds.values, equal.train_seconds.values, strict=True)
        ratios = [own / base for own, base in pairs if not math.isnan(own)]
        assert trace["x"][0] == pytest.approx(statistics.fmean(ratios), rel=1e-6)
        assert trace["error_x"]["array"][0] == pytest.approx(statistics.stdev(ratios), rel=1e-5)
        assert trace["y"][0] == pytest.approx(row.final.delta["tasks"].mean, rel=1e-6)


def test_what_is_said_of_the_reference_is_true(comparison, tmp_path):
    """Changes are against the mean of the single-task networks, which are not read at equal wall-clock at all."""
    own = find_row(comparison, "single_task")
    rows = (dataclasses.replace(own, equal_time=None), *(row for row in comparison.rows if row is not own))
    text = write_report(dataclasses.replace(comparison, rows=rows), tmp_path / "a.html").read_text(encoding="utf-8")
    line = re.search(r'data-sort="single_task".*?</th>', text.split('tbody data-reading="equal_time"')[1], re.DOTALL)[0]
    assert "no epoch had ended" not in line
    assert "the reference, not read here" in line
    change = text[text.index("Which tasks gain and which pay") :]
    assert "against the mean over seeds of its single-task networks" in change
    assert "single-task network with the same seed" not in text


def test_hidden_methods_are_explained(comparison, tmp_path):
    hint = "At first, the baselines and the best are shown."
    assert hint in write_report(comparison, tmp_path / "many.html").read_text(encoding="utf-8")
    few = dataclasses.replace(comparison, rows=comparison.rows[:4])
    assert hint not in write_report(few, tmp_path / "few.html").read_text(encoding="utf-8")


def test_report_survives_the_loss_of_nearly_everything(comparison, tmp_path):
    bare = dataclasses.replace(comparison, runs=(), config={}, environment={})
    for rows in ((), comparison.rows[:1], tuple(row for row in comparison.rows if row.method == "broken")):
        write_report(dataclasses.replace(bare, rows=rows), tmp_path / "bare.html")
    one_seed = dataclasses.replace(bare, seeds=(), rows=())
    text = write_report(one_seed, tmp_path / "bare.html").read_text(encoding="utf-8")
    assert "no multi-task method has a result" in text


# Machado, Oliveira, Fernandes, "A physiologically-based model for simulation of color vision deficiency", 2009
DEFICIENCY = {
    "none": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "protan": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "deutan": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
}


def lab(color, deficiency):
    """Return CIE L*a*b* of a colour as somebody with a deficiency sees it."""
    srgb = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in srgb]
    seen = [min(max(sum(m * c for m, c in zip(row, linear, strict=True)), 0), 1) for row in DEFICIENCY[deficiency]]
    to_xyz = ((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505))
    xyz = [
        sum(m * c for m, c in zip(row, seen, strict=True)) / w
        for row, w in zip(to_xyz, (0.9505, 1, 1.089), strict=True)
    ]
    f = [t ** (1 / 3) if t > 0.008856 else 7.787 * t + 16 / 116 for t in xyz]
    return (116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2]))


@pytest.mark.parametrize("deficiency", DEFICIENCY)
def test_colors_are_told_apart(deficiency):
    seen = [lab(color, deficiency) for color in COLORS]
    closest = min(math.dist(a, b) for i, a in enumerate(seen) for b in seen[i + 1 :])
    assert closest > 9  # about four just noticeable differences; the symbols differ as well


def test_forty_methods_look_different(comparison):
    row = comparison.rows[-1]
    rows = tuple(dataclasses.replace(row, method=f"m{i}") for i in range(40))
    styles = method_styles(dataclasses.replace(comparison, rows=rows))
    assert len({(style.color, style.symbol) for style in styles}) == 40


def test_bench_report_imports_no_plotly():
    code = "import sys, counterpoint.bench.report; print({'plotly', 'jinja2', 'rich'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"


def test_inlined_script_cannot_end_its_element():
    inlined = page_module.inline_script("a = '</script><!-- x';\r\n")
    assert not re.search(r"</script|<!--|\r", inlined)
