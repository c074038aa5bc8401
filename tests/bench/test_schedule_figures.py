"""The section on groups of tasks: what it shows is what the runs recorded."""

import dataclasses

import numpy as np
import pytest

from counterpoint.bench.report import render_report
from counterpoint.bench.schedule_figures import schedule_sections

AFFINITY = [[0.5, 0.1, -0.2], [0.2, 0.4, 0.0], [0.1, -0.1, 0.0]]


@pytest.fixture
def grouped(comparison):
    """The made-up comparison, in which every run of one method recorded groups."""
    method = comparison.rows[2].method
    names = [task.name for task in comparison.tasks]
    size = len(names)
    matrix = np.resize(np.array(AFFINITY), (size, size)) + np.eye(size)

    def records(run):
        if run.method != method:
            return ()
        return tuple(
            {
                "epoch": epoch,
                "step": 10 * epoch,
                "groups": [names],
                "num_groups": float(count),
                "affinity": matrix.tolist(),
            }
            for epoch, count in ((1, 3), (2, 2))
        )

    runs = tuple(dataclasses.replace(run, schedules=records(run)) for run in comparison.runs)
    return dataclasses.replace(comparison, runs=runs), method, matrix


def test_nothing_without_records(comparison):
    assert schedule_sections(comparison) == []


def test_number_of_groups_and_map(grouped):
    comparison, method, matrix = grouped
    (section,) = schedule_sections(comparison)
    count, heat = section.figures
    mean = next(trace for trace in count.data if trace["meta"]["kind"] == "mean")
    assert mean["y"] == [3.0, 2.0]
    assert mean["x"] == [1.0, 2.0]
    assert method in heat.title
    relative = matrix / matrix.diagonal()
    shown = heat.data[0]["z"]
    for i, row in enumerate(shown):
        for j, value in enumerate(row):
            assert (value is None) if i == j else value == pytest.approx(relative[i, j])
    assert comparison.rows[heat.data[0]["meta"]["method"]].method == method


def test_it_is_in_the_report(grouped, comparison):
    assert "Groups of tasks over training" in render_report(grouped[0])
    assert "Groups of tasks over training" not in render_report(comparison)
