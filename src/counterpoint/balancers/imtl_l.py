"""IMTL-L: one learned scale per task that brings every loss to 1."""

from collections.abc import Mapping, Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from counterpoint._checks import check_per_task, check_range
from counterpoint.balancers._base import LossBalancer


def imtl_l_objective(losses: Float[Tensor, " K"], log_scale: Float[Tensor, " K"]) -> Float[Tensor, ""]:
    """Return ``sum_i exp(s_i) L_i - s_i``.

    At the minimum over s, ``s_i = -ln L_i``: every scaled loss is 1, and the weight of a loss is 1 / L.

    Args:
        losses: Losses, at least 0; for a loss that stays 0 there is no minimum and s grows without end.
        log_scale: The scalar s of each task.

    Returns:
        The total; may be negative.

    Example:
        >>> imtl_l_objective(torch.tensor([1.0, 2.0]), torch.zeros(2))
        tensor(3.)

    References:
        Liu et al., "Towards Impartial Multi-task Learning", ICLR 2021, OpenReview IMPnRXEWpvr.
    """
    return (log_scale.exp() * losses - log_scale).sum()


@final
class IMTLL(LossBalancer):
    """IMTL-L: the scale of each loss is learned with the network; see :func:`imtl_l_objective`.

    The balancer has parameters: give ``balancer.parameters()`` to the optimizer, as a group of their own with
    ``weight_decay=0`` and the learning rate of the model. Losses must not be negative.

    Args:
        num_tasks: Number of tasks K.
        tasks: Names of the tasks.
        initial: First value of the learned scalars, one for all or one per task, from -80 to 80; 0 in the paper.
    """

    key = "imtl_l"
    equation = "L = sum_i exp(s_i) L_i - s_i,  s_i learned"
    source = "Liu et al., Towards Impartial Multi-task Learning, ICLR 2021"
    provenance = "paper"
    scale = "weights exp(s_i), at the fixed point 1 / L_i"
    avoid = (
        "Where a loss can be negative (refused) or comes near 0, since its weight then grows like 1 / L; or where the "
        "balancer's parameters are in no optimizer, for then nothing is learned. It sees no conflicts."
    )
    nonnegative_losses = True

    log_scale: nn.ParameterList

    def __init__(
        self,
        num_tasks: int | None = None,
        *,
        tasks: Sequence[str] | None = None,
        initial: float | Sequence[float] | Mapping[str, float] = 0.0,
    ) -> None:
        super().__init__(num_tasks, tasks)
        first = check_per_task("IMTLL: initial", initial, self.num_tasks, self.tasks)
        self.initial = initial
        self.add_parameter("log_scale", [check_range("IMTLL: initial", s, low=-80.0, high=80.0) for s in first])

    def objective(self, losses: Tensor, *, present: Sequence[int] | None = None) -> Tensor:
        """Return the objective of one step; see :func:`imtl_l_objective`."""
        positions = self._positions(len(losses), present)
        return imtl_l_objective(losses, torch.stack([self.log_scale[task] for task in positions]).to(losses))
