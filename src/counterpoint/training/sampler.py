"""The order of the samples of a run."""

from collections.abc import Iterator, Sized
from typing import cast

import torch
from torch.utils.data import Dataset, Sampler

from counterpoint.training.seed import epoch_generator

_STREAM = 1_000_000_007  # between the seeds of the sample orders of one run


class SeededSampler(Sampler[int]):
    """A random order that depends on the seed and the epoch only.

    Args:
        dataset: What is ordered.
        seed: Seed of the run.
        stream: Number of the order, for runs that read several batches a step.
    """

    def __init__(self, dataset: Dataset, seed: int, stream: int = 0) -> None:
        self.length = len(cast(Sized, dataset))
        self.seed = seed + stream * _STREAM
        self.epoch = 0

    def __iter__(self) -> Iterator[int]:
        return iter(torch.randperm(self.length, generator=epoch_generator(self.seed, self.epoch)).tolist())

    def __len__(self) -> int:
        return self.length
