"""What a data set is: tasks, three splits, and where it comes from."""

import os
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

    Indexing with an integer gives a sample. A data loader asks for whole batches at once, which is as fast as slicing;
    as they come as they should be, it needs ``collate_fn=TensorSplit.collate``.

    Args:
        tensors: ``"image"`` (or another input), each task's target and, where labels are missing, ``<task>_mask``.
        divisors: Name -> number that the entry is divided by, in float32, when it is asked for. So images stay in
            memory as bytes, a quarter of their size.

    Example:
        >>> from torch.utils.data import DataLoader
        >>> split = TensorSplit({"image": torch.tensor([[0], [51], [255]], dtype=torch.uint8)}, divisors={"image": 255})
        >>> [batch["image"].tolist() for batch in DataLoader(split, batch_size=2, collate_fn=TensorSplit.collate)]
        [[[0.0], [0.20000000298023224]], [[1.0]]]
    """

    def __init__(self, tensors: Mapping[str, Tensor], *, divisors: Mapping[str, float] | None = None) -> None:
        lengths = {name: len(tensor) for name, tensor in tensors.items()}
        if len(set(lengths.values())) != 1:
            raise ShapeError(f"TensorSplit: all tensors need the same number of samples, got {lengths}")
        self.tensors = dict(tensors)
        self.divisors = dict(divisors or {})
        for name in self.divisors:
            if name not in self.tensors:
                raise unknown("tensor of this split", name, self.tensors)

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: self._take(name, tensor, index) for name, tensor in self.tensors.items()}

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        chosen = torch.as_tensor(indices)
        return {name: self._take(name, tensor, chosen) for name, tensor in self.tensors.items()}

    @staticmethod
    def collate(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the batch as it is: for the ``collate_fn`` of a data loader."""
        return batch

    def _take(self, name: str, tensor: Tensor, chosen: int | Tensor) -> Tensor:
        divisor = self.divisors.get(name)
        return tensor[chosen] if divisor is None else tensor[chosen].to(torch.float32) / divisor


class MultiTaskData(ABC):
    """A data set with several tasks. Samples are mappings with ``"image"`` and one entry per task.

    The constructor reads (or makes) the data; nothing is downloaded. The facts are ``source`` (citation),
    ``provenance`` (how sure we are of it) and, for data on disk, ``layout`` (which files are needed).
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
        if len(set(names)) != len(names):
            raise OptionError(f"{self.key}: tasks must be different names, got {list(names)}")
        return tuple(task for task in self.tasks if task.name in names)


class DataOnDisk(MultiTaskData):
    """A data set that is read from files that the user has."""

    layout: ClassVar[str]

    @classmethod
    @abstractmethod
    def problems(cls, root: str | os.PathLike[str]) -> list[str]:
        """Return what is wrong with the files under ``root``, one line for each file; empty if nothing is."""


def pick_split(key: str, splits: Mapping[str, TensorSplit], name: str) -> TensorSplit:
    """Return the split called ``name`` of the data set called ``key``.

    Raises:
        UnknownNameError: If there is none; the message has the nearest names.
    """
    if name not in splits:
        raise unknown(f"split of {key}", name, splits)
    return splits[name]
