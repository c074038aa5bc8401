"""Sums over time in a fixed number of bins: when there are too many, neighbors are put together."""

from collections.abc import Mapping

import numpy as np

Sums = dict[str, np.ndarray]


class Bins:
    """Sums of measurements, in at most ``capacity`` bins of equal numbers of measurements.

    Args:
        capacity: Number of bins at which neighbors are put together; ``None`` for one bin per measurement.
    """

    def __init__(self, capacity: int | None) -> None:
        self.capacity = capacity
        self.width = 1
        self.steps: list[int] = []  # the first of each bin
        self.counts: list[int] = []
        self.sums: list[Sums] = []

    def add(self, step: int, measured: Mapping[str, np.ndarray]) -> None:
        """Add one measurement to the last bin, or open a new one."""
        if self.counts and self.counts[-1] < self.width:
            self.counts[-1] += 1
            _add(self.sums[-1], measured)
            return
        if self.capacity is not None and len(self.counts) >= self.capacity:
            self._halve()
            self.add(step, measured)
            return
        self.steps.append(step)
        self.counts.append(1)
        self.sums.append({name: value.copy() for name, value in measured.items()})

    def stacked(self) -> Sums:
        """Return the sums of all bins, one entry per bin in front; nothing if there are none."""
        names = self.sums[0] if self.sums else ()
        return {name: np.stack([sums[name] for sums in self.sums]) for name in names}

    def _halve(self) -> None:
        for left, right in zip(self.sums[::2], self.sums[1::2], strict=False):
            _add(left, right)
        counts = self.counts
        self.counts = [sum(counts[at : at + 2]) for at in range(0, len(counts), 2)]
        self.steps, self.sums = self.steps[::2], self.sums[::2]
        self.width *= 2


def _add(total: Sums, more: Mapping[str, np.ndarray]) -> None:
    for name, value in more.items():
        total[name] += value
