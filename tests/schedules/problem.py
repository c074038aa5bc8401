"""A small network with a trunk, a norm and three heads, and a counter of what a schedule does with it."""

import torch
from torch import nn

from counterpoint import balancers
from schedules.cases import NAMES


class Problem:
    def __init__(self, names=NAMES, *, balancer="equal", optimizer="SGD", absent=(), form=dict, seed=0):
        torch.manual_seed(seed)
        self.names = list(names)
        self.trunk = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh())
        self.heads = nn.ModuleDict({name: nn.Linear(6, 1) for name in self.names})
        self.model = nn.ModuleDict({"trunk": self.trunk, "heads": self.heads}).double()
        self.balancer = balancers.create(balancer, tasks=self.names, **seeded(balancer))
        kind = {"SGD": {"lr": 0.1, "momentum": 0.9}, "Adam": {"lr": 0.01}}[optimizer]
        parameters = [*self.model.parameters(), *self.balancer.parameters()]
        self.optimizer = getattr(torch.optim, optimizer)(parameters, **kind)
        self.absent, self.form = set(absent), form
        self.forwards = self.steps = 0
        self.optimizer.register_step_post_hook(lambda *_: setattr(self, "steps", self.steps + 1))
        self.batches = torch.Generator().manual_seed(5)

    def batch(self):
        x = torch.randn(8, 4, generator=self.batches, dtype=torch.float64)
        targets = {
            name: torch.randn(8, 1, generator=self.batches, dtype=torch.float64) + at
            for at, name in enumerate(self.names)
        }

        def compute():
            self.forwards += 1
            z = self.trunk(x)
            losses = {
                name: None if name in self.absent else (self.heads[name](z) - targets[name]).square().mean()
                for name in self.names
            }
            if self.form is dict:
                return {name: loss for name, loss in losses.items() if loss is not None}
            return self.form(losses.values())

        return compute

    def plain_step(self, compute, tasks):
        losses = compute()
        self.optimizer.zero_grad()
        self.balancer.backward({name: losses.get(name) if name in tasks else None for name in self.names})
        self.optimizer.step()

    def state(self):
        return {**self.model.state_dict(), **{f"balancer.{k}": v for k, v in self.balancer.named_parameters()}}


def seeded(name):
    random = "generator" in balancers.BALANCERS.get(name).__init__.__code__.co_varnames
    return {"generator": torch.Generator().manual_seed(1)} if random else {}


def same(first, second):
    a, b = first.state(), second.state()
    return all(torch.equal(a[name], b[name]) for name in a)
