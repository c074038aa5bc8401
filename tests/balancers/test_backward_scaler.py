"""Gradient scaling: the same result without overflow, a skipped step with one."""

import copy

import pytest
import torch
from torch import nn

from counterpoint.balancers import Equal, GramBalancer, JacobianBalancer, LossBalancer, PCGrad


class Rows(JacobianBalancer):
    key = "rows"

    def __init__(self, num_tasks=None, *, tasks=None):
        super().__init__(num_tasks, tasks)
        self.add_state("calls", torch.zeros(()))

    def aggregate(self, jacobian, losses, present):
        self.calls += 1
        return jacobian.sum(dim=0)


class Counted(GramBalancer):
    key = "counted"

    def __init__(self, num_tasks=None, *, tasks=None):
        super().__init__(num_tasks, tasks)
        self.add_state("calls", torch.zeros(()))

    def solve(self, gram, losses, present):
        self.calls += 1
        return 1 + 0 * gram.diagonal()


class Learned(LossBalancer):
    key = "learned"

    def __init__(self, num_tasks=None, *, tasks=None):
        super().__init__(num_tasks, tasks)
        self.add_state("calls", torch.zeros(()))
        self.add_parameter("scale", [0.5] * self.num_tasks)

    def objective(self, losses, *, present=None):
        self.calls += 1
        return sum(scale * loss for scale, loss in zip(self.scale, losses, strict=True))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Linear(3, 4)
        self.heads = nn.ModuleList([nn.Linear(4, 1) for _ in range(2)])

    def forward(self):
        h = torch.tanh(self.trunk(torch.ones(2, 3)))
        return h, [(head(h) ** 2).mean() for head in self.heads]


WAYS = [None, "parameters", "features"]


def options(way, h):
    return {} if way is None else {"features": h, "level": way}


@pytest.mark.parametrize("kind", [Equal, PCGrad, Rows, Learned])
@pytest.mark.parametrize("way", WAYS)
def test_scaled_training_is_unscaled_training(kind, way):
    nets = [Net() for _ in range(1)]
    nets.append(copy.deepcopy(nets[0]))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    balancers = [kind(2), kind(2)]
    for net, balancer, scaling in zip(nets, balancers, (None, scaler), strict=True):
        optimizer = torch.optim.SGD([*net.parameters(), *balancer.parameters()], lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            h, losses = net()
            report = balancer.backward(losses, scaler=scaling, **options(way, h))
            assert not report.skipped
            if scaling is None:
                optimizer.step()
            else:
                scaling.step(optimizer)  # a new scaler would fail here if backward had not woken it
                scaling.update()
    for one, two in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-7)
    for one, two in zip(balancers[0].parameters(), balancers[1].parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", [Equal, PCGrad, Rows, Counted, Learned])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("where", ["head", "features", "trunk"])
def test_an_overflow_skips_the_step_and_does_not_raise(kind, way, where):
    net = Net()
    balancer = kind(2)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    before = copy.deepcopy(net.state_dict())

    def spoil(x):  # finite forward; the scaled gradient leaves the range of float32
        return Overflow.apply(x)

    h = net.trunk(torch.ones(2, 3))
    h = spoil(h) if where == "trunk" else h
    h = torch.tanh(h)
    losses = [(head(spoil(h) if where == "features" and k else h) ** 2).mean() for k, head in enumerate(net.heads)]
    if where == "head":
        losses[1] = spoil(net.heads[1](h)).mean()
    report = balancer.backward(losses, scaler=scaler, **options(way, h))
    assert report.skipped
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0**39
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name])
    if hasattr(balancer, "calls"):
        assert balancer.calls == 0  # the step did not take place


class Overflow(torch.autograd.Function):
    """The identity, whose gradient is 1e30 times too large."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return g * 1e30


def test_a_disabled_scaler_changes_nothing():
    net = Net()
    other = copy.deepcopy(net)
    PCGrad(2, generator=torch.Generator().manual_seed(1)).backward(net()[1])
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    PCGrad(2, generator=torch.Generator().manual_seed(1)).backward(other()[1], scaler=scaler)
    for one, two in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(one.grad, two.grad)
