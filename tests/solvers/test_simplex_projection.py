"""The projection onto the simplex against its optimality conditions, a quadratic program and a grid."""

import numpy as np
import pytest
import torch
from scipy.optimize import nnls

from counterpoint.solvers.simplex_projection import project_to_simplex


def project(values):
    return project_to_simplex(torch.as_tensor(values, dtype=torch.float64)).numpy()


def test_optimality_conditions_at_any_scale():
    """v - w is the same for all w_i > 0 and not larger elsewhere."""
    rng = np.random.default_rng(0)
    for _ in range(3000):
        vector = rng.normal(size=rng.integers(1, 50)) * 10.0 ** rng.uniform(-12, 12) + rng.choice([0.0, 1.0, -1e6])
        found = project(vector)
        assert (found >= 0).all()
        assert found.sum() == pytest.approx(1.0, abs=1e-14)
        gap = vector - found
        rounding = 1e-15 * (1 + np.abs(vector).max())
        level = gap[found > 0].min()
        assert gap[found > 0].max() <= level + 4 * rounding
        assert gap[found == 0].max(initial=-np.inf) <= level + 4 * rounding


def test_agrees_with_least_squares():
    """NNLS with the sum as a heavy extra row; the weight 1e4 leaves an error of 1e-8."""
    rng = np.random.default_rng(1)
    for _ in range(200):
        vector = rng.normal(size=rng.integers(2, 12))
        system = np.vstack([np.eye(len(vector)), np.full(len(vector), 1e4)])
        expected, _ = nnls(system, np.append(vector, 1e4))
        np.testing.assert_allclose(project(vector), expected, atol=1e-6)


def test_two_entries_are_the_closed_form():
    rng = np.random.default_rng(2)
    for first, second in rng.normal(size=(200, 2)) * 3:
        expected = min(1.0, max(0.0, (1 + first - second) / 2))
        assert project([first, second])[0] == pytest.approx(expected, abs=1e-14)


def test_points_of_the_simplex_stay():
    rng = np.random.default_rng(3)
    for count in (1, 2, 7, 1000):
        point = rng.dirichlet(np.ones(count))
        np.testing.assert_allclose(project(point), point, atol=1e-15)
    assert project([1e300, 1e300, -1e300]).tolist() == [0.5, 0.5, 0.0]
    assert project([5.0]).tolist() == [1.0]


def test_the_argument_is_left_alone():
    vector = torch.tensor([3.0, 1.0, 2.5], dtype=torch.float64)
    project_to_simplex(vector)
    assert vector.tolist() == [3.0, 1.0, 2.5]
