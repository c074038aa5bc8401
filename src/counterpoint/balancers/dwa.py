"""DWA: dynamic weight average."""

from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from counterpoint._checks import check_range
from counterpoint.balancers._periodic import PeriodicLossBalancer


def dwa_weights(
    last: Float[Tensor, " K"], previous: Float[Tensor, " K"], *, temperature: float = 2.0
) -> Float[Tensor, " K"]:
    """Return weights that are larger for tasks whose loss fell more slowly.

    With ``r_i = last_i / previous_i`` the weights are ``K softmax(r / temperature)``. A task without two means, or with
    a mean before last that is not positive, has r_i = 1.

    Args:
        last: Mean loss of each task over the last epoch; NaN where there is none.
        previous: The same over the epoch before.
        temperature: Larger is more even, above 0.

    Returns:
        Weights, positive, summing to K.

    Example:
        >>> dwa_weights(torch.tensor([1.0, 1.0]), torch.tensor([2.0, 1.0]))
        tensor([0.8756, 1.1244])

    References:
        Liu, Johns, Davison, "End-to-End Multi-Task Learning with Attention", CVPR 2019, arXiv:1803.10704.
    """
    ratio = last / previous
    ratio = torch.where((previous > 0) & torch.isfinite(ratio), ratio, torch.ones_like(ratio))
    return len(ratio) * (ratio / temperature).softmax(dim=0)


@final
class DWA(PeriodicLossBalancer):
    """DWA: weights from how fast each loss fell between the last two epochs; see :func:`dwa_weights`.

    All weights are 1 during the first two epochs. Say when an epoch ends with :meth:`end_epoch`, or give ``period``. A
    task that is absent for a whole epoch keeps its means.

    Args:
        num_tasks: Number of tasks K.
        tasks: Names of the tasks.
        temperature: Temperature T of the softmax, above 0; 2 in the paper.
        period: Number of steps that count as an epoch; ``end_epoch()`` is then ignored. Default: ``end_epoch()`` is
            called.
    """

    key = "dwa"
    equation = "w = K softmax(r / T),  r_i = mean loss of the last epoch / mean loss of the epoch before"
    source = "Liu, Johns, Davison, End-to-End Multi-Task Learning with Attention, CVPR 2019, arXiv:1803.10704"
    provenance = "paper"
    scale = "weights sum to K"
    avoid = (
        "Where losses differ in size: it looks at how fast each one falls and not at how large it is, and while all "
        "fall no two weights differ by more than e^(1/T), 1.65 for T = 2. It sees no conflicts, and without "
        "end_epoch() or period it is equal weighting."
    )
    needs = frozenset({"epochs"})

    last: Tensor
    previous: Tensor

    def __init__(
        self,
        num_tasks: int | None = None,
        *,
        tasks: Sequence[str] | None = None,
        temperature: float = 2.0,
        period: int | None = None,
    ) -> None:
        super().__init__(num_tasks, tasks, period=period)
        self.temperature = check_range("DWA: temperature", temperature, low=0.0, low_open=True, high_open=True)
        unknown = torch.full((self.num_tasks,), float("nan"), dtype=torch.float64)
        self.add_state("last", unknown)
        self.add_state("previous", unknown)

    def objective(self, losses: Tensor, *, present: Sequence[int] | None = None) -> Tensor:
        """Return the objective of one step; see :func:`dwa_weights`."""
        index = self._index(losses, present)
        weights = dwa_weights(self.last[index], self.previous[index], temperature=self.temperature).to(losses)
        self._record(losses, index)
        return (weights * losses).sum()

    def _close(self, means: Tensor, seen: Tensor) -> None:
        self.previous.copy_(torch.where(seen, self.last, self.previous))
        self.last.copy_(torch.where(seen, means, self.last))
