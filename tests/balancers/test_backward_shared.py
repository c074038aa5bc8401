"""``shared=`` as a user writes it: ``trunk.parameters()`` is a generator, which can be read once."""

import contextlib

import pytest
import torch

from balancers.test_chain import network
from counterpoint.balancers import DBMTL, MGDA, CAGrad, Chain, GradNorm, SDMGrad, Uncertainty, Wrapped
from counterpoint.gradients import measure_gram

BUILD = {
    "gram": lambda: MGDA(3),
    "columns": lambda: DBMTL(3),
    "last layer": lambda: GradNorm(3),
    "chain": lambda: Chain(Uncertainty(3), CAGrad(3)),
    "every": lambda: Wrapped(MGDA(3), every=2),
    "three batches": lambda: SDMGrad(3),
}


def low_memory():
    balancer = MGDA(3)
    balancer.engine = "low_memory"
    return balancer


BUILD["low memory"] = low_memory


@pytest.mark.parametrize("name", BUILD)
@pytest.mark.parametrize("part", [slice(None), slice(2, 4)], ids=["whole trunk", "second layer"])
def test_a_generator_is_as_good_as_a_list(name, part):
    found = []
    for kind in (list, iter):
        trunk, heads, losses = network()
        balancer = BUILD[name]()
        for _ in range(2):
            chosen = list(trunk.parameters())[part]
            more = [losses() for _ in range(balancer.num_batches - 1)]
            with (
                pytest.warns(RuntimeWarning) if name == "low memory" and len(chosen) == 2 else contextlib.nullcontext()
            ):
                balancer.backward(losses(), shared=kind(chosen), more=more)
            balancer._warned.clear()
        found.append([p.grad for p in [*trunk.parameters(), *(p for head in heads for p in head.parameters())]])
    for first, second in zip(*found, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-12, atol=1e-14)
        assert bool(first.any())


def test_measured_parameters_as_a_generator():
    trunk, _, losses = network()
    first = MGDA(3).backward(losses(), measure=list(trunk[2].parameters()))
    second = MGDA(3).backward(losses(), measure=trunk[2].parameters())
    assert torch.equal(first.weights, second.weights)


def test_where_no_layer_pays_the_generator_is_still_there_for_the_rows():
    weight, found = torch.ones(3, dtype=torch.float64, requires_grad=True), []
    for kind in (list, iter):
        weight.grad = None
        losses = [(weight * torch.tensor([1.0, 2.0, 3.0])).square().sum(), weight[0] * -5]
        MGDA(2).backward(losses, shared=kind([weight]))
        found.append((weight.grad, measure_gram([weight.square().sum(), weight.sum()], shared=kind([weight]))))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
    assert bool(found[0][1].any())
