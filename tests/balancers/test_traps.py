"""Mistakes seen in other libraries, each a test here, for every method that reads the Gram matrix."""

import pytest
import torch
from torch import nn

from balancers.cases import CASES
from counterpoint.balancers import MGDA, CAGrad, NashMTL
from counterpoint.errors import NonFiniteError

GRAM = [pytest.param(case, id=case.key) for case in CASES if case.kind == "gram"]


def network(num_tasks, dtype=torch.float32):
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5)).to(dtype)
    heads = nn.ModuleList([nn.Linear(5, 1) for _ in range(num_tasks)]).to(dtype)
    x, y = torch.randn(16, 6).to(dtype), torch.randn(16, num_tasks).to(dtype)

    def losses():
        z = trunk(x)
        return [(head(z)[:, 0] - y[:, k]).square().mean() for k, head in enumerate(heads)]

    return trunk, heads, losses


def gradients(module):
    return [parameter.grad for parameter in module.parameters()]


@pytest.mark.parametrize("case", GRAM)
@pytest.mark.parametrize("frozen", [True, False])
def test_a_parameter_of_the_trunk_that_is_unused_or_frozen(case, frozen):
    trunk, _, losses = network(3)
    trunk.register_parameter("extra", nn.Parameter(torch.ones(2)))
    if frozen:
        trunk[0].bias.requires_grad_(False)
    case.build(3).backward(losses())
    assert trunk.extra.grad is None
    assert (trunk[0].bias.grad is None) == frozen
    assert bool(torch.isfinite(trunk[2].weight.grad).all())


@pytest.mark.parametrize("case", GRAM)
def test_gradients_in_bfloat16(case):
    trunk, heads, losses = network(3, torch.bfloat16)
    case.build(3).backward(losses())
    for found in [*gradients(trunk), *gradients(heads)]:
        assert found.dtype == torch.bfloat16
        assert bool(torch.isfinite(found).all())
    assert float(trunk[0].weight.grad.float().norm()) > 0


@pytest.mark.parametrize("case", GRAM)
@pytest.mark.parametrize("scale", [1e6, 1.0, 1e-6])
def test_one_task_of_any_size(case, scale):
    trunk, _, losses = network(1)
    weights = case.build(1).backward([scale * losses()[0]]).weights
    assert float(weights[0]) > 0
    assert all(bool(torch.isfinite(found).all()) for found in gradients(trunk))


@pytest.mark.parametrize("case", GRAM)
def test_all_gradients_zero(case):
    trunk, heads, losses = network(3)
    with torch.no_grad():
        for head in heads:
            head.weight.zero_()  # no loss depends on the trunk any more
    case.build(3).backward(losses())
    assert all(not bool(found.any()) for found in gradients(trunk))
    assert all(bool(head.bias.grad.any()) for head in heads)


@pytest.mark.parametrize("case", GRAM)
def test_nan_names_the_task_and_writes_nothing(case):
    trunk, heads, losses = network(3)
    bad = losses()
    zero = trunk[0].weight[0, 0] * 0
    bad[1] = bad[1] + zero.sqrt()  # a finite loss with an infinite gradient
    balancer = case.build(3)
    before = {name: value.clone() for name, value in balancer.named_buffers()}
    with pytest.raises(NonFiniteError, match="'1'"):
        balancer.backward(bad)
    assert all(found is None for found in [*gradients(trunk), *gradients(heads)])
    for name, value in balancer.named_buffers():
        assert torch.equal(value.nan_to_num(-1.0), before[name].nan_to_num(-1.0)), name
    with pytest.raises(NonFiniteError, match="'1'"):
        balancer.backward([losses()[0], losses()[1] * float("nan"), losses()[2]])


@pytest.mark.parametrize("case", [case for case in GRAM if "degree" in case.values[0].claims])
def test_small_gradients_are_balanced_like_large_ones(case):
    """No threshold on lengths: the same direction at 1, 1e-2, ... 1e-12 of the size."""
    rows = torch.tensor([[1.0, 0.2, 0, 0], [-0.6, 0.9, 0.1, 0], [0.1, -0.3, 0.8, 0.5]], dtype=torch.float64)

    def direction(factor):
        balancer = case.build(3)
        if balancer.generator is not None:
            balancer.generator.manual_seed(0)
        weights = balancer.weights(factor**2 * (rows @ rows.T), torch.ones(3, dtype=torch.float64))
        return weights @ rows * factor ** (1 - case.claims["degree"])

    for exponent in range(2, 13, 2):
        torch.testing.assert_close(direction(10.0**-exponent), direction(1.0), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("case", GRAM)
def test_one_zero_gradient_does_not_stop_the_others(case):
    rows = torch.tensor([[1.0, 0.2, 0], [-0.3, 0.9, 0.1], [0, 0, 0]], dtype=torch.float64)
    v = case.build(3).weights(rows @ rows.T, torch.ones(3, dtype=torch.float64)) @ rows
    assert float(v.norm()) > 0.1


@pytest.mark.parametrize("case", GRAM)
def test_large_equal_and_opposed_gradients(case):
    """Squared lengths of 1e8 and more, two equal gradients, two opposed ones."""
    row = torch.tensor([[1.0, -2.0, 0.5]], dtype=torch.float64)
    losses = torch.tensor([1.0, 2.0], dtype=torch.float64)
    for rows in (1e5 * torch.cat([row, row.roll(1)]), torch.cat([row, row]), torch.cat([row, -row])):
        balancer = case.build(2)
        for _ in range(2):
            assert bool(torch.isfinite(balancer.weights(rows @ rows.T, losses)).all())


def test_forty_tasks_exactly():
    """MGDA's conditions, Nash's equation and CAGrad's ball hold to rounding with forty tasks."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(40, 60, generator=generator, dtype=torch.float64)
    rows *= torch.exp(6 * torch.rand(40, 1, generator=generator, dtype=torch.float64) - 3)
    gram = rows @ rows.T
    v = MGDA(40).weights(gram) @ rows
    assert float(((rows @ v - v @ v) / rows.norm(dim=1)).min()) >= -1e-12 * float(v.norm())
    weights = NashMTL(40, max_norm=None).weights(gram)
    torch.testing.assert_close(rows @ (weights @ rows) * weights, torch.ones(40).double(), rtol=0, atol=1e-9)
    v, mean = CAGrad(40, c=0.4).weights(gram) @ rows, rows.mean(dim=0)
    assert float((v - mean).norm()) <= 0.4 * float(mean.norm()) * (1 + 1e-9)


@pytest.mark.parametrize("case", GRAM)
def test_gradients_add_up_over_two_calls(case):
    """Accumulation: what is in .grad stays, for the trunk as for the heads, and takes no part in the balancing."""
    trunk, heads, losses = network(3)
    once, again = case.build(3), case.build(3)
    if once.generator is not None:
        again.generator.set_state(once.generator.get_state())
    once.backward(losses())
    alone = [found.clone() for found in [*gradients(trunk), *gradients(heads)]]
    for parameter in [*trunk.parameters(), *heads.parameters()]:
        parameter.grad = torch.ones_like(parameter)
    again.backward(losses())
    for found, expected in zip([*gradients(trunk), *gradients(heads)], alone, strict=True):
        torch.testing.assert_close(found, expected + 1, rtol=1e-5, atol=1e-6)
