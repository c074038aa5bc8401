"""What every multi-task network answers: its output, and whose each parameter is."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

from torch import Tensor, nn

from counterpoint.errors import OptionError
from counterpoint.registry import unknown


@dataclasses.dataclass
class Auxiliary:
    """Further predictions that are trained like the final ones (deep supervision).

    Attributes:
        tag: Name for logs.
        preds: Task -> prediction, judged by the task's own loss.
        weight: Multiplies that loss.
    """

    tag: str
    preds: Mapping[str, Tensor]
    weight: float = 1.0


@dataclasses.dataclass
class MTLOutput:
    """What a multi-task network returns. Not frozen, since Lightning Fabric rebuilds it to convert dtypes.

    Attributes:
        preds: Task -> prediction.
        aux: Further predictions to be trained on.
        losses: Named extra terms, scalars, that belong to no single task; they are added unbalanced.
        info: Gates, masks and the like, for logs and tests.
        features: Tensors where the heads begin, for ``balancer.backward(..., features=...)``; empty if there is no
            such cut.
    """

    preds: dict[str, Tensor]
    aux: tuple[Auxiliary, ...] = ()
    losses: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
    info: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
    features: tuple[Tensor, ...] = ()


class MultiTaskModel(nn.Module, ABC):
    """Base of all architectures. Heads come in as a mapping; nothing here calls ``backward``.

    Args:
        task_names: The tasks, in order.
    """

    key: ClassVar[str]
    source: ClassVar[str]
    provenance: ClassVar[str]

    def __init__(self, task_names: Sequence[str]) -> None:
        super().__init__()
        if not task_names:
            raise OptionError(f"{type(self).__name__}: heads must have at least one task")
        self.task_names = tuple(task_names)

    def asked(self, tasks: Sequence[str] | None) -> tuple[str, ...]:
        """Return the tasks to compute, all for ``None``.

        Raises:
            UnknownNameError: If one is not a task of the model.
        """
        if tasks is None:
            return self.task_names
        for task in tasks:
            if task not in self.task_names:
                raise unknown(f"task of {type(self).__name__}", task, self.task_names)
        return tuple(tasks)

    @abstractmethod
    def forward(self, x: Tensor, tasks: Sequence[str] | None = None) -> MTLOutput:
        """Predict the given tasks (default all) for a batch."""

    @abstractmethod
    def task_parameters(self, task: str) -> Iterator[nn.Parameter]:
        """Yield the parameters that only this task trains."""

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        """Yield the parameters that more than one task can train: all that belong to no single task."""
        own = {parameter for task in self.task_names for parameter in self.task_parameters(task)}
        return (parameter for parameter in self.parameters() if parameter not in own)
