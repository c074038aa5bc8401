"""What the methods share that look at the mean losses of whole epochs."""

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from counterpoint.balancers._base import LossBalancer
from counterpoint.errors import OptionError

_PATIENCE = 10_000  # steps without the end of an epoch after which there is a warning


class PeriodicLossBalancer(LossBalancer):
    """Base of the loss balancers whose weights change at the end of an epoch, from the mean losses in it.

    Args:
        num_tasks: Number of tasks K.
        tasks: Names of the tasks.
        period: Number of steps that count as an epoch; ``end_epoch()`` is then ignored. Default: ``end_epoch()`` is
            called.
    """

    loss_mean: Tensor  # of the epoch that runs
    loss_count: Tensor
    num_steps: Tensor

    def __init__(
        self, num_tasks: int | None = None, tasks: Sequence[str] | None = None, *, period: int | None = None
    ) -> None:
        super().__init__(num_tasks, tasks)
        if period is not None and (isinstance(period, bool) or not isinstance(period, int) or period < 1):
            raise OptionError(
                f"{self._owner}: period must be a whole number of steps, at least 1, or None, got {period!r}"
            )
        self.period = period
        self.add_state("loss_mean", torch.zeros(self.num_tasks, dtype=torch.float64))
        self.add_state("loss_count", torch.zeros(self.num_tasks, dtype=torch.long))
        self.add_state("num_steps", torch.zeros((), dtype=torch.long))

    def end_epoch(self) -> None:
        """Close the epoch: from its mean losses come the next weights. Does nothing if ``period`` is set."""
        if self.period is None:
            self._end()

    @abstractmethod
    def _close(self, means: Tensor, seen: Tensor) -> None:
        """Take over the mean losses (K,) of an epoch, of the tasks that were in it."""

    def _index(self, losses: Tensor, present: Sequence[int] | None) -> Tensor:
        """Return the positions of the losses among the tasks."""
        return torch.tensor(self._positions(len(losses), present), dtype=torch.long, device=self.loss_mean.device)

    def _record(self, losses: Tensor, index: Tensor) -> None:
        """Count the losses of a step in the means; the last step of a period closes it."""
        count = self.loss_count[index] + 1
        mean = self.loss_mean[index]
        self.loss_count[index] = count
        self.loss_mean[index] = mean + (losses.detach().to(mean) - mean) / count
        self.num_steps += 1
        if self.period is not None:
            if int(self.num_steps) >= self.period:
                self._end()
        elif int(self.num_steps) >= _PATIENCE:
            self.warn_once(
                "epoch",
                f"{_PATIENCE} steps without the end of an epoch, so all weights stay what they are; call end_epoch() "
                "after each epoch, or build the balancer with period=<steps>",
                UserWarning,
            )

    def _end(self) -> None:
        self._close(self.loss_mean, self.loss_count > 0)
        for running in (self.loss_mean, self.loss_count, self.num_steps):
            running.zero_()
