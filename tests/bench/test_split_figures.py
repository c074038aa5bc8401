"""The section of the report on split layers, against counts by hand."""

import dataclasses

import pytest

from counterpoint.bench.palette import bin_colors
from counterpoint.bench.report import render_report
from counterpoint.bench.results import Spread
from counterpoint.bench.split_figures import conflict_shares, split_sections
from counterpoint.diagnostics import PAPER_BINS

COSINES = (0.2, 0.0, -0.01, -0.015, -0.02, -0.5)  # an edge belongs to the bin above it
SHARES = (2 / 6, 1 / 6, 2 / 6, 0.0, 1 / 6)


@pytest.fixture
def split(comparison):
    """The made-up comparison, in which one method ran on a split network, half as large again."""
    row = comparison.rows[2]
    name = f"{row.method} [recon]"
    base = dataclasses.replace(row, num_parameters=Spread((100.0, 100.0)))
    own = dataclasses.replace(row, method=name, num_parameters=Spread((150.0, 150.0)))
    runs = [run for run in comparison.runs if run.method == row.method]
    seeds = {run.seed for run in runs}
    records = tuple({"step": 1, "epoch": 0.1, "cosine": {"a|b": cosine}} for cosine in COSINES)
    new = [dataclasses.replace(run, method=name, conflicts=records, status="done") for run in runs]
    rows = (*comparison.rows[:2], base, own, *comparison.rows[3:])
    return dataclasses.replace(comparison, rows=rows, runs=(*comparison.runs, *new)), row.method, name, len(seeds)


def test_nothing_where_no_network_was_split(comparison):
    assert split_sections(comparison) == []


def test_shares_are_those_counted_by_hand(split):
    comparison, _, name, _ = split
    assert conflict_shares(comparison, name, PAPER_BINS["mnist"]) == pytest.approx(SHARES)


def test_each_method_has_its_bins_and_its_size(split):
    comparison, plain, name, _ = split
    (section,) = split_sections(comparison)
    conflict, size = section.figures
    index = [row.method for row in comparison.rows].index(name)
    bars = [trace for trace in conflict.data if trace["meta"]["method"] == index]
    assert [trace["x"][0] for trace in bars] == pytest.approx([100 * share for share in SHARES])
    assert len({trace["marker"]["color"] for trace in bars}) == len(SHARES)
    ticks = conflict.layout["yaxis"]["ticktext"]
    assert ticks.index(name) == ticks.index(plain) + 1  # beside the same method on the network as it was
    added = {comparison.rows[trace["meta"]["method"]].method: trace["x"][0] for trace in size.data}
    assert added[name] == pytest.approx(50.0)
    assert added[plain] == pytest.approx(0.0)


def test_methods_without_a_split_network_are_not_beside_it(split):
    comparison, plain, name, _ = split
    (section,) = split_sections(comparison)
    for figure in section.figures:
        assert figure.layout["yaxis"]["ticktext"] == [plain, name]
    assert len(comparison.rows) > 3


def test_it_is_in_the_report(split, comparison):
    assert "What splitting did" in render_report(split[0])
    assert "What splitting did" not in render_report(comparison)


@pytest.mark.parametrize("count", [2, 3, 5, 6, 7, 12])
def test_bins_have_colours_of_their_own(count):
    colors = bin_colors(count)
    assert len(colors) == count
    assert len(set(colors)) == min(count, 7)
