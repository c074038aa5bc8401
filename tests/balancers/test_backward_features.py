"""``features=``, ``level=`` and ``shared=``: the same update by a shorter way, or the documented other one."""

import pytest
import torch
from torch import nn

from counterpoint.balancers import Equal, GramBalancer, JacobianBalancer, PCGrad
from counterpoint.errors import GraphError, OptionError

X = torch.randn(6, 5, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
WEIGHTS = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)


class FixedGram(GramBalancer):
    key = "fixed_gram"

    def solve(self, gram, losses, present):
        return WEIGHTS[list(present)]


class FixedRows(JacobianBalancer):
    key = "fixed_rows"

    def aggregate(self, jacobian, losses, present):
        return WEIGHTS[list(present)].to(jacobian) @ jacobian


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(5, 6), nn.Linear(6, 4)
        self.heads = nn.ModuleList([nn.Linear(4, 2) for _ in range(3)])
        self.side = nn.Parameter(torch.tensor(0.3))
        self.double()

    def forward(self):
        low = torch.tanh(self.one(X))
        return low, torch.tanh(self.two(low))

    def trunk(self):
        return [*self.one.parameters(), *self.two.parameters()]


def single(net):
    _, high = net()
    return [(head(high) ** 2).mean() for head in net.heads], high


def stages(net):
    low, high = net()
    return [(h(high) ** 2).mean() + k * low.pow(3).sum() for k, h in enumerate(net.heads)], [low, high]


def chunks(net):
    _, high = net()
    a, b = high.chunk(2, dim=1)
    return [a.pow(2).sum(), b.exp().sum(), (a * b).sum()], (a, b)


def bypass(net):
    _, high = net()
    return [(h(high) ** 2).mean() * net.side ** (k + 1) for k, h in enumerate(net.heads)], high


def trunk_weight_past_the_features(net):
    _, high = net()
    return [(h(high) ** 2).mean() + (net.one.weight * k).pow(2).sum() for k, h in enumerate(net.heads)], high


CASES = [single, stages, chunks, bypass, trunk_weight_past_the_features]


def gradients(net):
    found = {name: p.grad for name, p in net.named_parameters()}
    for p in net.parameters():
        p.grad = None
    return found


def expected(net, case):
    losses, _ = case(net)
    names, leaves = zip(*net.named_parameters(), strict=True)
    total = sum(w * loss for w, loss in zip(WEIGHTS.tolist(), losses, strict=True))
    weighted = torch.autograd.grad(total, leaves, retain_graph=True, allow_unused=True)
    raw = torch.autograd.grad(sum(losses), leaves, allow_unused=True)
    return {name: r if name.startswith("heads") else w for name, w, r in zip(names, weighted, raw, strict=True)}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", [FixedGram, FixedRows])
@pytest.mark.parametrize("level", [None, "parameters", "features"])
def test_fixed_weights_give_the_weighted_gradient_on_every_way(case, kind, level):
    net = Net()
    losses, features = case(net)
    options = {} if level is None else {"features": features, "level": level}
    if kind is FixedRows and level == "features" and case in {bypass, trunk_weight_past_the_features}:
        with pytest.raises(GraphError, match="reached past the features"):
            kind(3).backward(losses, **options)
        assert all(p.grad is None for p in net.parameters())
        return
    report = kind(3).backward(losses, **options)
    found = gradients(net)
    for name, value in expected(net, case).items():
        assert (found[name] is None) == (value is None), name
        if value is not None:
            torch.testing.assert_close(found[name], value, rtol=1e-10, atol=1e-12, msg=name)
    assert report.level == (level or "parameters")


@pytest.mark.parametrize("case", CASES)
def test_gram_at_both_levels_against_the_loop(case):
    net = Net()
    for level in ("parameters", "features"):
        losses, features = case(net)
        listed = [features] if isinstance(features, torch.Tensor) else list(features)
        if level == "features" and case is stages:
            continue  # partial derivatives; tested with the rows themselves
        leaves = listed if level == "features" else [*net.trunk(), *([net.side] if case is bypass else [])]
        rows = []
        for loss in losses:
            found = torch.autograd.grad(loss, leaves, retain_graph=True, allow_unused=True)
            rows.append(
                torch.cat(
                    [(torch.zeros_like(p) if g is None else g).flatten() for g, p in zip(found, leaves, strict=True)]
                )
            )
        rows = torch.stack(rows)
        report = FixedGram(3).backward(losses, features=features, level=level)
        torch.testing.assert_close(report.gram, rows @ rows.T, rtol=1e-9, atol=1e-12)
        gradients(net)


