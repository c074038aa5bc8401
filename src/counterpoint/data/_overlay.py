"""Splitting of scans, drawing of pairs and overlaying them: what the sets of overlapping pairs have in common."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]
Images = NDArray[np.uint8]


@dataclasses.dataclass(frozen=True)
class Pairs:
    """How the pairs of a split are made: which scans, and where on the canvas.

    Attributes:
        first: Index of the first scan of each pair in its source, (N,).
        second: The same of the second scan, (N,).
        first_offset: Row and column of the first scan's upper left corner, (N, 2).
        second_offset: The same of the second scan, (N, 2).
    """

    first: Indices
    second: Indices
    first_offset: Indices
    second_offset: Indices

    def __len__(self) -> int:
        return len(self.first)


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where the scans of a pair may lie: ranges of the offsets, both ends included.

    Attributes:
        canvas: Height and width.
        first: ``((low row, high row), (low column, high column))`` of the first scan.
        second: The same of the second scan.
    """

    canvas: tuple[int, int]
    first: tuple[tuple[int, int], tuple[int, int]]
    second: tuple[tuple[int, int], tuple[int, int]]


def random_stream(*key: int) -> np.random.RandomState:
    """Return the random numbers that belong to ``key``.

    The streams of ``RandomState`` are the same in every version of numpy (its NEP 19); those of ``Generator`` are not.
    """
    return np.random.RandomState(np.random.MT19937(np.random.SeedSequence(key)))


def split_scans(labels: Indices, shares: Sequence[int], stream: np.random.RandomState) -> list[Indices]:
    """Split scans at random, stratified by class: every class is spread over the parts like the whole, up to one scan.

    Args:
        labels: Class of each scan, (N,).
        shares: Relative sizes of the parts, whole numbers.
        stream: Source of the random order.

    Returns:
        For each part the indices of its scans, ascending; the parts are disjoint and together everything.
    """
    order = stream.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    # dealt out like cards, class after class, so that each part gets its share of every class
    fold = np.arange(len(labels)) % sum(shares)
    ends = np.cumsum(shares)
    return [
        np.sort(order[(fold >= end - share) & (fold < end)]) for share, end in zip(shares, ends.tolist(), strict=True)
    ]


def draw_pairs(
    first: tuple[Indices, Indices],
    second: tuple[Indices, Indices],
    num_pairs: int,
    placement: Placement,
    *,
    different_classes: bool,
    key: tuple[int, ...],
) -> Pairs:
    """Draw random pairs. Fewer pairs with the same key are the beginning of more pairs.

    Args:
        first: Indices of the scans that may come first, and their classes. Each is used equally often, up to one time.
        second: The same of those that may come second; they are drawn uniformly.
        num_pairs: Number of pairs N.
        placement: Ranges of the offsets, which are drawn uniformly.
        different_classes: Draw the second uniformly among the scans of the other classes; there must be some.
        key: Seed of the random numbers.
    """
    indices, labels = first
    stream = random_stream(*key, 0)
    rounds = -(-num_pairs // len(indices))
    order = np.concatenate([stream.permutation(len(indices)) for _ in range(rounds)])[:num_pairs]
    partners, partner_labels = second
    stream = random_stream(*key, 1)
    if different_classes:
        by_class = np.argsort(partner_labels, kind="stable")
        sizes = np.bincount(partner_labels, minlength=int(labels.max()) + 1)
        starts = np.cumsum(sizes) - sizes
        own = labels[order]
        # a place among the scans of the other classes; those behind the own class are shifted by its size
        place = stream.randint(0, len(partners) - sizes[own], dtype=np.int64)
        chosen = by_class[place + np.where(place >= starts[own], sizes[own], 0)]
    else:
        chosen = stream.randint(0, len(partners), size=num_pairs, dtype=np.int64)
    offsets = [
        [
            random_stream(*key, 2, item, axis).randint(low, high + 1, size=num_pairs)
            for axis, (low, high) in enumerate(ends)
        ]
        for item, ends in enumerate((placement.first, placement.second))
    ]
    return Pairs(indices[order], partners[chosen], np.stack(offsets[0], axis=1), np.stack(offsets[1], axis=1))


def overlay(first: Images, second: Images, pairs: Pairs, canvas: tuple[int, int]) -> Images:
    """Return the element-wise maximum of the two scans of each pair, each at its offset on an empty canvas.

    Args:
        first: All scans of the first source, (M, h, w).
        second: All scans of the second source, (M', h', w').
        pairs: What to overlay.
        canvas: Height and width.

    Returns:
        Images, (N, height, width).
    """
    images = np.zeros((len(pairs), *canvas), np.uint8)
    for scans, chosen, offsets in (
        (first, pairs.first, pairs.first_offset),
        (second, pairs.second, pairs.second_offset),
    ):
        height, width = scans.shape[1:]
        # all pairs with one offset are pasted at once: 25 pastes for 100,000 pairs, without index arrays of their size
        for row, column in np.unique(offsets, axis=0).tolist():
            here = np.flatnonzero((offsets[:, 0] == row) & (offsets[:, 1] == column))
            window = (here, slice(row, row + height), slice(column, column + width))
            images[window] = np.maximum(images[window], scans[chosen[here]])
    return images
