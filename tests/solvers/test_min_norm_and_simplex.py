"""The exact solvers against brute force, conic programming, closed forms and their optimality conditions."""

import itertools
import time

import cvxpy
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from counterpoint.solvers.min_norm import min_norm
from counterpoint.solvers.simplex import linear_plus_norm

KINDS = (
    "plain",
    "few columns",
    "duplicate",
    "opposed",
    "parallel",
    "positive",
    "hull holds zero",
    "integers",
    "scales",
    "scales, few columns",
)


def rows(kind, num_tasks, seed):
    rng = np.random.default_rng(seed)
    columns = (
        int(rng.integers(1, num_tasks)) if kind == "few columns" else int(rng.integers(num_tasks, 2 * num_tasks + 2))
    )
    jacobian = rng.normal(size=(num_tasks, columns))
    if kind == "duplicate":
        jacobian[-1] = jacobian[0]
    elif kind == "opposed":
        jacobian[-1] = -jacobian[0] * rng.choice([1.0, 0.1, 5.0])
    elif kind == "parallel":
        jacobian = rng.normal(size=(1, columns)) + 1e-6 * jacobian
    elif kind == "positive":
        jacobian = np.abs(jacobian)
    elif kind == "hull holds zero":
        jacobian[-1] = -(rng.dirichlet(np.ones(num_tasks - 1)) @ jacobian[:-1]) * rng.choice([1.0, 10.0, 0.1])
    elif kind == "integers":
        jacobian = rng.integers(-2, 3, size=(num_tasks, columns)).astype(float)
    elif kind.startswith("scales"):
        jacobian *= 10.0 ** rng.uniform(-6, 6, size=(num_tasks, 1))
    return jacobian


def assert_on_simplex(weights):
    assert bool((weights >= 0).all())
    assert float(weights.sum()) == pytest.approx(1.0, abs=1e-12)


def least_by_enumeration(products):
    """Least w A w on the simplex: the best of the stationary points of all supports."""
    best = np.inf
    for size in range(1, len(products) + 1):
        for chosen in itertools.combinations(range(len(products)), size):
            block = products[np.ix_(chosen, chosen)]
            system = np.block([[block, -np.ones((size, 1))], [np.ones((1, size)), np.zeros((1, 1))]])
            found = np.linalg.lstsq(system, np.append(np.zeros(size), 1.0), rcond=None)[0][:size]
            found = np.maximum(found, 0) if (found > -1e-9).all() and abs(found.sum() - 1) < 1e-9 else None
            if found is not None:
                found = found / found.sum()
                best = min(best, float(found @ block @ found))
    return best


@pytest.mark.parametrize("kind", KINDS)
@given(num_tasks=st.integers(2, 6), seed=st.integers(0, 10_000))
def test_min_norm_is_the_least_over_all_supports(kind, num_tasks, seed):
    jacobian = rows(kind, num_tasks, seed)
    products = jacobian @ jacobian.T
    weights, residual = min_norm(torch.from_numpy(products))
    assert_on_simplex(weights)
    assert residual < 1e-12
    w = weights.numpy()
    # 1e-13: rounding of w A w relative to the terms that cancel in it
    assert w @ products @ w <= least_by_enumeration(products) + 1e-13 * (w @ np.sqrt(products.diagonal())) ** 2


@pytest.mark.parametrize("kind", KINDS)
@given(num_tasks=st.integers(2, 50), seed=st.integers(0, 10_000), exponent=st.floats(-12, 12))
def test_min_norm_optimality_conditions_at_any_scale(kind, num_tasks, seed, exponent):
    jacobian = rows(kind, num_tasks, seed) * 10.0**exponent
    products = torch.from_numpy(jacobian @ jacobian.T)
    weights, residual = min_norm(products)
    assert_on_simplex(weights)
    assert residual < 1e-12
    v = weights.numpy() @ jacobian
    lengths = np.linalg.norm(jacobian, axis=1)
    slack = (jacobian @ v - v @ v) / np.where(lengths > 0, lengths, 1.0)
    assert slack.min() >= -1e-12 * (weights.numpy() * lengths).max()


def test_min_norm_of_two_tasks_is_the_closed_form():
    rng = np.random.default_rng(0)
    for _ in range(200):
        jacobian = rng.normal(size=(2, 3)) * 10.0 ** rng.uniform(-3, 3, size=(2, 1))
        (a, c), (_, b) = jacobian @ jacobian.T
        expected = 1.0 if c >= a else 0.0 if c >= b else (b - c) / (a + b - 2 * c)
        found = float(min_norm(torch.from_numpy(jacobian @ jacobian.T))[0][0])
        assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_min_norm_of_zero_and_equal_rows():
    zero = torch.tensor([[4.0, 0, 0], [0, 0, 0], [0, 0, 0]], dtype=torch.float64)
    assert min_norm(zero)[0].tolist() == [0.0, 0.5, 0.5]
    assert min_norm(torch.zeros(3, 3, dtype=torch.float64))[0].tolist() == pytest.approx([1 / 3] * 3)
    assert min_norm(torch.ones(4, 4, dtype=torch.float64))[0].tolist() == pytest.approx([0.25] * 4)
    assert min_norm(torch.ones(1, 1, dtype=torch.float64))[0].tolist() == [1.0]


