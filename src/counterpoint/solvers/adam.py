"""Adam on a handful of numbers, for balancers that learn weights outside the optimizer of the network."""

import dataclasses

import torch
from jaxtyping import Float
from torch import Tensor

_BETAS = (0.9, 0.999)  # the defaults of Adam, which the released codes of such methods use
_EPS = 1e-8


@dataclasses.dataclass(frozen=True)
class Moments:
    """What Adam remembers of each number.

    Attributes:
        first: Moving average of the gradient, (K,).
        second: Moving average of its square, (K,).
        count: Steps that each number has taken, (K,).
    """

    first: Tensor
    second: Tensor
    count: Tensor


def adam_step(
    values: Float[Tensor, " K"],
    gradient: Float[Tensor, " K"],
    moments: Moments,
    *,
    learning_rate: float,
    eps: float = _EPS,
) -> tuple[Float[Tensor, " K"], Moments]:
    """Return the values after one step of Adam, and its new moments; every entry counts its own steps.

    Args:
        values: The numbers before the step.
        gradient: Their gradient; add ``decay * values`` for coupled weight decay.
        moments: What is remembered.
        learning_rate: Step size; the first step of an entry is this long, whatever its gradient is.
        eps: Added to the root of the second moment, at least 0. With 0 the unit of the gradient does not matter, and an
            entry that never had a gradient stays.

    Example:
        >>> zero = torch.zeros(2, dtype=torch.float64)
        >>> adam_step(zero, torch.tensor([3.0, -1e-3]).double(), Moments(zero, zero, zero), learning_rate=0.5)[0]
        tensor([-0.5000,  0.5000], dtype=torch.float64)

    References:
        Kingma, Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015, arXiv:1412.6980.
    """
    count = moments.count + 1
    first = torch.lerp(gradient, moments.first, _BETAS[0])
    second = torch.lerp(gradient.square(), moments.second, _BETAS[1])
    steps = count.to(values)
    root = (second / (1 - _BETAS[1] ** steps)).sqrt() + eps
    change = torch.where(root > 0, first / torch.where(root > 0, root, 1.0), 0.0) / (1 - _BETAS[0] ** steps)
    return values - learning_rate * change, Moments(first, second, count)
