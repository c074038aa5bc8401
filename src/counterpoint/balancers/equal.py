"""Equal weighting."""

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from counterpoint.balancers._base import LossBalancer


@final
class Equal(LossBalancer):
    """Equal weighting: the plain sum of the losses, the baseline that every method has to beat.

    ``balancer.backward(losses)`` gives the gradients of ``sum(losses).backward()``, bit for bit.

    Args:
        num_tasks: Number of tasks K.
        tasks: Names of the tasks.

    References:
        Caruana, "Multitask Learning", Machine Learning 28, 1997. As a strong baseline: Kurin et al., NeurIPS 2022,
        arXiv:2201.04122; Xin et al., NeurIPS 2022, arXiv:2209.11379. Some papers divide by K; this is the sum.
    """

    key = "equal"
    equation = "L = sum_i L_i"
    source = "Caruana, Multitask Learning, Machine Learning 1997"
    provenance = "folklore baseline"
    scale = "sum"
    avoid = (
        "Where losses differ in size or gradients conflict: the task with the longest gradient decides, and nothing "
        "keeps the others from getting worse."
    )

    def __init__(self, num_tasks: int | None = None, *, tasks: Sequence[str] | None = None) -> None:
        super().__init__(num_tasks, tasks)

    def objective(self, losses: Tensor, *, present: Sequence[int] | None = None) -> Tensor:
        """Return the sum of the losses."""
        self._positions(len(losses), present)
        return losses.sum()

    def _differentiate(self, losses: Tensor, present: tuple[int, ...]) -> tuple[Tensor, list[Tensor | None]]:
        self._positions(len(losses), present)
        return torch.ones_like(losses), []
