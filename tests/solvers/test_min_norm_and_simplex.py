"""The exact solvers against brute force, conic programming, closed forms and their optimality conditions."""

import itertools

import cvxpy
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from counterpoint.solvers.min_norm import min_norm
from counterpoint.solvers.simplex import linear_plus_norm
from solvers.problems import HARD, KINDS, conic_dual, least_length, rows


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


MODERATE = [kind for kind in HARD if "scales" not in kind]  # what the other solvers can do


@pytest.mark.parametrize("kind", MODERATE)
def test_min_norm_agrees_with_least_squares(kind):
    for seed in range(150):
        jacobian = rows(kind, 2 + seed % 19, seed)
        weights, residual = min_norm(torch.from_numpy(jacobian @ jacobian.T))
        assert_on_simplex(weights)
        assert residual < 1e-12
        lengths = np.linalg.norm(jacobian, axis=1)
        scale = lengths.min() or 1.0  # the shortest combination is no longer than the shortest row
        expected = scale * least_length(jacobian / scale)
        # lengths near zero are square roots of rounding errors
        assert np.linalg.norm(weights.numpy() @ jacobian) <= expected * (1 + 1e-9) + 1e-7 * (weights.numpy() @ lengths)


@pytest.mark.parametrize("kind", MODERATE)
@pytest.mark.parametrize("c", [0.1, 0.5, 1.0, 2.0])
def test_dual_agrees_with_conic_programming(kind, c):
    for seed in range(20):
        jacobian = rows(kind, 2 + seed % 7, seed)
        weights, residual = linear_plus_norm(torch.from_numpy(jacobian @ jacobian.T), c)
        assert_on_simplex(weights)
        assert residual < 1e-6
        least = conic_dual(jacobian, c)
        scale = (1 + c) * np.linalg.norm(jacobian.mean(axis=0)) * np.linalg.norm(jacobian, axis=1).max()
        # the conic solver stops at 1e-8; ours may only be lower than it
        assert dual_value(jacobian, weights.numpy(), c) <= least + 1e-7 * (scale + 1)
        assert dual_value(jacobian, weights.numpy(), c) >= least - 1e-6 * (scale + 1)


@pytest.mark.parametrize("c", [0.5, 1.5])
def test_dual_agrees_with_cvxpy(c):
    for seed in range(20):
        jacobian = rows("plain", 5, seed)
        weights, _ = linear_plus_norm(torch.from_numpy(jacobian @ jacobian.T), c)
        variable = cvxpy.Variable(5, nonneg=True)
        mean = jacobian.mean(axis=0)
        value = (jacobian @ mean) @ variable + c * np.linalg.norm(mean) * cvxpy.norm(jacobian.T @ variable)
        least = cvxpy.Problem(cvxpy.Minimize(value), [cvxpy.sum(variable) == 1]).solve(solver=cvxpy.CLARABEL)
        assert dual_value(jacobian, weights.numpy(), c) == pytest.approx(least, abs=1e-6 * np.abs(jacobian).sum())


def test_min_norm_agrees_with_cvxpy():
    for seed in range(40):
        jacobian = rows("plain", 6, seed)
        variable = cvxpy.Variable(6, nonneg=True)
        shortest = cvxpy.norm(jacobian.T @ variable)
        least = cvxpy.Problem(cvxpy.Minimize(shortest), [cvxpy.sum(variable) == 1]).solve(solver=cvxpy.CLARABEL)
        found = min_norm(torch.from_numpy(jacobian @ jacobian.T))[0].numpy() @ jacobian
        assert np.linalg.norm(found) == pytest.approx(least, abs=1e-6)


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
