"""The leaves that a loss balancer writes to."""

import torch
from torch import nn

from counterpoint.balancers import Equal
from counterpoint.gradients import find_leaves


def test_an_element_of_a_stack_reaches_its_own_head_only():
    trunk, heads = nn.Linear(3, 4), [nn.Linear(4, 1) for _ in range(2)]
    z = trunk(torch.randn(5, 3))
    stacked = torch.stack([head(z).square().mean() for head in heads])
    found = {id(leaf) for leaf in find_leaves([stacked.unbind()[0]])}
    assert found == {id(p) for module in (trunk, heads[0]) for p in module.parameters()}
    Equal(2).backward([stacked.unbind()[0], None])
    assert heads[1].weight.grad is None  # not zero, which an optimizer with momentum would act on
