"""A walk over the 2-D toy problem with Adam, as papers draw it. The tests and the tool that draws use it."""

import math

import torch

from counterpoint.balancers import LookAhead
from counterpoint.testing import TOY_LOWER_BOUND, toy_losses
from counterpoint.testing.balancers import call
from oracles.toy import values_and_jacobian

EPOCH = 100  # steps, for methods that count epochs
_SERVED = {"epochs", "metrics", "look_ahead"}  # needs of methods whose step is a pure call


def walk(balancer, start, *, scales, steps, rate, own_rate=0.025, finished=lambda visited: False, pure=True):
    """Return the points visited, (steps + 1, 2); fewer if ``finished(points)``, asked every ``EPOCH`` steps.

    Both losses are lifted by their known lower bounds: that changes no gradient, and methods that need positive losses
    can be used. ``pure`` takes, where the method allows it, the pure call and an Adam in plain numbers: the same walk
    in a quarter of the time.
    """
    lift = torch.tensor([-TOY_LOWER_BOUND * scale for scale in scales], dtype=torch.float64)
    simple = not list(balancer.parameters()) and balancer.needs <= _SERVED  # further batches would have the same losses
    step = _pure(balancer, lift, scales, rate) if pure and simple else _whole(balancer, lift, scales, rate, own_rate)
    visited = [list(start)]
    for count in range(1, steps + 1):
        visited.append(step(visited[-1]))
        if count % EPOCH == 0:
            balancer.end_epoch()
            if finished(visited):
                break
    return torch.tensor(visited, dtype=torch.float64)


class _Written(torch.autograd.Function):
    """The losses with the derivative that is written out, which is faster than their graph."""

    @staticmethod
    def forward(ctx, x, scales):
        values, rows = values_and_jacobian(*x.tolist(), scales)
        ctx.rows = rows
        return torch.tensor(values, dtype=torch.float64)

    @staticmethod
    def backward(ctx, by_loss):
        return by_loss @ torch.tensor(ctx.rows, dtype=torch.float64), None


def _pure(balancer, lift, scales, rate):
    """Return the step of a method that is a function of gradients and losses."""
    mean, square, count = [0.0, 0.0], [0.0, 0.0], 0
    look_ahead = _ahead(balancer, lift, scales, rate) if "look_ahead" in balancer.needs else None

    def step(point):
        nonlocal count
        if look_ahead is not None:
            look_ahead(point)
        values, rows = values_and_jacobian(*point, scales)
        losses, jacobian = torch.tensor(values, dtype=torch.float64) + lift, torch.tensor(rows, dtype=torch.float64)
        found = call(balancer, jacobian, losses)
        direction = (found if balancer.reads == "jacobian" else found @ jacobian).tolist()
        count += 1
        moved = list(point)
        for axis, slope in enumerate(direction):
            mean[axis] = 0.9 * mean[axis] + 0.1 * slope
            square[axis] = 0.999 * square[axis] + 0.001 * slope * slope
            spread = math.sqrt(square[axis] / (1 - 0.999**count)) + 1e-8
            moved[axis] -= rate * mean[axis] / (1 - 0.9**count) / spread
        return moved

    return step


def _ahead(balancer, lift, scales, rate):
    """Return what lets a method try steps from a point."""
    x = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([x], lr=rate)  # read for its step size, never stepped

    def losses():
        return _Written.apply(x, scales) + lift

    def look_ahead(point):
        with torch.no_grad():
            x.copy_(torch.tensor(point, dtype=torch.float64))
        balancer.look_ahead(LookAhead(losses, losses, [x], optimizer))

    return look_ahead


def _whole(balancer, lift, scales, rate, own_rate):
    """Return the step as a training loop takes it, with all that a method can ask of the loop."""
    x = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    own = list(balancer.parameters())
    groups = [{"params": [x]}, *([{"params": own, "lr": own_rate}] if own else [])]
    optimizer = torch.optim.Adam(groups, lr=rate)
    more = getattr(balancer, "num_batches", 1) - 1
    features = x[None, :]

    def losses():
        read = [balancer.transform(features, task)[0] for task in range(2)]
        return torch.stack([toy_losses(point, scales)[task] for task, point in enumerate(read)]) + lift

    def step(point):
        nonlocal features
        with torch.no_grad():
            x.copy_(torch.tensor(point, dtype=torch.float64))
        if "look_ahead" in balancer.needs:
            balancer.look_ahead(LookAhead(losses, losses, [x], optimizer))
        optimizer.zero_grad()
        features = x[None, :]
        cut = {"features": features, "level": "features"} if "transform" in balancer.needs else {}
        balancer.backward(losses(), shared=[x], **cut, **({"more": [losses() for _ in range(more)]} if more else {}))
        optimizer.step()
        if "losses_after_step" in balancer.needs:
            balancer.after_step(losses().detach())
        return x.tolist()

    return step
