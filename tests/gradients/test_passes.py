"""One batched pass for all tasks against one pass a task, in float64; how often each head is walked."""

import pytest
import torch
from torch import nn

from counterpoint.balancers import Equal, PCGrad
from counterpoint.gradients import find_scope, layer_gradients, measure_gram, passes, task_gradients
from counterpoint.gradients.scope import Walk


def dense(*shape):
    return torch.randn(*shape, dtype=torch.float64)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two, self.shift = nn.Linear(6, 6), nn.Linear(6, 6), nn.Parameter(torch.randn(6))

    def forward(self, x):
        h = self.one(x).relu() - self.shift * 0.5
        return h + self.two(-h) / (self.shift.sigmoid() + 1)


class Shapes(nn.Module):
    """Every operation that only moves numbers."""

    def __init__(self):
        super().__init__()
        self.linear, self.scale = nn.Linear(6, 6), nn.Parameter(torch.randn(6))

    def forward(self, x):
        h = self.linear(x).unsqueeze(0).expand(2, -1, -1).permute(1, 0, 2).transpose(0, 1)
        return torch.cat([h.reshape(-1, 6) * self.scale, -h.contiguous().view(-1, 6)]).view(len(x), -1)


class Activations(nn.Module):
    def __init__(self, inplace):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(6, 6, bias=position % 2 == 0) for position in range(9)])
        self.functions = nn.ModuleList(
            [
                *(nn.ReLU(inplace), nn.LeakyReLU(0.1), nn.ELU(), nn.GELU(), nn.GELU("tanh")),
                *(nn.SiLU(), nn.Tanh(), nn.Sigmoid(), nn.Softplus()),
            ]
        )
        self.last = nn.Hardtanh(-0.3, 0.3)

    def forward(self, x):
        for layer, function in zip(self.layers, self.functions, strict=True):
            x = function(layer(x) * 2)
        return self.last(x)


TRUNKS = {
    "mlp": lambda: nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 4), nn.Tanh()),
    "layer norm": lambda: nn.Sequential(nn.Linear(6, 9), nn.LayerNorm(9), nn.GELU(), nn.Linear(9, 4)),
    "dropout": lambda: nn.Sequential(nn.Linear(6, 9), nn.Dropout(0.5), nn.Linear(9, 4)),
    "activations": lambda: Activations(inplace=False),
    "in-place activations": lambda: Activations(inplace=True),
    "residual": Residual,
    "shapes": Shapes,
}


def both(losses, monkeypatch, **options):
    """The gradients through the batched pass and through one pass a task."""
    calls = []
    inside = passes._below
    monkeypatch.setattr(passes, "_below", lambda *args: calls.append(1) or inside(*args))
    mine = layer_gradients(losses, always=True, retain_graph=True, **options)
    assert calls == [1]
    monkeypatch.setattr(passes, "is_batchable", lambda *args: False)
    theirs = layer_gradients(losses, always=True, retain_graph=True, **options)
    assert mine is not None
    assert theirs is not None
    assert calls == [1]
    return mine, theirs


def check_equal(mine, theirs):
    torch.testing.assert_close(mine.gram(), theirs.gram(), rtol=1e-10, atol=1e-14)
    weights = torch.linspace(-1.0, 2.0, len(mine.private), dtype=torch.float64)
    assert [id(leaf) for leaf in mine.leaves] == [id(leaf) for leaf in theirs.leaves]
    for one, other in zip(mine.combine(weights), theirs.combine(weights), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-14)
    for own, others in zip(mine.private, theirs.private, strict=True):
        assert [g is None for g in own] == [g is None for g in others]
        for one, other in zip(own, others, strict=True):
            if one is not None:
                torch.testing.assert_close(one, other, rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("scale", [1.0, 1024.0])
@pytest.mark.parametrize("name", TRUNKS)
def test_one_pass_equals_one_a_task(name, scale, monkeypatch):
    torch.manual_seed(0)
    trunk = TRUNKS[name]().double()
    z = trunk(dense(5, 6))
    heads = [nn.Sequential(nn.Linear(z.shape[1], 3), nn.Tanh(), nn.Linear(3, 1)).double() for _ in range(4)]
    losses = [(head(z) - k).square().mean() for k, head in enumerate(heads)]
    check_equal(*both(losses, monkeypatch, scale=scale))


def test_every_operation_in_the_list_is_tried():
    seen = set()
    with torch.autocast("cpu", torch.bfloat16):
        casts = nn.Sequential(nn.Linear(6, 3), nn.LayerNorm(3))(torch.randn(5, 6))
    outputs = [build().double()(dense(5, 6)) for build in TRUNKS.values()] + [casts]
    for z in outputs:
        walk = Walk()
        find_scope([z.sum()], walk=walk)
        seen |= {node.name() for node in walk.masks}
    assert seen >= passes._BATCHABLE


def case_two_places(one, two, scale):
    """Heads begin at both stages of the trunk, one of which is above the other."""
    return [two.square().sum(), two.exp().sum() + one.sum(), one.pow(3).sum() * two.mean()]


def case_past_the_trunk(one, two, scale):
    return [(two * scale).square().sum(), two.exp().sum(), (two.sin() * scale).sum() + scale.square()]


def case_a_loss_within_another(one, two, scale):
    first = two.square().mean()
    return [first, (first * 3).exp() + one.mean(), two.sin().sum()]


def case_a_task_that_reaches_half(one, two, scale):
    return [one.sum(), two.square().sum() + one.square().sum(), one.exp().sum()]


@pytest.mark.parametrize(
    "case", [case_two_places, case_past_the_trunk, case_a_loss_within_another, case_a_task_that_reaches_half]
)
def test_where_heads_begin(case, monkeypatch):
    torch.manual_seed(1)
    more = {f"{name}Backward0" for name in ("Exp", "Mean", "Pow", "Sin", "Sum")}
    monkeypatch.setattr(passes, "_BATCHABLE", passes._BATCHABLE | more)
    first, second, scale = nn.Linear(6, 5).double(), nn.Linear(5, 4).double(), nn.Parameter(dense(()))
    one = first(dense(5, 6)).tanh()
    losses = case(one, second(one).tanh(), scale)
    if case is case_a_task_that_reaches_half:  # one task has the second stage for itself
        losses.append(second(one).square().mean())
    check_equal(*both(losses, monkeypatch))


def small_net(rows=5):
    torch.manual_seed(2)
    trunk = nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 64), nn.Tanh()).double()
    heads = nn.ModuleList([nn.Linear(64, 1) for _ in range(3)]).double()
    return trunk, heads, dense(rows, 6)


