"""A step that is tried and taken back."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from counterpoint.errors import OptionError


def learning_rates(owner: str, parameters: Sequence[nn.Parameter], optimizer: Optimizer | None) -> list[float]:
    """Return the learning rate of each parameter, 0 for those that the optimizer does not have.

    Raises:
        OptionError: If there is no optimizer.
    """
    if optimizer is None:
        raise OptionError(f"{owner}: pass the optimizer to observe(...); its learning rate is the length of the step")
    rates = {id(p): float(group["lr"]) for group in optimizer.param_groups for p in group["params"]}
    return [rates.get(id(p), 0.0) for p in parameters]


@torch.no_grad()
def try_step(
    owner: str,
    parameters: Sequence[nn.Parameter],
    grads: Sequence[Tensor | None],
    optimizer: Optimizer | None,
    *,
    use_optimizer_state: bool,
) -> None:
    """Move the parameters that have a gradient: by the optimizer itself, or by plain gradient descent at its rate."""
    rates = learning_rates(owner, parameters, optimizer)
    if use_optimizer_state and optimizer is not None:
        for p, grad in zip(parameters, grads, strict=True):
            p.grad = None if grad is None else grad.detach().clone()
        optimizer.step()
        return
    for p, grad, rate in zip(parameters, grads, rates, strict=True):
        if grad is not None:
            p.sub_(grad, alpha=rate)
