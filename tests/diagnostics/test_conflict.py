"""Measures of conflict against the oracle file, closed forms and singular values."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from balancers.comparison import agree
from counterpoint import diagnostics as d
from counterpoint.errors import OptionError

NAN = float("nan")
G = torch.tensor([[1.0, 0, 2, -1], [-2, 1, 0, 3], [0.5, -1, 1, 0]], dtype=torch.float64)
A = G @ G.T
PAIRS = ([0, 0, 1], [1, 2, 2])


def close(found, expected, tolerance=5e-7):
    torch.testing.assert_close(
        torch.as_tensor(found).double(), torch.as_tensor(expected).double(), rtol=0, atol=tolerance
    )


def test_printed_values():
    close(d.cosine_matrix(A)[PAIRS], [-0.545545, 0.680414, -0.356348])
    close(d.magnitude_similarity(A)[PAIRS], [0.916515, 0.890724, 0.690768])
    close(d.curvature_bound(A)[PAIRS], [2.107143, 0.131726, 1.443149])
    assert d.conflict_rate(A) == 2 / 3
    assert d.conflict_rate(A, threshold=-0.5) == 1 / 3
    assert not d.dominated_conflicts(A).any()
    close(d.sign_purity(G), [0.428571, 0.5, 1, 0.75])
    close(d.update_cosines(A, torch.ones(3)), [0.392541, 0.513956, 0.503655])
    close(d.stationarity_gap(A), 1.135602)
    assert d.dominance_ratio(A) == pytest.approx(14**0.5 / 1.5, rel=1e-12)


@pytest.mark.parametrize("name", ["G3x4", "M5x20", "M10x50"])
def test_oracle(name):
    path = Path(os.environ.get("COUNTERPOINT_ORACLES", "")) / "balancing_oracles.json"
    if not path.is_file():
        pytest.skip("COUNTERPOINT_ORACLES does not name a folder with balancing_oracles.json")
    document = json.loads(path.read_text())
    (case,) = [c for c in document["cases"] if c["method"] == "conflict_measures" and c["matrix"] == name]
    jacobian = torch.tensor(document["matrices"][name], dtype=torch.float64)
    gram, expected, tolerance = jacobian @ jacobian.T, case["expected"], case["tolerance_rel"]
    pairs = torch.triu_indices(len(gram), len(gram), offset=1)
    agree(d.cosine_matrix(gram), expected["cosine"], tolerance)
    agree(d.magnitude_similarity(gram), expected["gradient_magnitude_similarity"], tolerance)
    agree(d.curvature_bound(gram), expected["curvature_bounding_measure"], tolerance)
    agree(d.conflict_rate(gram), expected["conflict_rate"], tolerance)
    agree(d.magnitude_similarity(gram)[pairs[0], pairs[1]].mean(), expected["gms_mean_offdiag"], tolerance)
    assert d.dominated_conflicts(gram).triu(1).nonzero().tolist() == expected["pairs_meeting_triad_condition_a"]
    agree(d.sign_purity(jacobian), expected["sign_purity_P"], tolerance)
    agree(d.mean_sign_purity(jacobian), np.mean(expected["sign_purity_degree"]), tolerance)
    agree(d.update_cosines(gram, torch.ones(len(gram))), expected["cos_with_mean"], tolerance)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_scalar_measures_are_those_of_the_matrix(scale):
    torch.manual_seed(0)
    jacobian = torch.randn(4, 9, dtype=torch.float64) * torch.tensor([[0.3], [1.0], [5.0], [2.0]]) * scale
    singular = torch.linalg.svdvals(jacobian)
    gram = jacobian @ jacobian.T
    assert d.condition_number(gram) == pytest.approx(float(singular[0] / singular[-1]), rel=1e-9)
    dependent = torch.cat([jacobian, jacobian[:1] + jacobian[1:2]])
    singular = torch.linalg.svdvals(dependent)
    assert d.condition_number(dependent @ dependent.T) == pytest.approx(float(singular[0] / singular[3]), rel=1e-6)
    lengths = jacobian.norm(dim=1)
    assert d.dominance_ratio(gram) == pytest.approx(float(lengths.max() / lengths.min()), rel=1e-12)
    weights = torch.rand(4, dtype=torch.float64)
    update = weights @ jacobian
    close(d.update_cosines(gram, weights), jacobian @ update / lengths / update.norm(), 1e-12)


def test_two_tasks_in_closed_form():
    opposed = torch.tensor([[1.0, -2.0], [-2.0, 4.0]], dtype=torch.float64)
    assert d.stationarity_gap(opposed) == 0
    assert d.curvature_bound(torch.tensor([[1.0, -1.0], [-1.0, 1.0]]))[0, 1] == math.inf
    assert d.update_cosines(opposed, torch.tensor([1.0, 1.0])).tolist() == [-1.0, 1.0]
    assert d.update_cosines(opposed, torch.tensor([2.0, 1.0])).isnan().all(), "the update is zero"
    assert d.stationarity_gap(torch.diag(torch.tensor([4.0, 1.0]))) == pytest.approx((4 / 5) ** 0.5)


@pytest.mark.parametrize("absent", [NAN, 0.0])
def test_absent_tasks_and_zero_gradients_are_left_out(absent):
    gram = torch.full((4, 4), absent, dtype=torch.float64)
    at = torch.tensor([0, 2, 3])
    gram[at[:, None], at[None, :]] = A
    for measure in (d.cosine_matrix, d.magnitude_similarity, d.curvature_bound):
        found = measure(gram)
        assert torch.equal(found[at[:, None], at[None, :]], measure(A))
        assert found[1].isnan().all()
        assert found[:, 1].isnan().all()
    weights = torch.tensor([1.0, 7.0, 2.0, 3.0])
    close(d.update_cosines(gram, weights)[at], d.update_cosines(A, weights[at]), 1e-15)
    assert d.update_cosines(gram, weights)[1].isnan()
    assert d.conflict_rate(gram) == d.conflict_rate(A)
    assert d.condition_number(gram) == d.condition_number(A)
    assert not d.dominated_conflicts(gram)[1].any()
    if absent == 0.0:
        assert d.dominance_ratio(gram) == math.inf
        assert d.stationarity_gap(gram) == 0
    else:
        assert d.dominance_ratio(gram) == d.dominance_ratio(A)
        assert d.stationarity_gap(gram) == d.stationarity_gap(A)


@pytest.mark.parametrize("value", [NAN, 0.0])
def test_nothing_to_measure(value):
    gram = torch.full((3, 3), value)
    for measure in (d.conflict_rate, d.condition_number, d.dominance_ratio):
        assert math.isnan(measure(gram))
    assert d.cosine_matrix(gram).isnan().all()
    assert d.update_cosines(gram, torch.ones(3)).isnan().all()
    assert math.isnan(d.mean_sign_purity(torch.zeros(2, 3)))
    assert d.sign_purity(torch.zeros(2, 3)).tolist() == [0.5] * 3


def test_multitask_curvature_is_the_integral_of_second_derivatives():
    torch.manual_seed(0)
    weights = torch.randn(4, 4, dtype=torch.float64)

    def loss(theta):
        return (weights @ theta).tanh().square().sum() + theta.pow(4).sum()

    theta, step = torch.randn(4, dtype=torch.float64), 0.05
    gradient = torch.autograd.functional.jacobian(loss, theta)
    moved = torch.autograd.functional.jacobian(loss, theta - step * gradient)
    nodes, quadrature = np.polynomial.legendre.leggauss(40)
    integral = 0.0
    for node, weight in zip((nodes + 1) / 2, quadrature / 2, strict=True):
        hessian = torch.autograd.functional.hessian(loss, theta - node * step * gradient)
        integral += weight * float(gradient @ hessian @ gradient)
    assert d.multitask_curvature(gradient, moved, step) == pytest.approx(integral, rel=1e-9)
    with pytest.raises(OptionError, match="step"):
        d.multitask_curvature(gradient, moved, 0.0)
