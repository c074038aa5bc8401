"""The sum of log losses: what a factor on a loss does, and what is the same as GLS."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from counterpoint.balancers import GLS, ScaleInvariant
from counterpoint.errors import OptionError

LOSSES = torch.tensor([0.7, 2.5, 0.04], dtype=torch.float64)


def test_weights_are_the_inverse_losses():
    balancer = ScaleInvariant(task_weights=[1.0, 3.0, 0.0])
    assert balancer.num_tasks == 3
    expected = torch.tensor([1.0, 3.0, 0.0], dtype=torch.float64) / (LOSSES + 1e-8)
    torch.testing.assert_close(balancer.weights(None, LOSSES), expected, rtol=1e-14, atol=0)
    bounded = ScaleInvariant(3, form="log1p").weights(None, LOSSES)
    torch.testing.assert_close(bounded, 1 / (1 + LOSSES), rtol=1e-14, atol=0)


@given(st.lists(st.floats(-5, 5), min_size=3, max_size=3))
def test_a_factor_on_a_loss_changes_nothing(exponents):
    factors = 10.0 ** torch.tensor(exponents, dtype=torch.float64)
    plain, scaled = (ScaleInvariant(3).weights(None, losses) for losses in (LOSSES, LOSSES * factors))
    tolerance = 2e-8 / min(float(LOSSES.min()), float((LOSSES * factors).min()))  # eps against the smallest loss
    torch.testing.assert_close(scaled * factors, plain, rtol=tolerance, atol=0)
    if float(factors.max()) > 2:
        bounded = ScaleInvariant(3, form="log1p")
        difference = bounded.weights(None, LOSSES * factors) * factors - bounded.weights(None, LOSSES)
        assert float(difference.abs().max()) > 0.01


@given(st.lists(st.floats(0.01, 100), min_size=2, max_size=6))
def test_the_direction_is_that_of_the_geometric_mean(values):
    losses = torch.tensor(values, dtype=torch.float64)
    weights, geometric = ScaleInvariant(len(losses)).weights(None, losses), GLS(len(losses)).weights(None, losses)
    torch.testing.assert_close(weights / weights.norm(), geometric / geometric.norm(), rtol=1e-5, atol=0)


def test_a_loss_of_zero_has_a_finite_weight():
    assert ScaleInvariant(2).weights(None, torch.tensor([0.0, 1.0])).tolist() == pytest.approx([1e8, 1.0])
    assert ScaleInvariant(2, eps=0.1).weights(None, torch.tensor([0.0, 0.9])).tolist() == pytest.approx([10.0, 1.0])
    with pytest.raises(OptionError, match="at least 0"):
        ScaleInvariant(2, form="log1p").weights(None, torch.tensor([-0.5, 1.0]))


def test_weights_by_name_and_absent_tasks():
    balancer = ScaleInvariant(task_weights={"depth": 2.0, "seg": 3.0})
    assert balancer.tasks == ("depth", "seg")
    x = torch.tensor([2.0], requires_grad=True)
    report = balancer.backward({"seg": (x**2).sum()})
    assert report.weights.tolist() == pytest.approx([0.0, 3.0 / 4.0])
    assert x.grad.tolist() == pytest.approx([3.0])  # 3 d ln(x^2) / dx
    with pytest.raises(OptionError, match="one value for each"):
        ScaleInvariant(tasks=["seg", "normals"], task_weights={"depth": 2.0, "seg": 3.0})
