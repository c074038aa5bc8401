"""The bargaining weights against their equation, conic programming, least squares and closed forms."""

import cvxpy
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import least_squares

from counterpoint.solvers import bargaining
from counterpoint.solvers.bargaining import bargain
from solvers.problems import HARD, conic_bargain, least_length, rows


def solve(jacobian, **options):
    weights, residual = bargain(torch.from_numpy(jacobian @ jacobian.T), **options)
    return weights.numpy(), residual


def shortest(jacobian):
    """Length of the shortest convex combination of the rows made to unit length."""
    lengths = np.linalg.norm(jacobian, axis=1)
    return least_length(jacobian[lengths > 0] / lengths[lengths > 0, None])


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("kind", HARD)
def test_equation(kind, alpha):
    """On rows, not on their Gram matrix: every task gets its share, or there is no solution."""
    solved = 0
    for seed in range(25):
        jacobian = rows(kind, 2 + seed % 19, seed)
        weights, residual = solve(jacobian, alpha=alpha)
        assert np.isfinite(weights).all()
        assert residual < 1e-11
        if not weights.any():
            assert not jacobian.any() or shortest(jacobian) < 1.01e-6
            continue
        solved += 1
        lengths = np.linalg.norm(jacobian, axis=1)
        kept = lengths > 0
        assert (weights[~kept] == 0).all()
        assert (weights[kept] > 0).all()
        products = (weights @ jacobian) @ jacobian[kept].T / lengths[kept]
        expected = weights[kept] ** (-1 / alpha) / lengths[kept]
        terms = np.abs(weights * lengths).sum()  # what is lost where large terms cancel
        np.testing.assert_allclose(products, expected, rtol=1e-9, atol=1e-13 * terms)
    assert solved > 5 or kind in {"opposed", "hull holds zero", "integers", "few columns"}


@pytest.mark.parametrize("alpha", [1.0, 2.0])
def test_agrees_with_conic_programming(alpha):
    compared = 0
    for seed in range(600):
        kind = HARD[seed % len(HARD)]
        jacobian = rows(kind, 2 + seed % 7, seed)
        jacobian = jacobian[jacobian.any(axis=1)]
        if not len(jacobian) or shortest(jacobian) < 1e-3:
            continue
        jacobian /= np.linalg.norm(jacobian, axis=1, keepdims=True)  # with lengths 1e12 apart it fails
        demands = np.random.default_rng(seed).uniform(0.3, 3, size=len(jacobian))
        weights, _ = solve(jacobian, alpha=alpha, demands=torch.from_numpy(demands))
        expected = conic_bargain(jacobian, alpha, demands)
        # it stops at a gap of 1e-8, and the potential is quadratic in the distance
        np.testing.assert_allclose(weights @ jacobian, expected @ jacobian, atol=1e-3 * np.linalg.norm(expected))
        compared += 1
    assert compared > 300


@pytest.mark.parametrize("alpha", [1.0, 2.0])
def test_agrees_with_cvxpy(alpha):
    for seed in range(25):
        jacobian = rows("plain", 4, seed)
        jacobian /= np.linalg.norm(jacobian, axis=1, keepdims=True)
        w = cvxpy.Variable(4)
        gain = cvxpy.log(w) if alpha == 1 else 2 * cvxpy.sqrt(w)
        problem = cvxpy.Problem(cvxpy.Minimize(cvxpy.sum_squares(jacobian.T @ w) / 2 - cvxpy.sum(gain)))
        problem.solve(solver=cvxpy.CLARABEL)
        np.testing.assert_allclose(solve(jacobian, alpha=alpha)[0], w.value, rtol=1e-4)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0, 5.0])
def test_agrees_with_least_squares(alpha):
    """What the released code of FairGrad does, run to the end, from our point moved by a tenth."""
    for seed in range(50):
        jacobian = rows("plain", 2 + seed % 5, seed)
        products = jacobian @ jacobian.T
        weights, _ = solve(jacobian, alpha=alpha)
        start = weights * np.random.default_rng(seed).uniform(0.9, 1.1, size=len(weights))
        found = least_squares(
            lambda w, a=products: a @ w - w ** (-1 / alpha),
            start,
            bounds=(1e-9, np.inf),
            xtol=1e-15,
            ftol=1e-15,
            gtol=1e-15,
        )
        np.testing.assert_allclose(weights, found.x, rtol=1e-6)


