"""LDC-MTL: its objective and gradients term by term, normalizations, the chain of neighbors."""

import math

import pytest
import torch

from counterpoint.balancers import LDCMTL
from counterpoint.balancers.ldc_mtl import ldc_mtl_objective

LOSSES = torch.tensor([0.7, 2.5, 0.04], dtype=torch.float64)


def sigmoid(value):
    return 1 / (1 + math.exp(-value))


def derivatives(y, s, lam, detach):
    """Independent of the code: total, derivative by y and by s, written out."""
    count, total = len(y), sum(s)
    mean = sum(a * b for a, b in zip(s, y, strict=True)) / total
    value = mean + lam * sum(abs(s[i] * y[i] - s[i + 1] * y[i + 1]) for i in range(count - 1))
    by_product = [0.0] * count  # derivative of the penalty by s_i y_i
    for i in range(count - 1):
        sign = math.copysign(1.0, s[i] * y[i] - s[i + 1] * y[i + 1])
        by_product[i] += lam * sign
        by_product[i + 1] -= lam * sign
    by_y = [s[i] / total + by_product[i] * s[i] for i in range(count)]
    by_s = [(y[i] - (0.0 if detach else mean)) / total + by_product[i] * y[i] for i in range(count)]
    return value, by_y, by_s


@pytest.mark.parametrize("detach", [True, False])
def test_objective_and_gradients(detach):
    raw = [0.3, -1.0, 2.0]
    balancer = LDCMTL(3, lam=0.2, detach_sum=detach, initial=raw).double()
    s = [sigmoid(float(torch.tensor(value))) for value in raw]
    value, by_loss, by_weight = derivatives(LOSSES.tolist(), s, 0.2, detach)
    leaf = LOSSES.clone().requires_grad_()
    total = balancer.objective(leaf)
    found, *own = torch.autograd.grad(total, [leaf, *balancer.parameters()])
    assert float(total.detach()) == pytest.approx(value, rel=1e-6)  # the parameters were rounded to float32
    assert found.tolist() == pytest.approx(by_loss, rel=1e-6)
    expected = [slope * one * (1 - one) for slope, one in zip(by_weight, s, strict=True)]
    assert [float(one) for one in own] == pytest.approx(expected, rel=1e-6)


def test_without_penalty_equal_weights_are_the_mean():
    assert LDCMTL(3, lam=0.0).weights(None, LOSSES).tolist() == pytest.approx([1 / 3] * 3)
    assert LDCMTL(3, lam=0.0, initial=-80.0).weights(None, LOSSES).tolist() == pytest.approx([1 / 3] * 3)


def test_the_penalty_depends_on_the_order_of_the_tasks():
    weights = torch.ones(3, dtype=torch.float64)
    values = {float(ldc_mtl_objective(LOSSES[order], weights, lam=1.0)) for order in ([0, 1, 2], [1, 0, 2], [0, 2, 1])}
    assert len(values) == 3


def test_initial_keeps_the_first_losses():
    balancer = LDCMTL(3, normalization="initial", lam=0.0, initial=[0.0, 1.0, 2.0])
    assert float(balancer.objective(LOSSES).detach()) == pytest.approx(0.04)  # every y starts at the smallest loss
    balancer.end_epoch()
    s = [sigmoid(value) for value in (0.0, 1.0, 2.0)]
    expected = 0.04 * (s[0] * 2 + s[1] * 0.5 + s[2]) / sum(s)
    halved = LOSSES * torch.tensor([2.0, 0.5, 1.0])
    assert float(balancer.objective(halved).detach()) == pytest.approx(expected, rel=1e-6)
    scaled = LDCMTL(3, normalization="initial", initial=[0.0, 1.0, 2.0])
    scaled.weights(None, LOSSES * torch.tensor([1e3, 1e-2, 1e2]))
    weights = scaled.weights(None, halved * torch.tensor([1e3, 1e-2, 1e2])) * torch.tensor([1e3, 1e-2, 1e2])
    plain = LDCMTL(3, normalization="initial", initial=[0.0, 1.0, 2.0])
    plain.weights(None, LOSSES)
    expected = plain.weights(None, halved)
    torch.testing.assert_close(weights / weights[0], expected / expected[0])


def test_log_ratio_takes_its_reference_anew_in_each_epoch():
    balancer = LDCMTL(2, normalization="log_ratio", lam=0.0)
    assert float(balancer.objective(LOSSES[:2]).detach()) == 0.0
    assert float(balancer.objective(LOSSES[:2] * torch.tensor([2.0, 8.0])).detach()) == pytest.approx(2 * math.log(2))
    balancer.end_epoch()
    assert float(balancer.objective(LOSSES[:2] * 5).detach()) == 0.0
    assert balancer.reference.tolist() == pytest.approx([3.5, 12.5])
    assert balancer.weights(None, LOSSES[:2]).tolist() == pytest.approx([0.5 / 0.7, 0.5 / 2.5])


def test_absent_tasks_leave_the_chain_and_keep_what_is_theirs():
    balancer = LDCMTL(tasks=["a", "b", "c"], lam=1.0, normalization="initial")
    x = torch.tensor([1.0], dtype=torch.float64, requires_grad=True)
    balancer.backward({"a": 3 * (x**2).sum(), "c": (x**2).sum()})
    assert balancer.router[1].grad is None
    assert balancer.router[0].grad is not None
    assert balancer.reference.nan_to_num().tolist() == [3.0, 0.0, 1.0]
    neighbors = LDCMTL(3, lam=1.0).objective(LOSSES[[0, 2]], present=[0, 2]).detach()
    assert float(neighbors) == pytest.approx((0.7 + 0.04) / 2 + 0.5 * (0.7 - 0.04))


@pytest.mark.parametrize("normalization", ["none", "initial", "log_ratio"])
def test_a_loss_of_zero(normalization):
    balancer = LDCMTL(2, normalization=normalization)
    for losses in ([0.0, 1.0], [0.5, 0.0], [0.0, 0.0]):
        assert bool(torch.isfinite(balancer.weights(None, torch.tensor(losses))).all())
    assert bool((balancer.reference > 0).all())


def learned(steps=400, **options):
    balancer = LDCMTL(3, **options).double()
    optimizer = torch.optim.SGD(balancer.parameters(), lr=0.5)
    for _ in range(steps):
        optimizer.zero_grad()
        balancer.objective(LOSSES).backward()
        optimizer.step()
    return torch.stack(list(balancer.router)).sigmoid().detach()


def test_the_penalty_brings_weighted_losses_together():
    s = learned(lam=1.0, detach_sum=False)
    assert float((s * LOSSES).diff().abs().sum()) < 0.3 * float((0.5 * LOSSES).diff().abs().sum())


def test_with_the_sum_detached_all_weights_of_fixed_losses_fall():
    halfway, end = learned(lam=0.0, steps=200), learned(lam=0.0, steps=400)
    assert bool((end < halfway).all())
    assert bool((halfway < 0.5).all())


def test_weights_that_were_drawn_to_nothing_still_have_a_mean():
    balancer = LDCMTL(2)
    with torch.no_grad():
        for scalar in balancer.router:
            scalar.fill_(-200.0)
    torch.testing.assert_close(balancer.weights(None, torch.tensor([1.0, 3.0])), torch.tensor([0.5, 0.5]))
