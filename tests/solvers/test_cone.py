"""The projection onto the dual cone against least squares, enumeration, conic programming and its conditions."""

import itertools

import cvxpy
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import nnls

from counterpoint.solvers import cone
from counterpoint.solvers.cone import project_rows_to_dual_cone, project_to_dual_cone
from solvers.problems import HARD, conic_projection, rows

ROUNDING = 1e-11  # 1e-13 but for one case in a thousand, where zero is in the convex hull


def project(jacobian, vector):
    weights, residual = project_to_dual_cone(
        torch.from_numpy(jacobian @ jacobian.T), torch.as_tensor(vector, dtype=torch.float64)
    )
    return weights.numpy(), residual


def project_rows(jacobian):
    weights, residual = project_rows_to_dual_cone(torch.from_numpy(jacobian @ jacobian.T))
    return weights.numpy(), residual


def assert_optimal(jacobian, bound, weights):
    """v >= bound, <v G, g_i> >= 0, and = 0 where v_i > bound_i, relative to the largest term."""
    lengths = np.linalg.norm(jacobian, axis=1)
    scale = np.abs(weights * lengths).max()
    assert (weights >= bound).all()
    products = (weights @ jacobian) @ jacobian.T / np.where(lengths > 0, lengths, 1.0)
    assert products.min() >= -ROUNDING * scale
    assert np.abs(products[weights > bound]).max(initial=0.0) <= ROUNDING * scale


def length_by_nnls(jacobian, bound):
    """Length of the projection, from rows and bounds scaled to at most 1."""
    lengths = np.linalg.norm(jacobian, axis=1)
    units = jacobian[lengths > 0] / lengths[lengths > 0, None]
    start = (bound * lengths)[lengths > 0]
    scale = np.abs(start).max(initial=0.0)
    return scale * nnls(units.T, -(start @ units) / scale)[1] if scale else 0.0


@pytest.mark.parametrize("kind", HARD)
def test_agrees_with_least_squares(kind):
    for seed in range(100):
        jacobian = rows(kind, 2 + seed % 15, seed)
        count = len(jacobian)
        mixed = np.random.default_rng(seed).normal(size=count) * 10.0 ** np.random.default_rng(seed).uniform(-12, 12)
        found, residual = project_rows(jacobian)
        problems = [*zip(np.eye(count), found, strict=True)]
        for bound in (np.full(count, 1 / count), mixed):
            weights, other = project(jacobian, bound)
            residual = max(residual, other)
            problems.append((bound, weights))
        assert residual < ROUNDING
        for bound, weights in problems:
            assert_optimal(jacobian, bound, weights)
            terms = np.maximum(np.abs(weights), np.abs(bound)) * np.linalg.norm(jacobian, axis=1)
            # lengths near zero are square roots of rounding errors
            assert np.linalg.norm(weights @ jacobian) <= length_by_nnls(jacobian, bound) + 1e-6 * terms.max()


def least_by_enumeration(products, bound):
    """Least v A v: the best of the feasible stationary points of all sets of entries above their bounds."""
    best = bound @ products @ bound if (bound >= 0).all() else np.inf
    count = len(bound)
    for size in range(count + 1):
        for chosen in itertools.combinations(range(count), size):
            free, v = list(chosen), bound.copy()
            v[free] = 0
            v[free] = np.linalg.lstsq(products[np.ix_(free, free)], -(products @ v)[free], rcond=None)[0]
            if (v >= bound - 1e-9).all():
                best = min(best, v @ products @ v)
    return best


@pytest.mark.parametrize("kind", ["plain", "few columns", "duplicate", "opposed", "integers", "zero row"])
@given(num_tasks=st.integers(2, 5), seed=st.integers(0, 10_000))
def test_is_the_least_over_all_sets(kind, num_tasks, seed):
    jacobian = rows(kind, num_tasks, seed)
    products = jacobian @ jacobian.T
    bound = np.random.default_rng(seed).normal(size=num_tasks)
    weights, residual = project(jacobian, bound)
    assert residual < ROUNDING
    terms = (np.maximum(np.abs(weights), np.abs(bound)) @ np.sqrt(products.diagonal())) ** 2
    assert weights @ products @ weights <= least_by_enumeration(products, bound) + 1e-13 * terms


def test_agrees_with_conic_programming():
    for seed in range(600):
        jacobian = rows(HARD[seed % len(HARD)], 2 + seed % 9, seed)
        lengths = np.linalg.norm(jacobian, axis=1)
        jacobian = jacobian / np.where(lengths > 0, lengths, 1.0)[:, None]  # with lengths 1e12 apart it fails
        bound = np.random.default_rng(seed).normal(size=len(jacobian))
        weights, _ = project(jacobian, bound)
        scale = np.maximum(np.abs(weights), np.abs(bound)).max()  # lengths near zero are square roots of its errors
        assert np.linalg.norm(weights @ jacobian) == pytest.approx(conic_projection(jacobian, bound), abs=1e-4 * scale)


