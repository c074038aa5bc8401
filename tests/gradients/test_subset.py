"""Which parameters count as the last shared layer, and the task gradients of these alone."""

import pytest
import torch
from torch import nn

from counterpoint import gradients
from counterpoint.errors import GraphError


def names(net, losses, **options):
    by_leaf = {parameter: name for name, parameter in net.named_parameters()}
    return {by_leaf[leaf] for leaf in gradients.last_layer(losses, **options)}


class Net(nn.Module):
    """A trunk with two linear heads on its flattened output."""

    def __init__(self, trunk, x):
        super().__init__()
        self.trunk, self.x = trunk, x
        width = trunk(x).flatten(1).shape[1]
        self.heads = nn.ModuleList([nn.Linear(width, 2) for _ in range(2)])

    def features(self):
        return self.trunk(self.x)

    def losses(self, features):
        return [(head(features.flatten(1)) ** 2).mean() for head in self.heads]


class Block(nn.Module):
    """A residual block with a projection that runs last, or none."""

    def __init__(self, *, project):
        super().__init__()
        self.one, self.two = nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(2)
        self.project = nn.Conv2d(2, 2, 1) if project else nn.Identity()

    def forward(self, x):
        return torch.relu(self.norm(self.two(torch.relu(self.one(x)))) + self.project(x))


class Scaled(nn.Module):
    """A linear layer, then a layer scale, a position embedding and a norm over two axes, all of more than one axis."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.scale, self.position = nn.Parameter(torch.ones(1, 4)), nn.Parameter(torch.ones(1, 3, 4))
        self.norm = nn.LayerNorm([3, 4])

    def forward(self, x):
        return self.norm(self.linear(x) * self.scale + self.position)


class Twice(nn.Module):
    """A layer that is used before and after another one."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.one(torch.tanh(self.two(torch.tanh(self.one(x)))))


IMAGE, TOKENS, ROWS = torch.randn(2, 2, 5, 5), torch.randn(2, 3, 4), torch.randn(3, 4)


def transformer(*, norm_first):
    return nn.TransformerEncoderLayer(4, 2, 8, 0.0, batch_first=True, norm_first=norm_first)


@pytest.mark.parametrize(
    ("trunk", "x", "expected"),
    [
        (lambda: nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3), nn.Tanh()), ROWS, {"2.weight", "2.bias"}),
        (lambda: nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3, bias=False), nn.BatchNorm1d(3)), ROWS, {"1.weight"}),
        (lambda: nn.Sequential(nn.Linear(4, 1), nn.LayerNorm(1)), ROWS, {"0.weight", "0.bias"}),
        (lambda: Block(project=False), IMAGE, {"two.weight"}),
        (lambda: Block(project=True), IMAGE, {"project.weight", "project.bias"}),
        (lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.PReLU()), IMAGE, {"0.weight", "0.bias"}),
        (lambda: transformer(norm_first=False), TOKENS, {"linear2.weight", "linear2.bias"}),
        (lambda: transformer(norm_first=True), TOKENS, {"linear2.weight", "linear2.bias"}),
        (Scaled, TOKENS, {"linear.weight", "linear.bias"}),
        (Twice, ROWS, {"one.weight", "one.bias"}),
        (lambda: nn.LayerNorm(4), ROWS, {"weight", "bias"}),  # nothing else is there
    ],
)
def test_last_layer_of_a_trunk(trunk, x, expected):
    net = Net(trunk(), x)
    expected = {f"trunk.{name}" for name in expected}
    assert names(net, net.losses(net.features())) == expected
    features = net.features()
    assert names(net, net.losses(features), features=[features]) == expected


def test_among_given_parameters_only():
    net = Net(nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3)), ROWS)
    given = list(net.trunk[0].parameters())
    assert names(net, net.losses(net.features()), shared=given) == {"trunk.0.weight", "trunk.0.bias"}


def test_a_weight_tied_to_the_head_of_one_task_is_not_the_last_layer():
    embed, layer, head = nn.Embedding(6, 4), nn.Linear(4, 4), nn.Linear(4, 1)
    net = nn.ModuleList([embed, layer, head])
    h = torch.tanh(layer(embed(torch.tensor([1, 2, 3]))))
    losses = [(h @ embed.weight.T).square().mean(), head(h).square().mean()]
    assert names(net, losses) == {"1.weight", "1.bias"}


def test_a_layer_that_each_task_applies_by_itself_is_shared():
    layer, common = nn.Linear(4, 4), nn.Linear(4, 2)
    net = nn.ModuleList([layer, common])
    h = layer(ROWS)
    assert names(net, [common(h).sum(), common(h * 2).square().sum()]) == {"1.weight", "1.bias"}


def test_nothing_shared():
    losses = [nn.Linear(4, 1)(ROWS).sum() for _ in range(2)]
    assert gradients.last_layer(losses) == []
    assert gradients.subset_rows(losses, []).shape == (2, 0)


@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_rows_are_the_gradients_of_these_leaves(scale):
    net = Net(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), ROWS).double()
    net.x = net.x.double()
    losses = net.losses(net.features())
    leaves = [net.trunk[2].bias, net.trunk[0].weight, net.heads[1].bias]  # the last one reached by one task only
    seen = []
    net.trunk[2].weight.register_hook(lambda _: seen.append(1))
    rows = gradients.subset_rows(losses, leaves, scale=scale)
    assert not seen
    for row, loss in zip(rows, losses, strict=True):
        found = torch.autograd.grad(loss, leaves, retain_graph=True, allow_unused=True)
        dense = [torch.zeros_like(p) if g is None else g for g, p in zip(found, leaves, strict=True)]
        torch.testing.assert_close(row, torch.cat([g.flatten() for g in dense]), rtol=1e-12, atol=1e-15)


def test_leaves_that_make_no_sense():
    net = Net(nn.Linear(4, 3), ROWS)
    losses = net.losses(net.features())
    with pytest.raises(GraphError, match="1 of the 1 tensors need no gradient"):
        gradients.subset_rows(losses, [torch.ones(2)])
    with pytest.raises(GraphError, match="no loss reaches any of the 1"):
        gradients.subset_rows(losses, [nn.Parameter(torch.ones(2))])
