"""What a task is: a name, a loss, metrics with their direction and unit, and the width of its head."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from counterpoint.errors import OptionError
from counterpoint.metrics import MetricSpec

TaskLoss = Callable[..., Tensor]  # of prediction, target, mask; may take reduction=


@dataclasses.dataclass(frozen=True)
class Task:
    """One task: what is predicted, how it is trained and how it is judged.

    Attributes:
        name: Key of the task in batches, losses, predictions and results.
        loss: ``loss(prediction, target, mask)`` returns a scalar; ``mask`` is a boolean tensor of the entries of the
            target that have a label, or ``None`` if all have. For balancers that read the loss of each instance it
            takes ``reduction="none"`` too, and then returns one loss (N,) for each sample with a label.
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

    def compute_loss(
        self, prediction: Tensor, batch: Mapping[str, Tensor], *, by_instance: bool = False
    ) -> Tensor | None:
        """Return the loss on a batch, or ``None`` if the batch has no label for this task.

        Args:
            prediction: Output of the head.
            batch: Has the target under the task's name and, if some labels are missing, a boolean mask under
                ``<name>_mask``. A batch without the target has no labels.
            by_instance: Return one loss (N,) for each sample with a label.

        Raises:
            OptionError: If the loss does not give one value for each instance.
        """
        target = batch.get(self.name)
        if target is None:
            return None
        mask = batch.get(f"{self.name}_mask")
        if mask is not None and not bool(torch.any(mask)):
            return None
        return self._by_instance(prediction, target, mask) if by_instance else self.loss(prediction, target, mask)

    def _by_instance(self, prediction: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        """Return one loss for each sample with a label.

        Raises:
            OptionError: If the loss does not give that.
        """
        cure = (
            "give it an argument reduction='mean' that for 'none' returns one loss (N,) for each sample with a label, "
            "or take a balancer with loss_form 'task'"
        )
        start = f"Task {self.name!r}: the balancer reads the loss of each instance, and the loss"
        if not _takes_reduction(self.loss):
            raise OptionError(f"{start} {getattr(self.loss, '__name__', self.loss)!r} takes no reduction=; {cure}")
        found = self.loss(prediction, target, mask, reduction="none")
        if found.ndim != 1:
            raise OptionError(f"{start} has shape {tuple(found.shape)} with reduction='none'; {cure}")
        return found


def _takes_reduction(loss: TaskLoss) -> bool:
    """Return whether a loss can be called with ``reduction=``."""
    try:
        parameters = inspect.signature(loss).parameters
    except ValueError:  # no signature: written in C
        return False
    return "reduction" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
