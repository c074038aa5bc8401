"""A split network has features for each task, so that the level of features has nothing to balance."""

import pytest
import torch
from torch import nn

from counterpoint import architectures, balancers, losses, metrics, training
from counterpoint.errors import OptionError
from counterpoint.splitting import split
from counterpoint.tasks import Task

TASKS = [Task(name, losses.cross_entropy, {"accuracy": metrics.accuracy(3)}, 3) for name in ("a", "b")]


def network():
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 5))
    return architectures.HardSharing(trunk, {name: nn.Linear(5, 3) for name in ("a", "b")})


def batch():
    generator = torch.Generator().manual_seed(5)
    found = {"image": torch.randn(6, 4, generator=generator)}
    return found | {name: torch.randint(3, (6,), generator=generator) for name in ("a", "b")}


def step(level):
    model = split(network(), ["backbone.2"], 2, heads="heads")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    balancer = balancers.create("pcgrad", tasks=["a", "b"])
    try:
        training.training_step(model, TASKS, batch(), balancer, optimizer, level=level)
    finally:
        changed = [not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True)]
    return changed, [parameter.detach() for parameter in model.parameters()]


def test_features_level_is_refused_with_the_cure():
    with pytest.raises(OptionError, match=r"split.*level='parameters'"):
        step("features")


def test_parameters_level_works_and_equals_none():
    changed, first = step("parameters")
    assert all(changed)
    _, second = step(None)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(first, second, strict=True))
