"""PIVRG's scores: metrics against references, absent ones, bad input, state."""

import math

import pytest
import torch

from counterpoint.balancers import PIVRG, FairGrad
from counterpoint.balancers.pivrg import pivrg_demands
from counterpoint.errors import NonFiniteError, OptionError, ShapeError, UnknownNameError

GRAM = torch.tensor([[6.0, -5, 2.5], [-5, 14, -2], [2.5, -2, 2.25]], dtype=torch.float64)


def test_it_is_fairgrad_until_the_first_validation():
    found = PIVRG(references=[1.0, 2.0, -3.0]).weights(GRAM)
    assert torch.equal(found, FairGrad(3, alpha=2.0).weights(GRAM))


def test_drops_are_in_per_cent_and_larger_is_worse():
    balancer = PIVRG(references={"seg": 0.5, "depth": 0.4, "delta": -2.0})
    assert balancer.tasks == ("seg", "depth", "delta")
    higher = {"seg": True, "depth": False, "delta": True}
    balancer.observe_metrics({"depth": 0.5, "seg": 0.4, "delta": -1.0}, higher_is_better=higher)
    assert balancer.scores.tolist() == pytest.approx([20.0, 25.0, -50.0])
    shares = pivrg_demands(balancer.scores)
    assert float(shares.sum()) == pytest.approx(3.0)
    assert float(shares.max() / shares.min()) == pytest.approx(2.0)  # 75 / ln 2 is above the least temperature
    assert shares.argsort().tolist() == [2, 0, 1]
    weights = balancer.weights(GRAM)
    torch.testing.assert_close((GRAM @ weights).square() * weights, shares, rtol=0, atol=1e-9)


def test_small_differences_hardly_count():
    shares = pivrg_demands(torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert float(shares[1] / shares[0]) == pytest.approx(math.exp(0.1))


def test_tasks_without_a_metric_keep_their_score():
    balancer = PIVRG(references=[1.0, 1.0, 1.0])
    balancer.observe_metrics([0.9, 0.8, 0.7], higher_is_better=[True] * 3)
    balancer.observe_metrics([float("nan"), 0.5, 0.7], higher_is_better=[True] * 3)
    balancer.observe_metrics({"2": 0.2}, higher_is_better={"2": True})
    assert balancer.scores.tolist() == pytest.approx([10.0, 50.0, 80.0])
    demands = pivrg_demands(torch.tensor([50.0, 80.0], dtype=torch.float64))
    weights = balancer.weights(GRAM[:2, :2], present=[1, 2])  # shares among those that are there
    torch.testing.assert_close((GRAM[:2, :2] @ weights).square() * weights, demands, rtol=0, atol=1e-9)


def test_bad_metrics_change_nothing():
    balancer = PIVRG(references={"a": 1.0, "b": 1.0})
    balancer.observe_metrics([0.9, 0.8], higher_is_better=[True, True])
    before = balancer.scores.clone()
    for values, error, message in (
        ({"c": 1.0}, UnknownNameError, "'c'"),
        ([1.0], ShapeError, "num_tasks = 2"),
        ({"a": 0.1, "b": float("inf")}, NonFiniteError, "'b'"),
    ):
        with pytest.raises(error, match=message):
            balancer.observe_metrics(values, higher_is_better={"a": True, "b": True})
    assert torch.equal(balancer.scores, before)


def test_scores_are_state():
    first, second = (PIVRG(references=[1.0, 1.0, 1.0]) for _ in range(2))
    plain = first.weights(GRAM)
    first.observe_metrics([0.9, 0.1, 0.7], higher_is_better=[True] * 3)
    second.load_state_dict(first.state_dict())
    assert torch.equal(second.weights(GRAM), first.weights(GRAM))
    assert not torch.equal(first.weights(GRAM), plain)
    first.reset()
    assert torch.equal(first.weights(GRAM), plain)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"references": 1.0}, "sequence"),
        ({"references": [1.0, 0.0]}, "must not be 0"),
        ({"references": [1.0, float("nan")]}, "references"),
        ({"references": [1.0], "num_tasks": 2}, "2 values"),
        ({"references": [1.0, 1.0], "bound": 1.0}, "bound"),
        ({"references": [1.0, 1.0], "min_temperature": 0.0}, "min_temperature"),
        ({"references": [1.0, 1.0], "max_norm": 0.0}, "max_norm"),
        ({"references": [1.0, 1.0], "task_gradients": "all"}, "raw"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(OptionError, match=message):
        PIVRG(**options)
