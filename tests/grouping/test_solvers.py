"""Solvers against each other, against the oracles, and on bad input."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

import counterpoint as cp
from counterpoint.errors import NonFiniteError, OptionError, SolverError
from counterpoint.grouping import AffinityMatrix


def oracle(name):
    path = Path(os.environ.get("COUNTERPOINT_ORACLES", "")) / "relations_oracles.json"
    if not path.is_file():
        pytest.skip("COUNTERPOINT_ORACLES does not name a folder with relations_oracles.json")
    return json.loads(path.read_text())[name]


def matrix(values, **options):
    values = np.array(values, dtype=float)
    return AffinityMatrix(tuple(f"t{at}" for at in range(len(values))), values, directed=True, **options)


def sets(grouping):
    return {tuple(int(task[1:]) for task in group) for group in grouping.groups}


@pytest.mark.parametrize("solver", ["exhaustive", "branch_and_bound"])
@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("num_groups", [1, 2, 3])
def test_the_published_table_of_taskonomy(solver, overlap, num_groups):
    found = oracle("tag_grouping_taskonomy")
    wanted = found["solutions" if overlap else "partition_only"][str(num_groups)]
    grouping = cp.grouping.create(solver, overlap=overlap).solve(matrix(found["Z_source_row_target_col"]), num_groups)
    assert grouping.score == pytest.approx(wanted["value"], abs=1e-9)
    assert sets(grouping) == {tuple(sorted(group)) for group in wanted["groups"]}


@pytest.mark.parametrize("solver", ["exhaustive", "branch_and_bound"])
@pytest.mark.parametrize(("rule", "singleton"), [("minus1e6", None), ("zero", 0.0)])
@pytest.mark.parametrize("num_groups", [1, 2, 3])
def test_the_singleton_rule_changes_the_optimum(solver, rule, singleton, num_groups):
    found = oracle("tag_grouping_synthetic")
    value, groups = found[f"solutions_singleton_{rule}"][str(num_groups)]
    given = matrix(found["Z_source_row_target_col"])
    grouping = cp.grouping.create(solver, singleton=singleton).solve(given, num_groups)
    assert grouping.score == pytest.approx(value, abs=1e-9)
    assert sets(grouping) == {tuple(group) for group in groups}


def test_branch_and_bound_equals_all_families_on_a_thousand_problems():
    draw = np.random.default_rng(0)
    for problem in range(1000):
        given = matrix(draw.normal(size=(6, 6)))
        options = {"overlap": problem % 4 < 3, "singleton": 0.0 if problem % 2 else None}
        num_groups = 3 if problem % 20 == 0 else 2
        fast = cp.grouping.create("branch_and_bound", **options).solve(given, num_groups)
        plain = cp.grouping.create("exhaustive", **options).solve(given, num_groups)
        assert fast.score == pytest.approx(plain.score, abs=1e-9), problem
        assert len(fast.groups) <= num_groups


@pytest.mark.parametrize("solver", ["exhaustive", "branch_and_bound"])
def test_limits_and_groups_of_the_toy(solver):
    found = oracle("wang_toy")
    given = matrix(found["S_source_row_target_col"])
    for key, (value, groups) in found["best"].items():
        num_groups, size = (int(part.split("=")[1]) for part in key.split(","))
        made = cp.grouping.create(solver, overlap=False, singleton=0.0, max_size=size).solve(given, num_groups)
        assert made.score * 4 == pytest.approx(value, abs=1e-9)
        assert sets(made) == {tuple(group) for group in groups}


@pytest.mark.parametrize("solver", ["exhaustive", "branch_and_bound"])
def test_what_cannot_be_solved_says_why(solver):
    create = cp.grouping.create
    holes = np.zeros((3, 3))
    holes[0, 2] = np.nan
    with pytest.raises(NonFiniteError, match="t0 -> t2 was never measured"):
        create(solver).solve(matrix(holes), 2)
    with pytest.raises(SolverError, match="max_size=1"):
        create(solver, max_size=1).solve(matrix(np.zeros((3, 3))), 3)
    with pytest.raises(OptionError, match="num_groups"):
        create(solver).solve(matrix(np.zeros((3, 3))), 0)
    with pytest.raises(OptionError, match="use "):
        create(solver).solve(matrix(np.zeros((15, 15))), 2)


def test_more_groups_than_tasks_is_as_many_as_help():
    given = matrix(-np.ones((3, 3)))
    assert len(cp.grouping.create("branch_and_bound", singleton=0.0).solve(given, 9).groups) == 3


def test_lower_is_better_is_turned():
    values = [[0, 1, 5], [1, 0, 5], [5, 5, 0]]
    found = cp.grouping.create("branch_and_bound", overlap=False, singleton=-2.0).solve(
        matrix(values, higher_is_better=False), 2
    )
    assert sets(found) == {(0, 1), (2,)}


def test_one_task_alone():
    assert sets(cp.grouping.create("branch_and_bound").solve(matrix([[3.0]]), 4)) == {(0,)}
