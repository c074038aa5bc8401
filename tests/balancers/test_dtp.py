"""DTP: metrics become KPIs, what is no KPI is refused, running means, tasks without a metric."""

import math

import pytest
import torch

from counterpoint.balancers import DTP
from counterpoint.balancers.dtp import dtp_weights
from counterpoint.errors import NonFiniteError, OptionError, ShapeError, UnknownNameError

ONES = torch.ones(2, dtype=torch.float64)
UP = {"a": True, "b": True}


def focal(kpi, gamma=1.0):
    return -((1 - kpi) ** gamma) * math.log(kpi)


def test_weights_are_one_until_a_task_has_a_metric():
    balancer = DTP(tasks=["a", "b"], perfect=100.0)
    assert balancer.weights(None, ONES).tolist() == [1.0, 1.0]
    balancer.observe_metrics({"b": 57.5}, higher_is_better=UP)
    assert balancer.weights(None, ONES).tolist() == pytest.approx([1.0, focal(0.575)])
    balancer.observe_metrics([float("nan"), 57.5], higher_is_better=[True, True])
    assert balancer.weights(None, ONES).tolist() == pytest.approx([1.0, focal(0.575)])


def test_per_cent_and_shares_give_the_same_weights():
    share, cent = DTP(2, perfect=1.0), DTP(2, perfect=100.0)
    share.observe_metrics([0.2, 0.9], higher_is_better=[True, True])
    cent.observe_metrics([20.0, 90.0], higher_is_better=[True, True])
    torch.testing.assert_close(share.weights(None, ONES), cent.weights(None, ONES))


def test_an_error_is_a_kpi_between_worst_and_perfect():
    balancer = DTP(tasks=["a", "b"], perfect={"a": 100.0, "b": 0.0}, worst={"a": 0.0, "b": 2.0}, gamma=[0.0, 2.0])
    balancer.observe_metrics({"a": 80.0, "b": 0.5}, higher_is_better={"a": True, "b": False})
    assert balancer.kpi.tolist() == pytest.approx([0.8, 0.75])
    assert balancer.weights(None, ONES).tolist() == pytest.approx([focal(0.8, 0), focal(0.75, 2)])
    balancer.observe_metrics({"b": 7.0}, higher_is_better={"b": False})  # worse than useless counts as useless
    assert float(balancer.kpi[1]) == pytest.approx(0.9 * 0.75)
    chance = DTP(1, perfect=100.0, worst=50.0)
    chance.observe_metrics([75.0], higher_is_better=[True])
    assert float(chance.kpi) == 0.5


@pytest.mark.parametrize(
    ("options", "value", "higher", "message"),
    [
        ({"perfect": 1.0}, 57.3, True, r"task 'b' is 57\.3, better than perfect = 1; .*perfect=100"),
        ({"perfect": 100.0}, 0.4, False, r"task 'b' is better when it is lower, .* perfect=0 and as worst"),
        ({"perfect": 0.0, "worst": 2.0}, 0.4, True, r"task 'b' is better when it is higher, .*worst below perfect"),
        ({"perfect": 0.0, "worst": 2.0}, -0.4, False, "better than perfect = 0"),
    ],
)
def test_what_is_no_kpi_is_refused_and_changes_nothing(options, value, higher, message):
    balancer = DTP(tasks=["a", "b"], **options)
    fine = (balancer._perfect[0] + balancer._worst[0]) / 2
    direction = balancer._perfect[0] > balancer._worst[0]
    with pytest.raises(OptionError, match=message):
        balancer.observe_metrics({"a": fine, "b": value}, higher_is_better={"a": direction, "b": higher})
    assert bool(balancer.kpi.isnan().all())


def test_rounding_above_perfection_is_no_error():
    balancer = DTP(1, perfect=100.0)
    balancer.observe_metrics([float(torch.tensor(1.0000001)) * 100], higher_is_better=[True])
    assert float(balancer.kpi) == 1.0


def test_bad_metrics_change_nothing():
    balancer = DTP(tasks=["a", "b"], perfect=1.0)
    balancer.observe_metrics([0.9, 0.8], higher_is_better=[True, True])
    before = balancer.kpi.clone()
    for values, error, message in (
        ({"c": 1.0}, UnknownNameError, "'c'"),
        ([1.0], ShapeError, "num_tasks = 2"),
        ({"a": 0.1, "b": float("inf")}, NonFiniteError, "'b'"),
    ):
        with pytest.raises(error, match=message):
            balancer.observe_metrics(values, higher_is_better=UP)
    assert torch.equal(balancer.kpi, before)


def test_running_mean_and_state():
    first, second = (DTP(2, perfect=1.0, ema_new_weight=0.25) for _ in range(2))
    for values in ([0.2, 0.4], [0.6, float("nan")], [1.0, 0.8]):
        first.observe_metrics(values, higher_is_better=[True, True])
    assert first.kpi.tolist() == pytest.approx([0.75 * (0.75 * 0.2 + 0.25 * 0.6) + 0.25, 0.75 * 0.4 + 0.25 * 0.8])
    second.load_state_dict(first.state_dict())
    assert torch.equal(second.weights(None, ONES), first.weights(None, ONES))
    first.reset()
    assert first.weights(None, ONES).tolist() == [1.0, 1.0]


def test_weights_fall_with_the_kpi_and_stay_finite_at_its_ends():
    kpi = torch.linspace(0, 1, 101, dtype=torch.float64)
    for gamma in (0.0, 0.5, 2.0):
        weights = dtp_weights(kpi, torch.full_like(kpi, gamma))
        assert bool((weights.diff() < 0).all())
        assert bool((weights > 0).all())
        assert float(weights.max()) < 6.91


def test_normalized_weights_sum_to_the_tasks_that_are_present():
    balancer = DTP(3, perfect=1.0, gamma=80.0, normalize=True)
    balancer.observe_metrics([1.0, 1.0, float("nan")], higher_is_better=[True] * 3)
    assert balancer.weights(None, ONES, present=[0, 1]).tolist() == pytest.approx([1.0, 1.0])  # not 0 / 0
    balancer = DTP(3, perfect=1.0, normalize=True)
    balancer.observe_metrics([0.3, 0.6, float("nan")], higher_is_better=[True] * 3)
    weights = balancer.weights(None, torch.ones(3, dtype=torch.float64))
    plain = torch.tensor([focal(0.3), focal(0.6), 1.0], dtype=torch.float64)
    torch.testing.assert_close(weights, 3 * plain / plain.sum())
    assert float(balancer.weights(None, ONES, present=[1, 2]).sum()) == pytest.approx(2.0)