def test_agrees_with_cvxpy():
    for seed in range(40):
        jacobian = rows("plain", 5, seed)
        found, _ = project_rows(jacobian)
        total = np.zeros(jacobian.shape[1])
        for row in jacobian:
            near = cvxpy.Variable(len(row))
            problem = cvxpy.Problem(cvxpy.Minimize(cvxpy.sum_squares(near - row)), [jacobian @ near >= 0])
            problem.solve(solver=cvxpy.CLARABEL)
            total += near.value
        np.testing.assert_allclose(found.sum(axis=0) @ jacobian, total, atol=1e-5 * np.abs(jacobian).sum())


@pytest.mark.parametrize("kind", HARD)
def test_the_slow_way_gives_the_same(kind, monkeypatch):
    """Lawson and Hanson's method from the bounds, which otherwise runs on what block pivoting leaves over."""
    problems = [rows(kind, 2 + seed % 9, seed) for seed in range(30)]
    expected = [project_rows(jacobian)[0] for jacobian in problems]
    monkeypatch.setattr(cone, "_exchange", lambda cosine, low: (low.copy(), np.zeros(low.shape, dtype=bool)))
    for jacobian, fast in zip(problems, expected, strict=True):
        slow, residual = project_rows(jacobian)
        assert residual < ROUNDING
        scale = 1e-6 * (np.abs(slow) * np.linalg.norm(jacobian, axis=1)).max(axis=1, keepdims=True)
        assert (np.abs(slow @ jacobian - fast @ jacobian) <= scale).all()


@given(
    st.integers(0, 10_000), st.floats(-12, 12), st.sampled_from(["scales", "scales, few columns", "scales, duplicate"])
)
def test_conditions_at_any_scale(seed, exponent, kind):
    jacobian = rows(kind, 2 + seed % 30, seed) * 10.0**exponent
    found, residual = project_rows(jacobian)
    assert residual < ROUNDING
    for bound, weights in zip(np.eye(len(jacobian)), found, strict=True):
        assert_optimal(jacobian, bound, weights)


def test_a_vector_in_the_cone_stays():
    jacobian = rows("positive", 6, 0)
    for bound in (np.full(6, 1 / 6), np.arange(6.0)):
        assert project(jacobian, bound)[0].tolist() == bound.tolist()
    assert project_rows(jacobian)[0].tolist() == np.eye(6).tolist()


def test_two_rows_are_the_closed_form():
    for seed in range(200):
        jacobian = rows("scales", 2, seed)
        (a, c), (_, b) = jacobian @ jacobian.T
        expected = np.array([[1.0, max(0.0, -c / b)], [max(0.0, -c / a), 1.0]])
        np.testing.assert_allclose(project_rows(jacobian)[0], expected, rtol=1e-12)


def test_zero_and_opposed_rows():
    assert project(np.zeros((3, 2)), [0.2, -1.0, 0.5])[0].tolist() == [0.2, -1.0, 0.5]
    assert project(np.eye(2), [0.0, 0.0])[0].tolist() == [0.0, 0.0]
    assert project_rows(np.zeros((2, 3)))[0].tolist() == np.eye(2).tolist()
    opposed = np.array([[1.0, 2.0], [-1e-9, -2e-9]])
    assert np.abs(project(opposed, [0.5, 0.5])[0] @ opposed).max() < 3e-15
    assert np.abs(project_rows(opposed)[0] @ opposed).max() < 3e-15
    with_zero = np.array([[1.0, 0.0], [0.0, 0.0], [-1.0, 1.0]])
    expected = [[1.0, 0.0, 0.5], [0.0, 1.0, 0.0], [1.0, 0.0, 1.0]]
    np.testing.assert_allclose(project_rows(with_zero)[0], expected, rtol=1e-14)


def test_many_rows():
    """One vector among a thousand rows; all of 150 rows."""
    assert project(rows("scales", 1000, 0), np.full(1000, 1e-3))[1] < 1e-12
    assert project_rows(rows("scales", 150, 0))[1] < 1e-12


def test_problems_in_several_batches_are_the_same(monkeypatch):
    jacobian = rows("scales", 12, 3)
    expected = project_rows(jacobian)[0]
    monkeypatch.setattr(cone, "_MAX_ENTRIES", 500)
    np.testing.assert_allclose(project_rows(jacobian)[0], expected, rtol=1e-12)