def test_feature_gram_of_stages_holds_partial_derivatives():
    net = Net()
    losses, (low, high) = stages(net)
    cut = low.detach().requires_grad_()
    top = torch.tanh(net.two(low.detach())).detach().requires_grad_()
    separate = [(h(top) ** 2).mean() + k * cut.pow(3).sum() for k, h in enumerate(net.heads)]
    rows = []
    for loss in separate:
        pairs = zip(torch.autograd.grad(loss, [cut, top], allow_unused=True), (cut, top), strict=True)
        rows.append(torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs]))
    rows = torch.stack(rows)
    report = FixedGram(3).backward(losses, features=[low, high], level="features")
    torch.testing.assert_close(report.gram, rows @ rows.T, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("level", ["parameters", "features"])
def test_pcgrad_at_both_levels_against_explicit_projection(level):
    net = Net()
    losses, high = single(net)
    losses = [high.pow(2).mean(), losses[1] - 2 * high.pow(2).mean()]
    leaves = [high] if level == "features" else net.trunk()
    rows = torch.stack(
        [torch.cat([g.flatten() for g in torch.autograd.grad(loss, leaves, retain_graph=True)]) for loss in losses]
    )
    product = rows[0] @ rows[1]
    assert product < 0
    projected = rows[0] - product / (rows[1] @ rows[1]) * rows[1] + rows[1] - product / (rows[0] @ rows[0]) * rows[0]
    if level == "features":
        seed = projected.view_as(high)
        projected = torch.cat([g.flatten() for g in torch.autograd.grad(high, net.trunk(), seed, retain_graph=True)])
    PCGrad(2).backward(losses, features=high, level=level)
    found = torch.cat([p.grad.flatten() for p in net.trunk()])
    torch.testing.assert_close(found, projected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", [FixedGram, FixedRows])
@pytest.mark.parametrize("use_features", [False, True])
def test_shared_given_leaves_the_rest_of_the_trunk_the_plain_sum(kind, use_features):
    net = Net()
    strangers = [torch.nn.Parameter(torch.ones(2)), torch.ones(3)]
    losses, high = single(net)
    given = (p for p in [*net.two.parameters(), *strangers, *net.two.parameters()])
    kind(3).backward(losses, shared=given, features=high if use_features else None)
    found = gradients(net)
    losses, _ = single(net)
    raw = torch.autograd.grad(sum(losses), list(net.one.parameters()))
    torch.testing.assert_close([found["one.weight"], found["one.bias"]], list(raw), rtol=1e-10, atol=1e-12)
    wanted = expected(net, single)
    for name in ("two.weight", "two.bias", "heads.0.weight", "heads.2.bias"):
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-10, atol=1e-12)
    assert strangers[0].grad is None


def test_frozen_parameters_stay_without_gradient():
    net = Net()
    net.one.weight.requires_grad_(False)
    losses, high = single(net)
    FixedGram(3).backward(losses, features=high, shared=net.trunk())
    assert net.one.weight.grad is None
    assert net.one.bias.grad is not None


@pytest.mark.parametrize("level", ["parameters", "features"])
@pytest.mark.parametrize("kind", [FixedGram, FixedRows])
@pytest.mark.parametrize("wrong", ["detached", "input", "elsewhere"])
def test_wrong_features_are_refused(kind, level, wrong):
    net = Net()
    losses, high = single(net)
    features = {"detached": high.detach(), "input": X, "elsewhere": net()[1]}[wrong]
    with pytest.raises(GraphError, match=r"features: .*(trunk|heads)"):
        kind(3).backward(losses, features=features, level=level)
    assert all(p.grad is None for p in net.parameters())


def test_wrong_level_and_level_without_features():
    net = Net()
    losses, high = single(net)
    with pytest.raises(OptionError, match=r"level must be one of parameters, features, got 'feature'; did you mean"):
        FixedGram(3).backward(losses, features=high, level="feature")
    with pytest.raises(OptionError, match="needs features="):
        Equal(3).backward(losses, level="features")
    with pytest.raises(OptionError, match="needs features="):
        Equal(3).backward(losses, level="features", features=[])
    assert all(p.grad is None for p in net.parameters())


def test_one_trunk_pass_at_the_level_of_features():
    net = Net()
    passes = []
    net.one.weight.register_hook(lambda _: passes.append(1))
    losses, high = single(net)
    report = FixedGram(3).backward(losses, features=high, level="features")
    assert len(passes) == report.num_backward == 1


def test_equal_ignores_features():
    net = Net()
    losses, high = single(net)
    Equal(3).backward(losses, features=high)
    found = gradients(net)
    losses, _ = single(net)
    sum(losses).backward()
    for name, value in gradients(net).items():
        assert (found[name] is None) == (value is None)
        assert value is None or torch.equal(found[name], value)