@pytest.mark.parametrize("hook", [lambda g: g * (2.0 if float(g.abs().sum()) > 0 else 0.0), lambda g: g.clamp(min=0)])
def test_a_hook_inside_counts_whether_or_not_a_batch_can_pass_it(hook, monkeypatch):
    """The first looks at the numbers, so no batch can pass it; the second works on a batch. Each acts once."""
    trunk, heads, x = small_net()
    first = trunk[0](x)
    hidden = trunk[1](first)
    second = trunk[2](hidden)
    z = trunk[3](second)
    for tensor in (first, hidden, second, z):
        tensor.register_hook(hook)
    losses = [(head(z) - 1).square().mean() for head in heads]
    found = layer_gradients(losses, always=True, retain_graph=True)
    assert found is not None
    jacobian = task_gradients(losses, shared=found.leaves, retain_graph=True).jacobian
    monkeypatch.setattr(passes, "is_batchable", lambda *args: False)
    alone = layer_gradients(losses, always=True, retain_graph=True)
    assert alone is not None
    torch.testing.assert_close(alone.gram(), jacobian @ jacobian.T, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(found.gram(), jacobian @ jacobian.T, rtol=1e-10, atol=1e-14)
    with_features = task_gradients(losses, features=[z], retain_graph=True).jacobian
    torch.testing.assert_close(with_features @ with_features.T, jacobian @ jacobian.T, rtol=1e-10, atol=1e-14)


class Counted(torch.autograd.Function):
    """The identity; counts its backward passes."""

    @staticmethod
    def forward(ctx, x, counts, key):
        ctx.counts, ctx.key = counts, key
        return x.clone()

    @staticmethod
    def backward(ctx, *grad_outputs):
        ctx.counts[ctx.key] = ctx.counts.get(ctx.key, 0) + 1
        return grad_outputs[0], None, None


@pytest.mark.parametrize("given", [list, torch.stack, lambda losses: dict(zip("abc", losses, strict=True))])
@pytest.mark.parametrize("options", ["nothing", "features", "level"])
def test_each_head_is_walked_once(given, options):
    """K backward passes of K heads, not K x K, however the losses are given."""
    for balancer in (PCGrad(3), Equal(3)):
        trunk, heads, x = small_net()
        z, counts = trunk(x), {}
        losses = [Counted.apply(head(z), counts, k).square().mean() for k, head in enumerate(heads)]
        extra = {"nothing": {}, "features": {"features": z}, "level": {"features": z, "level": "features"}}[options]
        balancer.backward(given(losses), **extra)
        assert counts == {0: 1, 1: 1, 2: 1}


@pytest.mark.parametrize(("rows", "inside", "expected"), [(5, False, True), (300, False, False), (5, True, False)])
def test_when_all_tasks_pass_at_once(rows, inside, expected, monkeypatch):
    """Not with many rows, where it costs more than it saves, and not through an operation that is not known."""
    trunk, heads, x = small_net(rows)
    calls = []
    monkeypatch.setattr(passes, "_through_frontier", lambda *args, **options: calls.append(1))
    z = trunk(x)
    if inside:
        z = Counted.apply(z, {}, 0)
    losses = [(head(z) - 1).square().mean() for head in heads]
    try:
        layer_gradients(losses, always=True)
    except AttributeError:  # nothing came back
        assert expected
    assert bool(calls) == expected


def test_the_graph_is_freed():
    trunk, heads, x = small_net()
    z = trunk(x)
    losses = [(head(z) - 1).square().mean() for head in heads]
    PCGrad(3).backward(losses)
    with pytest.raises(RuntimeError, match="second time"):
        losses[0].backward()


@pytest.mark.parametrize("with_features", [False, True])
def test_measuring_takes_the_layers_and_keeps_the_graph(with_features, monkeypatch):
    trunk, heads, x = small_net()
    z = trunk(x)
    losses = [(head(z) - 1).square().mean() for head in heads]
    features = [z] if with_features else []
    expected = task_gradients(losses, features=features, retain_graph=True).gram()
    monkeypatch.setattr("counterpoint.gradients.products.task_gradients", None)  # the rows are not made
    for _ in range(2):
        torch.testing.assert_close(measure_gram(losses, features=features), expected, rtol=1e-10, atol=1e-14)
    PCGrad(3).backward(losses)
