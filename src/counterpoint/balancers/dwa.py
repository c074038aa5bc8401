"""DWA: dynamic weight average."""

from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from counterpoint._checks import check_range
from counterpoint.balancers._base import LossBalancer
from counterpoint.errors import OptionError

_PATIENCE = 10_000  # steps without the end of an epoch after which there is a warning


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
        Liu, Johns, Davison, "End-to-End Multi-Task Learning with Attention", CVPR 2019, arXiv:1803.10704, Eq. 7.
    """
    ratio = last / previous
    ratio = torch.where((previous > 0) & torch.isfinite(ratio), ratio, torch.ones_like(ratio))
    return len(ratio) * (ratio / temperature).softmax(dim=0)


@final
class DWA(LossBalancer):
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
    provenance = "paper (Eq. 7)"
    scale = "weights sum to K"
    avoid = (
        "Where losses differ in size: it looks at how fast each one falls and not at how large it is, and while all "
        "fall no two weights differ by more than e^(1/T), 1.65 for T = 2. It sees no conflicts, and without "
        "end_epoch() or period it is equal weighting."
    )
    needs = frozenset({"epochs"})

    loss_mean: Tensor
    loss_count: Tensor
    last: Tensor
    previous: Tensor
    num_steps: Tensor

    def __init__(
        self,
        num_tasks: int | None = None,
        *,
        tasks: Sequence[str] | None = None,
        temperature: float = 2.0,
        period: int | None = None,
    ) -> None:
        super().__init__(num_tasks, tasks)
        self.temperature = check_range("DWA: temperature", temperature, low=0.0, low_open=True, high_open=True)
        if period is not None and (isinstance(period, bool) or not isinstance(period, int) or period < 1):
            raise OptionError(f"DWA: period must be a whole number of steps, at least 1, or None, got {period!r}")
        self.period = period
        unknown = torch.full((self.num_tasks,), float("nan"), dtype=torch.float64)
        self.add_state("loss_mean", torch.zeros(self.num_tasks, dtype=torch.float64))  # of the epoch that runs
        self.add_state("loss_count", torch.zeros(self.num_tasks, dtype=torch.long))
        self.add_state("last", unknown)
        self.add_state("previous", unknown)
        self.add_state("num_steps", torch.zeros((), dtype=torch.long))

    def objective(self, losses: Tensor, *, present: Sequence[int] | None = None) -> Tensor:
        """Return the objective of one step; see :func:`dwa_weights`."""
        index = torch.tensor(self._positions(len(losses), present), dtype=torch.long, device=self.last.device)
        weights = dwa_weights(self.last[index], self.previous[index], temperature=self.temperature).to(losses)
        count = self.loss_count[index] + 1
        mean = self.loss_mean[index]
        self.loss_count[index] = count
        self.loss_mean[index] = mean + (losses.detach().to(mean) - mean) / count
        self.num_steps += 1
        if self.period is not None:
            if int(self.num_steps) >= self.period:
                self._close()
        elif int(self.num_steps) >= _PATIENCE:
            self.warn_once(
                "epoch",
                f"{_PATIENCE} steps without the end of an epoch, so all weights stay what they are; call end_epoch() "
                "after each epoch, or build the balancer with period=<steps>",
                UserWarning,
            )
        return (weights * losses).sum()

    def end_epoch(self) -> None:
        """Close the epoch: its mean losses become the last ones. Does nothing if ``period`` is set."""
        if self.period is None:
            self._close()

    def _close(self) -> None:
        seen = self.loss_count > 0
        self.previous.copy_(torch.where(seen, self.last, self.previous))
        self.last.copy_(torch.where(seen, self.loss_mean, self.last))
        for running in (self.loss_mean, self.loss_count, self.num_steps):
            running.zero_()
