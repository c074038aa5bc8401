"""The weights of instances against a closed form by sorting, against SciPy, and at the edges."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from counterpoint.solvers.self_paced import self_paced_weights


def by_sorting(losses, threshold, penalty):
    """With the m easiest at 1: s^2 = m + s^2 R / penalty^2, R the sum of squares of the others."""
    easy = np.maximum(threshold - np.asarray(losses), 0.0)
    falling = np.sort(easy)[::-1]
    for m in range(1, len(easy) + 1):
        rest = float((falling[m:] ** 2).sum()) / penalty**2
        if rest >= 1:
            continue
        s = (m / (1 - rest)) ** 0.5
        if s * falling[m - 1] / penalty >= 1 - 1e-12 and (m == len(easy) or s * falling[m] / penalty <= 1 + 1e-12):
            return np.minimum(1.0, s * easy / penalty)
    return np.zeros_like(easy)


problems = st.tuples(st.integers(0, 10_000), st.integers(1, 60), st.floats(0.05, 3.0), st.floats(0.01, 3.0))


@given(problems)
def test_bisection_is_the_closed_form(problem):
    seed, count, threshold, penalty = problem
    losses = torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = self_paced_weights(losses, threshold=threshold, group_penalty=penalty)
    np.testing.assert_allclose(found, by_sorting(losses, threshold, penalty), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("threshold", "penalty"), [(0.6, 0.3), (0.9, 0.8), (0.4, 0.2), (0.3, 2.0)])
def test_no_other_weights_are_better(threshold, penalty):
    losses = torch.rand(8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def objective(v):
        return float(v @ (losses.numpy() - threshold) + penalty * np.linalg.norm(v))

    found = self_paced_weights(losses, threshold=threshold, group_penalty=penalty).numpy()
    best = minimize(objective, np.full(8, 0.5), bounds=[(0, 1)] * 8, options={"ftol": 1e-14, "gtol": 1e-10})
    assert objective(found) <= min(best.fun, 0.0) + 1e-7
    np.testing.assert_allclose(objective(found), min(best.fun, 0.0), atol=1e-6)


def test_edges():
    losses = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    assert self_paced_weights(losses, threshold=0.5).tolist() == [1.0, 0.0, 0.0]
    assert self_paced_weights(losses, threshold=0.5, group_penalty=0.4).tolist() == [0.0] * 3  # the norm is the penalty
    assert self_paced_weights(losses, threshold=0.5, group_penalty=1e-300).tolist() == [1.0, 0.0, 0.0]
    assert self_paced_weights(losses[:1], threshold=1.0, group_penalty=0.5).tolist() == [1.0]
