"""What a task is: a name, a loss, metrics with their direction and unit, and the width of its head."""

import dataclasses
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from counterpoint.errors import OptionError
from counterpoint.metrics import MetricSpec

TaskLoss = Callable[[Tensor, Tensor, Tensor | None], Tensor]


@dataclasses.dataclass(frozen=True)
class Task:
    """One task: what is predicted, how it is trained and how it is judged.

    Attributes:
        name: Key of the task in batches, losses, predictions and results.
        loss: ``loss(prediction, target, mask)`` returns a scalar; ``mask`` is a boolean tensor of the entries of the
            target that have a label, or ``None`` if all have.
        metrics: Name of the metric -> what it is; the first one is the primary metric.
        num_outputs: Width of the head: classes, or channels.
    """

    name: str
    loss: TaskLoss
    metrics: Mapping[str, MetricSpec]
    num_outputs: int

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise OptionError(f"Task: name must be an identifier, got {self.name!r}")
        if not self.metrics:
            raise OptionError(f"Task {self.name!r}: metrics must have at least one entry")

    @property
    def primary_metric(self) -> str:
        """Name of the first metric."""
        return next(iter(self.metrics))

    def compute_loss(self, prediction: Tensor, batch: Mapping[str, Tensor]) -> Tensor | None:
        """Return the loss on a batch, or ``None`` if the batch has no label for this task.

        Args:
            prediction: Output of the head.
            batch: Has the target under the task's name and, if some labels are missing, a boolean mask under
                ``<name>_mask``. A batch without the target has no labels.
        """
        target = batch.get(self.name)
        if target is None:
            return None
        mask = batch.get(f"{self.name}_mask")
        if mask is not None and not bool(torch.any(mask)):
            return None
        return self.loss(prediction, target, mask)
