"""Solvers against each other, against the oracles, and on bad input."""

import itertools
import json
import os
from pathlib import Path

import numpy as np
import pytest

import counterpoint as cp
from counterpoint.errors import FileError, NonFiniteError, OptionError, SolverError
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


@pytest.mark.parametrize(
    ("rule", "options"),
    [
        ("cover", {"assignment": "cover"}),
        ("partition", {}),
        ("cover_size_le_2", {"assignment": "cover", "max_size": 2}),
    ],
)
def test_the_program_of_wang(rule, options):
    given = matrix(oracle("wang_toy")["S_source_row_target_col"])
    for num_groups, (value, groups) in oracle("wang_program")[rule].items():
        made = cp.grouping.create("integer_program", **options).solve(given, int(num_groups))
        assert made.score == pytest.approx(value, abs=1e-9)
        assert sets(made) == {tuple(group) for group in groups}


def test_the_program_with_loads():
    given = matrix(oracle("wang_toy")["S_source_row_target_col"])
    found = oracle("wang_program")["partition_load"]
    made = cp.grouping.create("integer_program", load=found["load"], max_load=found["cap"]).solve(given, 2)
    assert made.score == pytest.approx(found["n2"][0], abs=1e-9)
    assert sets(made) == {tuple(group) for group in found["n2"][1]}
    with pytest.raises(SolverError, match="load 3 of t0"):
        cp.grouping.create("integer_program", load=found["load"], max_load=2).solve(given, 2)
    with pytest.raises(SolverError, match="max_load=3"):
        cp.grouping.create("integer_program", load=found["load"], max_load=3).solve(given, 2)
    with pytest.raises(SolverError, match="there are 15 groups"):
        cp.grouping.create("integer_program", assignment="cover").solve(given, 16)
    with pytest.raises(SolverError, match="cannot be parted into 5"):
        cp.grouping.create("integer_program").solve(given, 5)


def test_the_cover_equals_all_choices_of_groups():
    draw = np.random.default_rng(1)
    for num_groups in (1, 2, 3):
        values = draw.normal(size=(4, 4))
        made = cp.grouping.create("integer_program", assignment="cover", use_diagonal=True).solve(
            matrix(values), num_groups
        )
        groups = [g for size in range(1, 5) for g in itertools.combinations(range(4), size)]
        best = max(
            sum(values[np.ix_(g, g)].sum() / len(g) for g in family)
            for family in itertools.combinations(groups, num_groups)
            if set().union(*family) == set(range(4))
        )
        assert made.score == pytest.approx(best)
        assert len(made.groups) == num_groups


@pytest.mark.parametrize("assignment", ["cover", "partition"])
def test_best_per_task_is_the_rule_of_tag(assignment):
    given = matrix(np.random.default_rng(2).normal(size=(6, 6)))
    made = cp.grouping.create("integer_program", assignment=assignment, score="best_per_task").solve(given, 3)
    tag = cp.grouping.create("exhaustive", overlap=assignment == "cover", singleton=0.0).solve(given, 3)
    assert made.score == pytest.approx(6 * tag.score)


def test_higher_order_approximation_and_budgeted_selection():
    found = oracle("hoa_standley")
    pairs = {tuple(key.split("-")): losses for key, losses in found["pair"].items()}
    networks = cp.grouping.higher_order(found["single"], pairs)
    by_group = {"-".join(network.losses): network.losses for network in networks}
    for group, losses in {**found["hoa_triples_quad"], **found["pair"]}.items():
        assert by_group[group] == pytest.approx(losses, abs=1e-9)
    half = [cp.grouping.Candidate({task: 1.1 * loss}, 0.5) for task, loss in found["single"].items()]
    for table, pool in (("best_full_size", networks), ("best_with_half_size_singles", [*networks, *half])):
        for budget, (total, chosen) in found[table].items():
            made = cp.grouping.select_networks(list("0123"), pool, float(budget))
            assert made.grouping.score == pytest.approx(total, abs=1e-9)
            assert sorted(map(list, made.grouping.groups)) == sorted([str(t) for t in group] for group, _ in chosen)
            assert made.cost == sum(cost for _, cost in chosen)


def test_selection_equals_all_choices():
    draw = np.random.default_rng(3)
    tasks = list("abcd")
    for _ in range(20):
        pool = []
        for _ in range(8):
            inside = draw.choice(tasks, size=draw.integers(1, 5), replace=False)
            pool.append(
                cp.grouping.Candidate({t: float(draw.random()) for t in map(str, inside)}, float(draw.choice([0.5, 1])))
            )
        pool.append(cp.grouping.Candidate(dict.fromkeys(tasks, 2.0)))
        plain = min(
            sum(min(c.losses.get(t, np.inf) for c in family) for t in tasks)
            for size in range(1, 5)
            for family in itertools.combinations(pool, size)
            if sum(c.cost for c in family) <= 2 and len({frozenset(c.losses) for c in family}) == size
        )
        made = cp.grouping.select_networks(tasks, pool, 2.0)
        assert made.grouping.score == pytest.approx(plain)
        assert made.cost <= 2