def test_min_norm_finds_the_opposed_pair_beside_a_tiny_row():
    jacobian = np.array([[1e-6, 0.0], [0.0, 1e3], [0.0, -1e3]])
    weights, residual = min_norm(torch.from_numpy(jacobian @ jacobian.T))
    assert np.abs(weights.numpy() @ jacobian).max() < 1e-12
    assert residual < 1e-12


def dual_value(jacobian, weights, c):
    mean, combined = jacobian.mean(axis=0), weights @ jacobian
    return combined @ mean + c * np.linalg.norm(mean) * np.linalg.norm(combined)


@pytest.mark.parametrize("kind", ["plain", "few columns", "duplicate", "opposed", "positive", "integers"])
@pytest.mark.parametrize("c", [0.1, 0.5, 1.0, 2.0])
def test_dual_agrees_with_conic_programming(kind, c):
    for seed in range(2):
        jacobian = rows(kind, 5, seed)
        weights, _ = linear_plus_norm(torch.from_numpy(jacobian @ jacobian.T), c)
        assert_on_simplex(weights)
        variable = cvxpy.Variable(5, nonneg=True)
        mean = jacobian.mean(axis=0)
        value = (jacobian @ mean) @ variable + c * np.linalg.norm(mean) * cvxpy.norm(jacobian.T @ variable)
        least = cvxpy.Problem(cvxpy.Minimize(value), [cvxpy.sum(variable) == 1]).solve(solver=cvxpy.CLARABEL)
        scale = (1 + c) * np.linalg.norm(mean) * np.linalg.norm(jacobian, axis=1).max()
        # the conic solver stops at 1e-8; ours may only be lower than it
        assert dual_value(jacobian, weights.numpy(), c) <= least + 1e-7 * scale
        assert dual_value(jacobian, weights.numpy(), c) >= least - 1e-6 * scale


@pytest.mark.parametrize("kind", KINDS)
@given(num_tasks=st.integers(2, 50), seed=st.integers(0, 10_000), c=st.sampled_from([0.1, 0.4, 0.9, 1.0, 2.0]))
def test_dual_optimality_conditions(kind, num_tasks, seed, c):
    jacobian = rows(kind, num_tasks, seed)
    if not jacobian.any(axis=1).all():
        jacobian[~jacobian.any(axis=1)] = 1.0
    weights, residual = linear_plus_norm(torch.from_numpy(jacobian @ jacobian.T), c)
    assert_on_simplex(weights)
    w, lengths = weights.numpy(), np.linalg.norm(jacobian, axis=1)
    mean, combined = jacobian.mean(axis=0), w @ jacobian
    if np.linalg.norm(combined) <= 1e-5 * (w @ lengths):
        assert residual < 1e-6
        return
    assert residual < 1e-9
    slope = jacobian @ (mean + c * np.linalg.norm(mean) * combined / np.linalg.norm(combined))
    slack = (slope - w @ slope) / (lengths * np.linalg.norm(mean) * (1 + c))
    assert slack.min() > -1e-8
    assert np.abs(slack[w > 0]).max() < 1e-8


def test_dual_with_zero_rows_and_radius():
    products = torch.tensor([[1.0, 0, 0], [0, 0, 0], [0, 0, 4]], dtype=torch.float64)
    assert linear_plus_norm(products, 0.5)[0].tolist() == [0.0, 1.0, 0.0]  # no row has a value below zero
    conflict = torch.tensor([[1.0, 0, -3.0], [0, 0, 0], [-3.0, 0, 16.0]], dtype=torch.float64)
    assert linear_plus_norm(conflict, 0.1)[0].tolist() == [1.0, 0.0, 0.0]
    assert linear_plus_norm(conflict, 0.0)[0].tolist() == [1.0, 0.0, 0.0]
    opposed = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)  # the mean is zero
    assert linear_plus_norm(opposed, 0.5)[0].tolist() == [0.5, 0.5]


def test_solvers_are_fast_enough():
    # 2 ms is the aim for 40 tasks on an idle core (measured: 0.3 to 1.2 and 0.7 to 2.4); 20 leaves room for a busy one
    jacobian = rows("plain", 40, 0)
    products = torch.from_numpy(jacobian @ jacobian.T)
    for solve in (min_norm, lambda a: linear_plus_norm(a, 0.4)):
        times = []
        for _ in range(7):
            start = time.perf_counter()
            solve(products)
            times.append(time.perf_counter() - start)
        assert min(times) < 0.02


@pytest.mark.parametrize(("seed", "num_tasks", "columns"), [(195, 7, 2), (1066, 15, 8), (1504, 13, 9), (1601, 7, 3)])
def test_dual_search_does_not_cycle(seed, num_tasks, columns):
    """Problems on which the one-dimensional search once jumped between two supports for ever."""
    rng = np.random.default_rng(seed)
    assert (int(rng.integers(4, 16)), int(rng.integers(2, num_tasks + 2))) == (num_tasks, columns)
    spread = rng.choice([1.0, 2.0, 3.0])
    jacobian = rng.normal(size=(num_tasks, columns)) * 10.0 ** rng.uniform(-spread, spread, size=(num_tasks, 1))
    weights, residual = linear_plus_norm(
        torch.from_numpy(jacobian @ jacobian.T), float(rng.choice([0.4, 0.9, 1.0, 1.5]))
    )
    assert_on_simplex(weights)
    assert residual < 1e-9
