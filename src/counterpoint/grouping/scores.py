"""Scores of tasks in groups: candidates as bit masks, one row of scores each."""

import functools

import numpy as np
from numpy.typing import NDArray

from counterpoint._checks import check_integer
from counterpoint.grouping.affinity import Matrix

Masks = NDArray[np.int64]


def bits(mask: int) -> list[int]:
    """Return the tasks of a mask, ascending."""
    return [task for task in range(mask.bit_length()) if mask >> task & 1]


def membership(num_tasks: int) -> NDArray[np.bool_]:
    """Return (2^T, T): whether the task is in the group of that mask."""
    return (np.arange(1 << num_tasks)[:, None] >> np.arange(num_tasks) & 1).astype(bool)


def group_scores(affinity: Matrix, *, singleton: float | None = None, max_size: int | None = None) -> Matrix:
    """Return for every group (row, by its mask) the score of each of its tasks.

    The score of task i in group G is the mean of ``affinity[j, i]`` over the other members j. The diagonal is not read.

    Args:
        affinity: (T, T), higher is better, row = source.
        singleton: Score of a task that is alone; ``None``: a group of one never serves its task.
        max_size: Largest group.

    Returns:
        (2^T, T), minus infinity where the group does not serve the task.

    References:
        Fifty et al., "Efficiently Identifying Task Groupings for Multi-Task Learning", NeurIPS 2021, arXiv:2109.04617.
        The released code gives a task alone -1e6, so that a group of one is never the server; here it is excluded.
    """
    num_tasks = len(affinity)
    if max_size is not None:
        check_integer("max_size", max_size, low=1)
    member = membership(num_tasks)
    size = member.sum(axis=1)
    others = affinity.copy()
    np.fill_diagonal(others, 0.0)
    scores = (member @ others) / np.maximum(size - 1, 1)[:, None]
    alone = size == 1
    scores[alone] = singleton if singleton is not None and num_tasks > 1 else -np.inf
    if num_tasks == 1:
        scores[alone] = singleton or 0.0
    if max_size is not None:
        member &= (size <= max_size)[:, None]
    return np.where(member, scores, -np.inf)


@functools.lru_cache(maxsize=64)
def _indicator(size: int) -> Matrix:
    return membership(size).astype(np.float64)


@functools.lru_cache(maxsize=1 << 15)
def subsets(mask: int) -> Masks:
    """Return all masks within a mask, ascending, the empty one first."""
    places = np.array([1 << task for task in bits(mask)], dtype=np.int64)
    return _indicator(len(places)).astype(np.int64) @ places


def subset_sums(values: Matrix) -> Matrix:
    """Return the sum over each subset of the values, in the order of :func:`subsets`."""
    return _indicator(len(values)) @ values


def served_worth(scores: Matrix) -> tuple[Matrix, Masks]:
    """Return the worth of serving each set of tasks by one group, and the group.

    ``worth[U]`` is the largest sum over i in U of the score of i in G, over all groups G that contain U: members of G
    outside U only help. A family of b overlapping groups with every task served by its best group is
    then a partition of the tasks into at most b served sets.

    Args:
        scores: (2^T, T) as :func:`group_scores` gives.
    """
    worth = np.full(len(scores), -np.inf)
    owner = np.zeros(len(scores), dtype=np.int64)
    for group in sorted(range(1, len(scores)), key=lambda mask: (mask.bit_count(), mask)):
        inside = scores[group, bits(group)]
        if not np.isfinite(inside).all():
            continue
        within, sums = subsets(group), subset_sums(inside)
        better = sums > worth[within] + 1e-12 * np.maximum(1.0, np.abs(sums))
        worth[within[better]] = sums[better]
        owner[within[better]] = group
    return worth, owner


def own_worth(scores: Matrix) -> Matrix:
    """Return the sum of the scores of each group's tasks, minus infinity for groups that are not allowed."""
    member = membership(scores.shape[1])
    return np.where(member, scores, 0.0).sum(axis=1)
