"""Gram matrices by layer: equal to those of the rows in float64, whatever the network looks like."""

import pytest
import torch
from torch import nn

from counterpoint.blocks import MLP
from counterpoint.gradients import by_group, group_grams
from counterpoint.gradients.low_memory import pass_stretch
from counterpoint.splitting import layer_parameters, split, streams


class Skip(nn.Module):
    """A U-Net in small: paths that no place divides."""

    def __init__(self):
        super().__init__()
        self.down, self.deep, self.up = nn.Conv2d(1, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 1, 1), nn.Conv2d(5, 3, 3, 1, 1)

    def forward(self, x):
        deep = nn.functional.interpolate(self.deep(self.down(x).relu()).relu(), scale_factor=2)
        return self.up(torch.cat([x, deep], 1)).mean((2, 3))


class Recurrent(nn.Module):
    """An embedding and weights that are used at every step."""

    def __init__(self):
        super().__init__()
        self.embed, self.lstm = nn.Embedding(11, 5), nn.LSTM(5, 6, batch_first=True)

    def forward(self, x):
        return self.lstm(self.embed((x.abs() * 3).long().clamp(max=10)))[0][:, -1]


class Norms(nn.Module):
    """Normalization before and after the last matrix, one of which has statistics of its own."""

    def __init__(self):
        super().__init__()
        self.one, self.norm = nn.Linear(6, 20), nn.LayerNorm(20)
        self.two, self.batch = nn.Linear(20, 20), nn.BatchNorm1d(20)

    def forward(self, x):
        return self.batch(self.two(self.norm(self.one(x)).relu()))


class Tied(nn.Module):
    """A weight that is used twice, and a head that uses it itself."""

    def __init__(self):
        super().__init__()
        self.first, self.between = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x):
        y = self.between(self.first(x).tanh()).tanh()
        return [y, self.first(y), y.square()]


NETWORKS = {
    "mlp": (lambda: MLP((6,), widths=(30, 20)), (4, 6)),
    "norms": (Norms, (5, 6)),
    "skip": (Skip, (2, 1, 8, 8)),
    "recurrent": (Recurrent, (3, 7)),
    "tied": (Tied, (4, 6)),
    "split": (lambda: split(Norms(), ["norm"], 3), (5, 6)),
}


def problem(name, dtype=torch.float64):
    torch.manual_seed(3)
    make, shape = NETWORKS[name]
    network = make().to(dtype)
    out = network(torch.randn(*shape, dtype=dtype))
    parts = out if isinstance(out, list) else streams(out) if name == "split" else [out] * 3
    heads = [torch.randn(parts[0].shape[-1], dtype=dtype, requires_grad=True) for _ in range(3)]
    return network, [(part @ head).square().mean() for part, head in zip(parts, heads, strict=True)]


def plain(losses, groups):
    """Return the products of the rows of full backward passes, of groups that two tasks reach."""
    found = {}
    for name, leaves in groups.items():
        rows, reach = [], []
        for loss in losses:
            pieces = torch.autograd.grad(loss, leaves, retain_graph=True, allow_unused=True)
            reach.append([piece is not None for piece in pieces])
            pairs = zip(pieces, leaves, strict=True)
            rows.append(torch.cat([torch.zeros_like(p).flatten() if g is None else g.flatten() for g, p in pairs]))
        if any(sum(tasks) >= 2 for tasks in zip(*reach, strict=True)):
            rows = torch.stack(rows).double()
            found[name] = rows @ rows.T
    return found


@pytest.mark.parametrize("pays", [None, True, False])
@pytest.mark.parametrize("name", NETWORKS)
def test_equal_to_full_rows(name, pays, monkeypatch):
    for kind in ("_Product", "_Embedding"):
        if pays is not None:
            monkeypatch.setattr(f"counterpoint.gradients.layers.{kind}.pays", lambda *_: pays)
    network, losses = problem(name)
    groups = layer_parameters(network)
    found = group_grams(losses, groups)
    wanted = plain(losses, groups)
    assert list(found) == list(wanted)
    assert name != "split" or "norm" not in found
    for layer, gram in wanted.items():
        torch.testing.assert_close(found[layer], gram, rtol=1e-10, atol=1e-14)
    assert all(parameter.grad is None for parameter in network.parameters())


def test_scale_is_not_in_the_result_and_the_graph_is_kept():
    network, losses = problem("mlp")
    groups = layer_parameters(network)
    first, second = group_grams(losses, groups), group_grams(losses, groups, scale=1024.0)
    for layer, gram in first.items():
        torch.testing.assert_close(second[layer], gram, rtol=1e-12, atol=0)


def test_only_what_was_asked_for_is_differentiated(monkeypatch):
    network, losses = problem("norms")
    seen = []

    def spy(part, seeds, num_tasks):
        block = pass_stretch(part, seeds, num_tasks)
        seen.append(block)
        return block

    monkeypatch.setattr(by_group, "pass_stretch", spy)
    groups = {"two": list(network.two.parameters())}
    found = group_grams(losses, groups)
    torch.testing.assert_close(found["two"], plain(losses, groups)["two"], rtol=1e-10, atol=0)
    kept = [
        leaf for block in seen for leaf in [*block.rest, *(leaf for layer in block.layers for leaf in layer.leaves)]
    ]
    assert {id(leaf) for leaf in kept} == {id(leaf) for leaf in network.two.parameters()}


def test_a_weight_and_its_bias_in_two_groups():
    network, losses = problem("mlp")
    groups = {name: [parameter] for name, parameter in network.named_parameters()}
    wanted = plain(losses, groups)
    for name, gram in group_grams(losses, groups).items():
        torch.testing.assert_close(gram, wanted[name], rtol=1e-10, atol=1e-14)


def test_losses_that_share_nothing():
    leaves = [torch.ones(2, requires_grad=True) for _ in range(2)]
    assert group_grams([leaf.sum() for leaf in leaves], {"a": leaves}) == {}
