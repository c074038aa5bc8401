"""SPMTL: self-paced multi-task learning, which takes easy instances and easy tasks first."""

from collections.abc import Mapping, Sequence
from typing import final

import torch
from torch import Tensor

from counterpoint._checks import check_range
from counterpoint.balancers._base import LossBalancer
from counterpoint.balancers._losses import Losses, align
from counterpoint.errors import OptionError, ShapeError
from counterpoint.solvers.self_paced import self_paced_weights


@final
class SPMTL(LossBalancer):
    """SPMTL: instances and tasks are admitted by how easy they are, and ever more of them.

    Each loss given to ``backward`` is the vector (N,) of the losses of the instances of a task, or ``None``. Their
    weights v are those of :func:`~counterpoint.solvers.self_paced.self_paced_weights`, constants for autograd, and the
    loss of the task is ``sum_j v_j L_j / max(sum_j v_j, 1)``, 0 for a task left out; the total is their sum. After
    each epoch (:meth:`end_epoch`) the threshold grows and the penalty shrinks, so that in the end all are in. Losses in
    the report are those of the tasks after weighting.

    In a distributed run each process weighs its own instances; give ``threshold`` there, since the start below would
    differ. Data need a loss per instance: ``loss(..., reduction="none")``.

    Args:
        num_tasks: Number of tasks K.
        tasks: Names of the tasks.
        threshold: First threshold (lambda), above 0: losses from there on are hard. Default: the median of the losses
            of the first batch, all tasks together.
        group_penalty: First penalty (gamma) on the norm of a task's weights, at least 0. Compare it with the norm of
            ``threshold - L`` over the easy instances of a batch: a task whose norm is below is left out. 0 selects
            instances only.
        growth: Factor of the threshold after each epoch, at least 1.
        shrinkage: Divisor of the penalty after each epoch, at least 1.

    References:
        Li, Yan, Wei, Dong, Liu, Zha, "Self-Paced Multi-Task Learning", AAAI 2017, arXiv:1604.01474. The paper's
        objective sums over the data set and alternates with full training; here the weights are those of each batch.
        The constants of the two terms, their schedule and the defaults are our reading.
    """

    key = "spmtl"
    equation = "min over v of sum_ij v_ij L_ij - lambda sum_i |v_i|_1 + gamma sum_i |v_i|_2,  v in [0, 1]"
    source = "Li et al., Self-Paced Multi-Task Learning, AAAI 2017, arXiv:1604.01474"
    provenance = (
        "our reading: regularizer as in the paper, its constants, schedule and the use by batches reconstructed"
    )
    scale = "sum over tasks of weighted means over instances"
    avoid = (
        "Where samples have no loss of their own, or where labels are clean and classes rare: hard samples "
        "are left out at first, and whole tasks with them."
    )
    needs = frozenset({"epochs"})
    loss_form = "instance"

    limit: Tensor
    penalty: Tensor

    def __init__(
        self,
        num_tasks: int | None = None,
        *,
        tasks: Sequence[str] | None = None,
        threshold: float | None = None,
        group_penalty: float = 0.1,
        growth: float = 1.1,
        shrinkage: float = 1.1,
    ) -> None:
        super().__init__(num_tasks, tasks)
        self.threshold = threshold
        if threshold is not None:
            check_range("SPMTL: threshold", threshold, low=0.0, low_open=True, high_open=True)
        self.group_penalty = check_range("SPMTL: group_penalty", group_penalty, low=0.0, high_open=True)
        self.growth = check_range("SPMTL: growth", growth, low=1.0, high_open=True)
        self.shrinkage = check_range("SPMTL: shrinkage", shrinkage, low=1.0, high_open=True)
        start = float("nan") if threshold is None else threshold  # NaN until the first batch
        self.add_state("limit", torch.tensor(start, dtype=torch.float64))
        self.add_state("penalty", torch.tensor(group_penalty, dtype=torch.float64))

    def scalars(self, losses: Losses) -> Losses:
        """Return the loss of each task: the weighted mean over its instances.

        Raises:
            ShapeError: If a loss is no vector of instances.
            OptionError: If no threshold was given and the losses of the first batch are not above 0.
        """
        names, given = align(self._owner, self.num_tasks, self._names, losses)
        values = [self._instances(names[task], loss) for task, loss in enumerate(given)]
        known = [value for value in values if value is not None]
        if not known:
            return losses
        together = torch.cat(known)
        if bool(torch.isnan(self.limit)) and bool(torch.isfinite(together).all()):
            middle = float(together.median() - (-together).median()) / 2  # of an even number: between the two
            if middle <= 0:
                raise OptionError(
                    f"{self._owner}: the median loss of the first batch is {middle:g}, and a threshold that grows must "
                    "start above 0; build the balancer with threshold="
                )
            self.limit.fill_(middle)
        found = [self._weighted(loss, value) for loss, value in zip(given, values, strict=True)]
        return dict(zip(names, found, strict=True)) if isinstance(losses, Mapping) else found

    def _instances(self, name: str, loss: Tensor | None) -> Tensor | None:
        """Return the values of a task's losses in float64 on the CPU.

        Raises:
            ShapeError: If it is no vector.
        """
        if loss is None:
            return None
        if not isinstance(loss, Tensor) or loss.ndim != 1 or not len(loss):
            shown = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise ShapeError(
                f"{self._owner}: the loss of task {name!r} must be (N,), one loss for each instance, got {shown}; do "
                "not reduce it, or pass None for a task without labels"
            )
        return loss.detach().to("cpu", torch.float64)

    def _weighted(self, loss: Tensor | None, values: Tensor | None) -> Tensor | None:
        """Return the weighted mean over the instances of a task."""
        if loss is None or values is None:
            return None
        if not bool(torch.isfinite(values).all()):
            return loss.sum()  # refused when it is read
        weights = self_paced_weights(values, threshold=float(self.limit), group_penalty=float(self.penalty))
        return (weights / weights.sum().clamp(min=1)).to(loss) @ loss

    def objective(self, losses: Tensor, *, present: Sequence[int] | None = None) -> Tensor:
        """Return the sum of the losses of the tasks, which :meth:`scalars` gives."""
        self._positions(len(losses), present)
        return losses.sum()

    def end_epoch(self) -> None:
        """Admit harder instances and tasks."""
        self.limit.mul_(self.growth)
        self.penalty.div_(self.shrinkage)
