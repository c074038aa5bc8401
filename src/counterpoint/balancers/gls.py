"""GLS: geometric loss strategy."""

from collections.abc import Sequence
from typing import final

from jaxtyping import Float
from torch import Tensor

from counterpoint.balancers._base import LossBalancer

_SMALLEST = 1e-12  # below it a loss would make the total, and so all other gradients, vanish


def gls_objective(losses: Float[Tensor, " K"]) -> Float[Tensor, ""]:
    """Return the geometric mean of the losses, ``exp(mean_i ln L_i)``.

    The weight of task i is ``total / (K L_i)``, so a constant factor on a loss changes the length of the update and not
    its direction. Computed from logarithms: a plain product underflows for many tasks.

    Args:
        losses: Losses, at least 0; a loss below 1e-12 counts as 1e-12 and is not trained in that step.

    Example:
        >>> import torch
        >>> gls_objective(torch.tensor([1.0, 4.0]))
        tensor(2.)

    References:
        Chennupati et al., "MultiNet++: Multi-Stream Feature Aggregation and Geometric Loss Strategy for Multi-Task
        Learning", CVPR Workshops 2019, arXiv:1904.08492. Its variant with focus tasks is left out.
    """
    return losses.clamp(min=_SMALLEST).log().mean().exp()


@final
class GLS(LossBalancer):
    """GLS: minimizes the geometric mean of the losses; see :func:`gls_objective`.

    Losses must not be negative.

    Args:
        num_tasks: Number of tasks K.
        tasks: Names of the tasks.
    """

    key = "gls"
    equation = "L = (prod_i L_i)^(1/K)"
    source = "Chennupati et al., MultiNet++, CVPR Workshops 2019, arXiv:1904.08492"
    provenance = "paper; without its variant of focus tasks"
    scale = "geometric mean: weights L / (K L_i)"
    avoid = (
        "Where a loss can be negative (refused) or comes near 0: its weight L / (K L_i) outgrows all others, and "
        "below 1e-12 that task is not trained at all. It sees no conflicts."
    )
    nonnegative_losses = True

    def __init__(self, num_tasks: int | None = None, *, tasks: Sequence[str] | None = None) -> None:
        super().__init__(num_tasks, tasks)

    def objective(self, losses: Tensor, *, present: Sequence[int] | None = None) -> Tensor:
        """Return the objective of one step; see :func:`gls_objective`."""
        self._positions(len(losses), present)
        return gls_objective(losses)
