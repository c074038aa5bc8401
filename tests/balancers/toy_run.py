"""A walk over the 2-D toy problem with Adam, as papers draw it. The tests and the tool that draws use it."""

import torch

from counterpoint.testing import TOY_LOWER_BOUND
from counterpoint.testing.balancers import call
from oracles.toy import values_and_jacobian

EPOCH = 100  # steps, for methods that count epochs


def walk(balancer, start, *, scales, steps, rate, own_rate=0.025, finished=lambda visited: False):
    """Return the points visited, (steps + 1, 2); fewer if ``finished(points)``, asked every ``EPOCH`` steps.

    Both losses are lifted by their known lower bounds: that changes no gradient, and methods that need positive losses
    can be used.
    """
    x = torch.tensor(start, dtype=torch.float64, requires_grad=True)
    lift = torch.tensor([-TOY_LOWER_BOUND * scale for scale in scales], dtype=torch.float64)
    own = list(balancer.parameters())
    groups = [{"params": [x]}, *([{"params": own, "lr": own_rate}] if own else [])]
    optimizer = torch.optim.Adam(groups, lr=rate)
    visited = [x.tolist()]
    for step in range(1, steps + 1):
        values, rows = values_and_jacobian(*visited[-1], scales)
        losses, jacobian = torch.tensor(values, dtype=torch.float64) + lift, torch.tensor(rows, dtype=torch.float64)
        if own:  # they get gradients in backward only; the plane that touches the losses has the same ones
            optimizer.zero_grad()
            balancer.backward(jacobian @ (x - x.detach()) + losses)
        else:  # the same update in a third of the time
            found = call(balancer, jacobian, losses)
            x.grad = found if balancer.reads == "jacobian" else found @ jacobian
        optimizer.step()
        visited.append(x.tolist())
        if step % EPOCH == 0:
            balancer.end_epoch()
            if finished(visited):
                break
    return torch.tensor(visited, dtype=torch.float64)
