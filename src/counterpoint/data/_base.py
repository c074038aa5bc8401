"""What a data set is: tasks, three splits, and where it comes from."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.utils.data import Dataset

from counterpoint.errors import OptionError, ShapeError
from counterpoint.registry import unknown
from counterpoint.tasks import Task

SPLITS = ("train", "val", "test")


class TensorSplit(Dataset):
    """A split held in memory: a mapping from name to a tensor with one entry per sample.

    Indexing with an integer gives a sample; the data loader asks for whole batches at once, which is as fast as
    slicing.

    Args:
        tensors: ``"image"`` (or another input), each task's target and, where labels are missing, ``<task>_mask``.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        lengths = {name: len(tensor) for name, tensor in tensors.items()}
        if len(set(lengths.values())) != 1:
            raise ShapeError(f"TensorSplit: all tensors need the same number of samples, got {lengths}")
        self.tensors = dict(tensors)

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: tensor[index] for name, tensor in self.tensors.items()}

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        chosen = torch.as_tensor(indices)
        return {name: tensor[chosen] for name, tensor in self.tensors.items()}


class MultiTaskData(ABC):
    """A data set with several tasks. Samples are mappings with ``"image"`` and one entry per task.

    The constructor reads (or makes) the data; nothing is downloaded.
    """

    key: ClassVar[str]
    source: ClassVar[str]
    provenance: ClassVar[str]

    @property
    @abstractmethod
    def tasks(self) -> tuple[Task, ...]:
        """The tasks, in order."""

    @property
    @abstractmethod
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input, without the batch axis, such as (channels, height, width)."""

    @abstractmethod
    def split(self, name: str) -> Dataset:
        """Return the split called ``"train"``, ``"val"`` or ``"test"``."""

    def select_tasks(self, names: Sequence[str] | None) -> tuple[Task, ...]:
        """Return the tasks of these names, in the order of the data set; all for ``None``.

        Raises:
            UnknownNameError: If a name is not a task.
            OptionError: If no name is given.
        """
        if names is None:
            return self.tasks
        known = [task.name for task in self.tasks]
        for name in names:
            if name not in known:
                raise unknown(f"task of {self.key}", name, known)
        if not names:
            raise OptionError(f"{self.key}: at least one task is needed")
        return tuple(task for task in self.tasks if task.name in names)


@dataclasses.dataclass(frozen=True)
class SplitSizes:
    """Numbers of samples of the three splits."""

    train: int
    val: int
    test: int