@given(cosine=st.floats(-0.999, 0.999), exponents=st.tuples(st.floats(-12, 12), st.floats(-12, 12)))
def test_two_rows_are_the_closed_form(cosine, exponents):
    """By symmetry y = (1 + cosine)^(-1/2) for both unit rows, whatever the lengths."""
    lengths = 10.0 ** np.array(exponents)
    gram = torch.from_numpy(np.array([[1.0, cosine], [cosine, 1.0]]) * np.outer(lengths, lengths))
    expected = (1 + cosine) ** -0.5 / lengths
    np.testing.assert_allclose(bargain(gram)[0].numpy(), expected, rtol=1e-9)


@given(st.floats(-12, 12), st.sampled_from([0.3, 1.0, 2.0, 5.0]))
def test_one_row(exponent, alpha):
    """w^(1 + alpha) = p d^(-2 alpha)."""
    length = 10.0**exponent
    gram, demand = torch.tensor([[length**2]], dtype=torch.float64), torch.tensor([3.0], dtype=torch.float64)
    found, residual = bargain(gram, alpha=alpha, demands=demand)
    assert float(found[0]) == pytest.approx((3 * length ** (-2 * alpha)) ** (1 / (1 + alpha)), rel=1e-11)
    assert residual < 1e-12


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_demands_of_equal_rows_add_up(alpha):
    jacobian = rows("plain", 3, 0)
    twice = np.vstack([jacobian, jacobian[:1]])
    single, _ = solve(jacobian, alpha=alpha, demands=torch.tensor([3.0, 1.0, 1.0], dtype=torch.float64))
    parts, _ = solve(twice, alpha=alpha, demands=torch.tensor([1.0, 1.0, 1.0, 2.0], dtype=torch.float64))
    np.testing.assert_allclose(parts, [single[0] / 3, single[1], single[2], single[0] * 2 / 3], rtol=1e-11)


def test_no_solution():
    for lengths in ([1.0, 1.0], [1e-12, 1e12]):
        opposed = np.array([[1.0, 2.0, 0.3], [-1.0, -2.0, -0.3]]) * np.array(lengths)[:, None]
        assert solve(opposed)[0].tolist() == [0.0, 0.0]
        assert solve(opposed, alpha=2.0)[0].tolist() == [0.0, 0.0]
    assert solve(np.zeros((3, 2)))[0].tolist() == [0.0, 0.0, 0.0]
    triangle = np.array([[1.0, 0.0], [-0.5, 3**0.5 / 2], [-0.5, -(3**0.5) / 2]])
    assert solve(triangle, alpha=0.5)[0].tolist() == [0.0, 0.0, 0.0]


def test_what_counts_as_stationary_is_the_shortest_combination():
    """Whether there is a solution does not depend on the way to it: exactly if the length is above 1e-6."""
    answers = []
    for seed in range(300):
        jacobian = rows("plain", 2 + seed % 6, seed)
        jacobian /= np.linalg.norm(jacobian, axis=1, keepdims=True)
        weights = np.random.default_rng(seed).dirichlet(np.ones(len(jacobian)))
        jacobian -= (weights @ jacobian) * (1 - 10.0 ** np.random.default_rng(seed).uniform(-7, -5))
        length = shortest(jacobian)
        if 0.95e-6 < length < 1.05e-6:
            continue
        answers.append(length > 1e-6)
        for alpha in (0.5, 1.0, 2.0):
            assert solve(jacobian, alpha=alpha)[0].any() == answers[-1]
    assert 50 < sum(answers) < len(answers) - 50


@pytest.mark.parametrize("alpha", [1.0, 2.0])
def test_a_thousand_rows(alpha):
    jacobian = rows("scales", 1000, 0)
    weights, residual = solve(jacobian, alpha=alpha)
    assert residual < 1e-10
    assert (weights > 0).all()


def test_a_solver_that_stops_early_says_so(monkeypatch):
    monkeypatch.setattr(bargaining, "_MAX_STEPS", 1)
    weights, residual = solve(rows("plain", 5, 0))
    assert residual > 1e-3
    assert (weights > 0).all()
