"""Modulation: what a task's channel mask does to features and gradients."""

import pytest
import torch

import counterpoint as cp
from counterpoint import gradients
from counterpoint.blocks import Modulation
from counterpoint.errors import OptionError, ShapeError, UnknownNameError

SHAPES = [((5, 3), False), ((5, 3, 4, 2), False), ((5, 3, 7), False), ((5, 4, 3), True), ((3, 3, 3), True)]


def random_scales(modulation):
    with torch.no_grad():
        for scale in modulation.scales:
            scale.copy_(torch.randn(scale.shape))
    return modulation


@pytest.mark.parametrize(("shape", "last"), SHAPES)
def test_it_starts_as_the_identity(shape, last):
    x = torch.randn(shape)
    modulation = Modulation(2, 3, channels_last=last)
    assert all(torch.equal(modulation(x, task), x) for task in range(2))


@pytest.mark.parametrize(("shape", "last"), SHAPES)
def test_each_channel_is_scaled_by_its_own_factor_of_the_task(shape, last):
    x = torch.randn(shape)
    modulation = random_scales(Modulation(2, 3, channels_last=last))
    for task in range(2):
        found = modulation(x, task)
        for channel in range(3):
            factor = modulation.scales[task][channel].detach().clamp(min=0.0)
            part = (..., channel) if last else (slice(None), channel)
            assert torch.equal(found[part], x[part] * factor)


@pytest.mark.parametrize("value", [-0.5, 0.0])
def test_a_factor_at_or_below_zero_blocks_the_channel_and_its_gradient(value):
    x = torch.randn(4, 3, 2, 2, requires_grad=True)
    modulation = Modulation(2, 3)
    with torch.no_grad():
        modulation.scales[1][2] = value
    modulation(x, 1).square().sum().backward()
    assert not modulation(x, 1)[:, 2].any()
    assert not x.grad[:, 2].any()
    assert x.grad[:, :2].all()
    assert modulation.scales[1].grad[2] == 0
    assert modulation.scales[1].grad[:2].all()
    assert modulation.scales[0].grad is None


def test_parameters_count_and_belong_to_one_task_each():
    modulation = Modulation(4, 6)
    assert sum(parameter.numel() for parameter in modulation.parameters()) == 24
    trunk = torch.nn.Linear(2, 6)
    features = trunk(torch.randn(3, 2))
    losses = [modulation(features, task).square().sum() for task in range(4)]
    scope = gradients.find_scope(losses)
    assert {id(p) for p in scope.shared} == {id(p) for p in trunk.parameters()}
    assert [list(map(id, own)) for own in scope.private] == [[id(scale)] for scale in modulation.scales]
    cp.balancers.PCGrad(4).backward([*losses[:3], None])
    assert [scale.grad is None for scale in modulation.scales] == [False, False, False, True]


def test_tasks_by_name():
    modulation = random_scales(Modulation(2, 3, tasks=["depth", "edges"]))
    x = torch.randn(2, 3)
    assert torch.equal(modulation(x, "edges"), modulation(x, 1))
    with pytest.raises(UnknownNameError, match="did you mean depth"):
        modulation(x, "dept")
    with pytest.raises(UnknownNameError):
        Modulation(2, 3)(x, 2)
    with pytest.raises(UnknownNameError):
        Modulation(2, 3)(x, -1)


def test_bad_input():
    with pytest.raises(ShapeError, match=r"C = 3, got \(2, 4, 3\); tokens .* channels_last=True"):
        Modulation(2, 3)(torch.zeros(2, 4, 3), 0)
    with pytest.raises(ShapeError):
        Modulation(2, 3)(torch.zeros(3), 0)
    with pytest.raises(OptionError, match="2 different names"):
        Modulation(2, 3, tasks=["a", "a"])
    with pytest.raises(OptionError, match="channels"):
        Modulation(2, 0)
