"""The step that an optimizer would take, computed without taking it."""

from torch import Tensor, zeros_like
from torch.optim import SGD, Optimizer


def virtual_step(optimizer: Optimizer, parameter: Tensor, gradient: Tensor) -> tuple[Tensor, float]:
    """Return the change of a parameter in a step of an optimizer, and the factor of the gradient in it.

    For ``torch.optim.SGD`` this is its own rule: weight decay, momentum, dampening, Nesterov. For any other optimizer
    it is the plain step ``-lr gradient``. A parameter that the optimizer does not have stays.

    Args:
        optimizer: Read only.
        parameter: The parameter.
        gradient: Its gradient.
    """
    for group in optimizer.param_groups:
        if any(parameter is other for other in group["params"]):
            break
    else:
        return zeros_like(parameter), 0.0
    rate = float(group["lr"])
    if not isinstance(optimizer, SGD):
        return -rate * gradient, rate
    sign = -1.0 if group.get("maximize") else 1.0
    update = sign * gradient + group["weight_decay"] * parameter.detach()
    factor, momentum = rate * sign, group["momentum"]
    if momentum:
        buffer = optimizer.state.get(parameter, {}).get("momentum_buffer")
        share = 1.0 if buffer is None else 1.0 - group["dampening"]
        average = update if buffer is None else momentum * buffer + share * update
        update = update + momentum * average if group["nesterov"] else average
        factor *= 1.0 + momentum * share if group["nesterov"] else share
    return -rate * update, factor
