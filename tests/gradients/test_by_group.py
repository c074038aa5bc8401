"""Gram matrices by layer: equal to those of the rows in float64, whatever the network looks like."""

import pytest
import torch
from torch import nn

from counterpoint.blocks import MLP, ResNet18
from counterpoint.gradients import by_group, group_grams
from counterpoint.splitting import layer_parameters, split


class Skip(nn.Module):
    """A U-Net in small: paths that no place divides."""

    def __init__(self):
        super().__init__()
        self.down, self.deep, self.up = nn.Conv2d(1, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 1, 1), nn.Conv2d(5, 3, 3, 1, 1)

    def forward(self, x):
        deep = nn.functional.interpolate(self.deep(self.down(x).relu()).relu(), scale_factor=2)
        return self.up(torch.cat([x, deep], 1)).mean((2, 3))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.lstm = nn.Embedding(11, 5), nn.LSTM(5, 6, batch_first=True)

    def forward(self, x):
        return self.lstm(self.embed((x.abs() * 3).long().clamp(max=10)))[0][:, -1]


class Norms(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.norm, self.two, self.batch = nn.Linear(6, 40), nn.LayerNorm(40), nn.Linear(40, 40), nn.BatchNorm1d(40)

    def forward(self, x):
        return self.batch(self.two(self.norm(self.one(x)).relu()))


NETWORKS = {
    "mlp": (lambda: MLP(6, (30, 20)), (4, 6)),
    "norms": (Norms, (5, 6)),
    "skip": (Skip, (2, 1, 8, 8)),
    "recurrent": (Recurrent, (3, 7)),
    "resnet": (lambda: ResNet18(in_channels=1, width=4), (2, 1, 16, 16)),
    "split": (lambda: split(Norms(), ["norm"], 3), (5, 6)),
}


def plain(losses, groups):
    """One full backward pass per task and the products of flattened rows."""
    found = {}
    for name, leaves in groups.items():
        rows = []
        for loss in losses:
            pieces = torch.autograd.grad(loss, leaves, retain_graph=True, allow_unused=True)
            rows.append(torch.cat([torch.zeros(p.numel()).double() if g is None else g.flatten() for g, p in zip(pieces, leaves)]))
        rows = torch.stack(rows)
        found[name] = rows @ rows.T
    return found
