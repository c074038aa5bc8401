"""What is peculiar to SPMTL: losses by instance, the first threshold, the schedule."""

import pytest
import torch

from counterpoint.balancers import SPMTL, Chain, PCGrad
from counterpoint.errors import GraphError, NonFiniteError, OptionError, ShapeError

LOSSES = torch.tensor([0.1, 0.2, 0.3, 0.9], dtype=torch.float64)


def test_the_update_is_that_of_the_weighted_instances():
    x = torch.ones((), dtype=torch.float64, requires_grad=True)
    balancer = SPMTL(tasks=["a", "b"], threshold=0.5, group_penalty=0.5)
    report = balancer.backward({"a": LOSSES * x, "b": None})
    v = torch.tensor([1.0, 0.75**0.5, 1 / 3**0.5, 0.0], dtype=torch.float64)
    expected = float(v @ LOSSES / v.sum())
    assert float(x.grad) == pytest.approx(expected, rel=1e-9)  # constants for autograd: L is linear in x
    assert float(report.losses[0]) == pytest.approx(expected, rel=1e-9)
    assert report.present.tolist() == [True, False]


def test_a_task_that_is_too_hard_is_left_out_and_comes_in_later():
    x = torch.ones(2, dtype=torch.float64, requires_grad=True)
    balancer = SPMTL(2, threshold=0.25, group_penalty=0.1, growth=2.0, shrinkage=2.0)
    balancer.backward([LOSSES * x[0], (LOSSES + 0.2) * x[1]])
    assert float(x.grad[0]) > 0
    assert float(x.grad[1]) == 0.0
    balancer.end_epoch()
    assert (float(balancer.limit), float(balancer.penalty)) == (0.5, 0.05)
    x.grad = None
    balancer.backward([LOSSES * x[0], (LOSSES + 0.2) * x[1]])
    assert float(x.grad[1]) > 0


def test_with_a_high_threshold_it_is_the_mean():
    x = torch.ones((), requires_grad=True)
    SPMTL(1, threshold=10.0).backward([LOSSES.float() * x])
    assert float(x.grad) == pytest.approx(0.375)


def test_the_first_threshold_is_the_median_of_the_first_batch():
    x = torch.ones((), requires_grad=True)
    balancer = SPMTL(2)
    balancer.backward([torch.tensor([1.0, 5.0]) * x, torch.tensor([2.0, 4.0]) * x])
    assert float(balancer.limit) == pytest.approx(3.0)
    balancer.backward([torch.tensor([100.0]) * x, torch.tensor([200.0]) * x])
    assert float(balancer.limit) == pytest.approx(3.0)
    balancer.reset()
    balancer.backward([torch.tensor([1.0, 5.0, 7.0]) * x, None])
    assert float(balancer.limit) == pytest.approx(5.0)


def test_a_refused_step_sets_no_threshold():
    x = torch.ones((), requires_grad=True)
    balancer = SPMTL(2)
    with pytest.raises(NonFiniteError, match="loss of task '1' is not finite"):
        balancer.backward([torch.ones(3) * x, torch.tensor([1.0, float("nan")]) * x])
    with pytest.raises(GraphError, match="loss of task '0' has no graph"):
        balancer.backward([torch.ones(3), torch.ones(2) * x])
    with pytest.raises(OptionError, match="median loss of the first batch is -1"):
        balancer.backward([-torch.ones(3) * x, -torch.ones(2) * x])
    assert bool(torch.isnan(balancer.limit))


@pytest.mark.parametrize(("loss", "shown"), [(torch.tensor(1.0), r"\(\)"), (torch.ones(2, 2), "2, 2"), (1.0, "float")])
def test_losses_that_are_no_vector_of_instances(loss, shown):
    with pytest.raises(ShapeError, match=f"loss of task 'a' must be .N,., one loss for each instance, got .*{shown}"):
        SPMTL(tasks=["a", "b"]).backward({"a": loss})


def test_it_cannot_be_composed():
    with pytest.raises(OptionError, match="SPMTL reads more than one loss"):
        Chain(SPMTL(2), PCGrad(2))


@pytest.mark.parametrize("options", [{"threshold": 0.0}, {"group_penalty": -1.0}, {"growth": 0.9}, {"shrinkage": 0.9}])
def test_bad_options(options):
    with pytest.raises(OptionError, match=next(iter(options))):
        SPMTL(2, **options)
