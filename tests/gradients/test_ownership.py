"""What is written to ``.grad`` belongs to one leaf; what nobody else has yet is checked in one call."""

import pytest
import torch
from torch import nn

from counterpoint import linalg
from counterpoint.balancers import MGDA, Equal, GradDrop, PCGrad
from counterpoint.gradients import all_finite, group_grams
from counterpoint.gradients.low_memory import low_memory_gradients
from counterpoint.gradients.write import _is_fusable, scaled_copies


@pytest.mark.parametrize("how", ["rows", "low_memory", "measured", "heads apart"])
def test_the_gradient_of_a_sum_of_two_parameters_is_theirs_alone(how):
    a, b = (nn.Parameter(torch.randn(4, 3, dtype=torch.float64)) for _ in range(2))
    p, q = (nn.Parameter(torch.randn(3, dtype=torch.float64)) for _ in range(2))
    x = torch.randn(5, 4, dtype=torch.float64)
    balancer = MGDA(2) if how != "heads apart" else PCGrad(2)  # the heads of MGDA are weighted, with the trunk
    if how in ("rows", "low_memory"):
        balancer.engine = how
    once = {}
    for count in (1, 2):
        for _ in range(count):
            z = x @ (a + b)
            losses = [(z @ (p + q)).square().mean(), z.square().mean()]
            balancer.backward(losses, **({} if how in ("rows", "low_memory") else {"measure": "last"}))
        for name, leaf in (("a", a), ("b", b), ("p", p), ("q", q)):
            if count == 1:
                once[name] = leaf.grad.clone()
            else:
                torch.testing.assert_close(leaf.grad, 2 * once[name])
            leaf.grad = None


class NothingForZeros(torch.autograd.Function):
    """The identity, whose derivative sends nothing where the gradient is zero."""

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        return gradient if bool(gradient.any()) else None


def test_tasks_whose_gradient_enters_at_a_layer_and_others_that_come_from_above():
    torch.manual_seed(0)
    first, second, third, fourth = (nn.Linear(6, 6).double() for _ in range(4))
    h = first(torch.randn(5, 6, dtype=torch.float64))
    i = second(h)
    c = third(h.tanh()) * i
    d = NothingForZeros.apply(fourth(c.relu()))
    losses = [t.square().mean() for t in (d, d + 0, h + d, h)]
    layers = [first, second, third, fourth]
    wanted = torch.zeros(4, 4, dtype=torch.float64)
    for layer in layers:
        options = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
        found = [torch.autograd.grad(loss, list(layer.parameters()), **options) for loss in losses]
        rows = [torch.cat([gradient.flatten() for gradient in own]) for own in found]
        wanted += torch.stack(rows) @ torch.stack(rows).T
    found = low_memory_gradients(losses, retain_graph=True)
    assert found is not None
    torch.testing.assert_close(found.gram(), wanted, rtol=1e-10, atol=1e-14)
    parts = group_grams(losses, {str(at): list(layer.parameters()) for at, layer in enumerate(layers)})
    torch.testing.assert_close(sum(parts.values()), wanted, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("make", [Equal, PCGrad, GradDrop], ids=lambda cls: cls.__name__)
def test_a_call_inside_autocast_is_as_precise_as_outside(make):
    found = []
    for inside in (False, True):
        torch.manual_seed(0)
        net = nn.Linear(64, 32)
        balancer = make(3, **({"generator": torch.Generator().manual_seed(1)} if make is GradDrop else {}))
        z = net(torch.randn(16, 64))
        losses = [z[:, i::3].square().mean() for i in range(3)]
        with torch.autocast("cpu", torch.bfloat16, enabled=inside):
            report = balancer.backward(losses)
        found.append((net.weight.grad, report.gram))
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-6, atol=0)
    if found[0][1] is not None:
        torch.testing.assert_close(found[1][1], found[0][1], rtol=1e-9, atol=0)


def test_autocast_around_a_pure_call_and_a_measurement():
    rows = torch.randn(3, 500, generator=torch.Generator().manual_seed(0))
    plain = GradDrop(3, generator=torch.Generator().manual_seed(1)).combine(rows)
    net = nn.Linear(64, 32)
    z = net(torch.randn(16, 64))
    losses = [z[:, i::3].square().mean() for i in range(3)]
    wanted = group_grams(losses, {"net": list(net.parameters())})["net"]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(GradDrop(3, generator=torch.Generator().manual_seed(1)).combine(rows), plain)
        assert torch.equal(group_grams(losses, {"net": list(net.parameters())})["net"], wanted)


def test_products_of_no_rows():
    assert linalg.gram(torch.zeros(0, 300)).shape == (0, 0)


class Other(torch.Tensor):
    """A kind of tensor that a call for many at once may not know."""


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), None])
@pytest.mark.parametrize("kind", ["plain", "mixed", "strided", "other"])
def test_a_fused_look_sees_what_a_plain_one_sees(bad, kind):
    tensors = [torch.ones(5), torch.full((3, 4), 3e38), torch.zeros(2)]
    if kind == "mixed":
        tensors += [torch.ones(3, dtype=torch.bfloat16), torch.full((2,), 1e300, dtype=torch.float64)]
    if kind == "strided":
        tensors.append(torch.ones(4, 3).T)
    if kind == "other":
        tensors.append(torch.ones(3).as_subclass(Other))
    if bad is not None:
        tensors[-1][..., 0] = bad
    before = [tensor.clone() for tensor in tensors]
    assert all_finite(tensors, fresh=True) == all_finite(tensors) == (bad is None)
    assert _is_fusable(tensors) == (kind in ("plain", "mixed"))
    assert all(torch.equal(a, b) or bad is not None for a, b in zip(tensors, before, strict=True))


def test_copies_of_several_kinds():
    mixed = [
        torch.ones(2),
        torch.ones(3).as_subclass(Other),
        torch.eye(2).to_sparse(),
        torch.ones(2, dtype=torch.float64),
    ]
    found = scaled_copies(mixed, [2.0, 2.0, 2.0, 3.0])
    assert [float(t.to_dense().sum()) for t in found] == [4.0, 6.0, 4.0, 6.0]
    assert scaled_copies([], []) == ()
