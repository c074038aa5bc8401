"""The run whose loss curves are recorded: 20 steps of every balancer on three quadratics in float64."""

import torch

from balancers.cases import CASES
from counterpoint.balancers import LookAhead

STEPS = 20
SPREAD = torch.linspace(0.2, 1.8, 5, dtype=torch.float64)  # of the losses of single instances


def loss_curves() -> dict[str, list[list[float]]]:
    """Return the losses before each step, by key."""
    return {case.key: curve(case) for case in CASES}


def curve(case):
    generator = torch.Generator().manual_seed(7)
    factors = (
        torch.randn(3, 6, 6, generator=generator, dtype=torch.float64) * torch.tensor([0.3, 1.0, 2.0])[:, None, None]
    )
    centers = torch.randn(3, 6, generator=generator, dtype=torch.float64)
    x = torch.randn(6, generator=generator, dtype=torch.float64, requires_grad=True)
    balancer = case.build(3)
    if balancer.generator is not None:
        balancer.generator.manual_seed(11)
    optimizer = torch.optim.SGD([x, *balancer.parameters()], lr=0.01, momentum=0.5)
    found = []

    features = x[None, :]

    def losses_at(shift=0.0, shrink=1.0):
        read = [balancer.transform(features, task)[0] for task in range(3)]
        triples = zip(read, factors * shrink, centers, strict=True)
        return torch.stack([(f @ (z - c + shift)).square().sum() / 2 + 0.05 for z, f, c in triples])

    ahead = LookAhead(losses_at, lambda: losses_at(0.1), [x], optimizer)
    for step in range(STEPS):
        features = x[None, :]
        cut = {"features": features, "level": "features"} if "transform" in balancer.needs else {}
        balancer.look_ahead(ahead)
        losses = losses_at()
        found.append(losses.tolist())
        optimizer.zero_grad()
        more = [losses_at(shrink=0.9**i) for i in range(1, balancer.num_batches)]
        spread = SPREAD if balancer.loss_form == "instance" else SPREAD[: len(losses)]
        given = losses if balancer.loss_form == "task" else list(losses[:, None] * spread)
        balancer.backward(given, more=more, **cut)
        optimizer.step()
        balancer.after_step(losses_at().detach())
        if step % 5 == 4:
            balancer.end_epoch()
    return found
