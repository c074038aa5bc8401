"""LSB: loss scale balancing, as reconstructed."""

from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from counterpoint._checks import check_choice, check_range
from counterpoint.balancers._periodic import PeriodicLossBalancer

_NORMALIZATIONS = ("sum_k", "initial")
_LEAST, _MOST = 0.1, 10.0  # bounds of the difficulty
_SMALLEST = 1e-12  # a mean loss smaller than this, relative to that of the first period, counts as this one


def lsb_weights(
    last: Float[Tensor, " K"],
    previous: Float[Tensor, " K"],
    first: Float[Tensor, " K"],
    *,
    gamma: float = 1.0,
    normalization: str = "sum_k",
) -> Float[Tensor, " K"]:
    """Return weights for which the scales ``w_i last_i`` are as the difficulties of the tasks.

    With the difficulty ``D_i = last_i / previous_i``, held between 0.1 and 10, and 1 where it is not known:
    ``w_i = c D_i^gamma / last_i``. A task whose loss falls slowly is difficult. The factor c makes the weights add up
    to K (``"sum_k"``), or the scales to the losses of the first period (``"initial"``). A constant factor on a loss
    changes the update by a factor common to all tasks at most.

    Args:
        last: Mean loss of each task over the last period, at least 0.
        previous: The same over the period before; NaN where there is none.
        first: The same over the first period, above 0; NaN where there is none: such a task has weight 1 and takes no
            part in the factor.
        gamma: How much the difficulty counts, at least 0; with 0 all scales are the same.
        normalization: ``"sum_k"`` or ``"initial"``.

    Returns:
        Weights, positive.

    Example:
        >>> lsb_weights(torch.tensor([1.0, 0.2]), torch.tensor([1.0, 0.2]), torch.tensor([1.0, 1.0]))
        tensor([0.3333, 1.6667])

    References:
        Lee, Lee, Kim, "Learning Multiple Pixelwise Tasks Based on Loss Scale Balancing", ICCV 2021. Known are a linear
        combination, scales w_i L_i that are balanced periodically, and a difficulty from the record of losses. The
        formulas here are our reconstruction.
    """
    known = ~first.isnan()
    weights = torch.ones_like(last)
    if not bool(known.any()):
        return weights
    mean = torch.maximum(last, _SMALLEST * first)[known]
    difficulty = (last / previous)[known]
    usable = (previous > 0)[known] & difficulty.isfinite()
    difficulty = torch.where(usable, difficulty.clamp(_LEAST, _MOST), torch.ones_like(difficulty))
    scales = (gamma * difficulty.log()).softmax(dim=0)  # sum to 1
    if normalization == "initial":
        weights[known] = first[known].sum() * scales / mean
    else:
        shares = scales / mean
        weights[known] = len(mean) * shares / shares.sum()
    return weights


@final
class LSB(PeriodicLossBalancer):
    """LSB: weights that balance the scales of the losses, period by period; see :func:`lsb_weights`.

    All weights are 1 in the first period. Say when an epoch ends with :meth:`end_epoch`, or give ``period``. A task
    that is absent for a whole period keeps its means; one that was never there has weight 1 until its first period
    ended.
    Losses must not be negative.

    Args:
        num_tasks: Number of tasks K.
        tasks: Names of the tasks.
        gamma: Exponent of the difficulty, at least 0; 0 balances the scales alone.
        normalization: ``"sum_k"``: the weights add up to the number of tasks. ``"initial"``: the weighted losses add up
            to the losses of the first period; the weights then grow as the losses fall, and with them the step of an
            optimizer such as SGD, which may become unstable.
        period: Number of steps between two changes of the weights; ``end_epoch()`` is then ignored. Default: an epoch,
            ``end_epoch()`` is called.
    """

    key = "lsb"
    equation = "w_i = c D_i^gamma / last_i,  D_i = last_i / previous_i, mean losses of the last two periods"
    source = "Lee, Lee, Kim, Learning Multiple Pixelwise Tasks Based on Loss Scale Balancing, ICCV 2021"
    provenance = "our reconstruction from the abstract; difficulty, period and normalization are not the paper's text"
    scale = "weights sum to K"
    avoid = (
        "Where the paper itself is to be compared: its exact rule is not known and this is a reconstruction. "
        "Conflicts between tasks are not seen."
    )
    needs = frozenset({"epochs"})
    nonnegative_losses = True

    first: Tensor
    last: Tensor
    previous: Tensor

    def __init__(
        self,
        num_tasks: int | None = None,
        *,
        tasks: Sequence[str] | None = None,
        gamma: float = 1.0,
        normalization: str = "sum_k",
        period: int | None = None,
    ) -> None:
        super().__init__(num_tasks, tasks, period=period)
        self.gamma = check_range("LSB: gamma", gamma, low=0.0, high_open=True)
        self.normalization = check_choice("LSB: normalization", normalization, _NORMALIZATIONS)
        for name in ("first", "last", "previous"):
            self.add_state(name, torch.full((self.num_tasks,), float("nan"), dtype=torch.float64))

    def objective(self, losses: Tensor, *, present: Sequence[int] | None = None) -> Tensor:
        """Return the objective of one step; see :func:`lsb_weights`."""
        index = self._index(losses, present)
        means = (self.last[index], self.previous[index], self.first[index])
        weights = lsb_weights(*means, gamma=self.gamma, normalization=self.normalization).to(losses)
        self._record(losses, index)
        return (weights * losses).sum()

    def _close(self, means: Tensor, seen: Tensor) -> None:
        self.first.copy_(torch.where(seen & self.first.isnan() & (means > 0), means, self.first))
        self.previous.copy_(torch.where(seen, self.last, self.previous))
        self.last.copy_(torch.where(seen, means, self.last))