def test_impossible_budgets_name_the_tasks():
    pool = [cp.grouping.Candidate({"a": 1.0}), cp.grouping.Candidate({"b": 1.0}, 3.0)]
    with pytest.raises(SolverError, match="within the budget 2 serves b"):
        cp.grouping.select_networks(["a", "b"], pool, 2)
    with pytest.raises(SolverError, match="no choice within the budget 3"):
        cp.grouping.select_networks(["a", "b"], pool, 3)
    with pytest.raises(OptionError, match="pair b, c"):
        cp.grouping.higher_order(
            dict.fromkeys("abc", 1.0), {("a", "b"): {"a": 1, "b": 1}, ("a", "c"): {"a": 1, "c": 1}}
        )


def test_average_linkage_of_the_oracle():
    given = AffinityMatrix(
        tuple(f"t{at}" for at in range(5)), np.array(oracle("cilicia_split")["corr"]), directed=False
    )
    made = cp.grouping.create("agglomerative").solve(given, 2)
    assert sets(made) == {(0, 1, 2), (3, 4)}
    with pytest.raises(OptionError, match="symmetric"):
        cp.grouping.create("agglomerative").solve(matrix(np.zeros((3, 3))), 2)
    with pytest.raises(SolverError, match="into 6"):
        cp.grouping.create("agglomerative").solve(given, 6)


def test_predicted_gains_never_fall_with_more_networks():
    gains = cp.grouping.predicted_gains(matrix(np.random.default_rng(4).normal(size=(5, 5))), max_groups=9)
    totals = [gain.total for gain in gains]
    assert len(totals) == 5
    assert totals == sorted(totals)
    assert gains[0].over_joint == 0
    assert gains[-1].total == pytest.approx(sum(gains[-1].tasks.values()) / 5)


def test_matrix_and_grouping_come_back_from_their_files(tmp_path):
    values = np.array([[0, np.nan], [0.1, 0]])
    matrix(values, source="s").save(tmp_path / "m.json")
    np.testing.assert_array_equal(AffinityMatrix.load(tmp_path / "m.json").values, values)
    made = cp.grouping.create("branch_and_bound").solve(matrix(np.ones((3, 3))), 2)
    made.save(tmp_path / "g.json")
    assert cp.grouping.Grouping.load(tmp_path / "g.json") == made
    with pytest.raises(FileError, match=r"g\.json: damaged, or no AffinityMatrix .*'groups'"):
        AffinityMatrix.load(tmp_path / "g.json")
    by_hand = {"format": 1, "tasks": ["a", "b"], "values": [[0, 1], [1, 0]], "directed": False}
    (tmp_path / "m.json").write_text(json.dumps(by_hand))
    assert AffinityMatrix.load(tmp_path / "m.json").higher_is_better
    (tmp_path / "m.json").write_text(json.dumps(by_hand | {"values": [[0, "x"], [1, 0]]}))
    with pytest.raises(FileError, match="values must be rows of numbers or null"):
        AffinityMatrix.load(tmp_path / "m.json")
    del by_hand["values"]
    (tmp_path / "m.json").write_text(json.dumps(by_hand))
    with pytest.raises(FileError, match="must have tasks, values, directed; missing: values"):
        AffinityMatrix.load(tmp_path / "m.json")
    (tmp_path / "g.json").write_text('{"format": 1, "tasks": ["a"], "groups": [["a"]], "serves": [0]}')
    assert np.isnan(cp.grouping.Grouping.load(tmp_path / "g.json").score)
    with pytest.raises(OptionError, match="b is in no group"):
        cp.grouping.Grouping(("a", "b"), (("a",),), (0, 0))
    with pytest.raises(LookupError, match="did you mean depth"):
        cp.grouping.Grouping(("depth",), (("depht",),), (0,))
    with pytest.raises(OptionError, match="directed=True"):
        AffinityMatrix(("a", "b"), np.array([[0, 1], [2, 0]]), directed=False)


@pytest.mark.parametrize("name", cp.grouping.names())
def test_every_method_says_what_it_is(name):
    found = cp.grouping.describe(name)
    assert found.facts["role"] in ("estimator", "solver")
    for fact in ("source", "provenance", "cost", "reads"):
        assert found.facts[fact], fact


def test_affinity_propagation_keeps_to_the_budget():
    given = AffinityMatrix(
        tuple(f"t{at}" for at in range(5)), np.array(oracle("cilicia_split")["corr"]), directed=False
    )
    made = cp.grouping.create("affinity_propagation").solve(given, 2)
    assert sets(made) == {(0, 1, 2), (3, 4)}
    assert len(cp.grouping.create("affinity_propagation").solve(given, 1).groups) == 1
    with pytest.raises(OptionError, match="symmetric"):
        cp.grouping.create("affinity_propagation").solve(matrix(np.zeros((3, 3))), 2)
    with pytest.raises(SolverError, match="raise damping"):
        cp.grouping.create("affinity_propagation", max_iter=2).solve(given, 2)
