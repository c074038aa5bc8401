"""Weights of the instances of one task that take the easy ones first."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

_BISECTIONS = 60  # halves [1, sqrt(N)] down to the precision of float64 for any N that fits into memory


def self_paced_weights(
    losses: Float[Tensor, " N"], *, threshold: float, group_penalty: float = 0.0
) -> Float[Tensor, " N"]:
    """Return the minimizer over [0, 1]^N of ``sum_j v_j L_j - threshold sum_j v_j + group_penalty |v|``.

    With ``a_j = max(threshold - L_j, 0)``: if ``|a| <= group_penalty`` the minimum is v = 0: the task is left out.
    Otherwise ``v_j = min(1, s a_j / group_penalty)``, where ``s = |v|`` is the only root of ``|v(s)| = s`` with s > 0.
    At least one v_j is 1 there, so s lies between 1 and sqrt(N); it is found by bisection. Without the penalty v_j is
    1 for losses below the threshold and 0 for the others.

    Args:
        losses: Losses of the instances of one task, float64, on the CPU.
        threshold: Losses from here on are too hard.
        group_penalty: Weight of the Euclidean norm of v, at least 0.

    Example:
        >>> losses = torch.tensor([0.1, 0.2, 0.3, 0.9], dtype=torch.float64)
        >>> self_paced_weights(losses, threshold=0.5, group_penalty=0.5)
        tensor([1.0000, 0.8660, 0.5774, 0.0000], dtype=torch.float64)
    """
    easy = (threshold - losses).clamp(min=0)
    if group_penalty == 0:
        return (easy > 0).to(losses)
    if not float(easy.norm()) > group_penalty:
        return torch.zeros_like(losses)
    ratio = easy / group_penalty
    low, high = 1.0, math.sqrt(len(losses))
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if float((middle * ratio).clamp(max=1).norm()) > middle:
            low = middle
        else:
            high = middle
    return ((low + high) / 2 * ratio).clamp(max=1)
