"""The best partition of the tasks into a given number of sets, by branch and bound."""

import numpy as np

from counterpoint.grouping.affinity import Matrix
from counterpoint.grouping.scores import subsets

_EPS = 1e-12


def best_partition(worth: Matrix, num_sets: int) -> tuple[float, tuple[int, ...]]:
    """Return the largest sum of worths over the partitions into exactly ``num_sets`` sets, and the sets.

    A node gives the lowest task that is left its set. Bound of a node: the best partition of the rest into any number
    of sets, from a table. Sets of the best bound first; with two sets left all pairs are compared at once.

    Args:
        worth: (2^T,) by mask; minus infinity for sets that are not allowed.
        num_sets: Number of sets, at least 1.

    Returns:
        Minus infinity and no sets if there is no such partition.
    """
    full = len(worth) - 1
    bound = _unlimited(worth)
    best = [-np.inf]
    chosen: list[tuple[int, ...]] = [()]

    def visit(rest: int, left: int, value: float, sets: tuple[int, ...]) -> None:
        if left == 1:
            total, last = value + worth[rest], (rest,)
        else:
            lowest = rest & -rest
            first = subsets(rest ^ lowest)[:-1] | lowest
            if not len(first):
                return
            if left > 2:
                reach = value + worth[first] + bound[rest ^ first]
                for at in np.argsort(-reach, kind="stable"):
                    if not reach[at] > best[0] + _EPS:
                        return
                    taken = int(first[at])
                    visit(rest ^ taken, left - 1, value + float(worth[taken]), (*sets, taken))
                return
            pairs = worth[first] + worth[rest ^ first]
            at = int(pairs.argmax())
            total, last = value + pairs[at], (int(first[at]), rest ^ int(first[at]))
        if total > best[0] + _EPS:
            best[0], chosen[0] = float(total), (*sets, *last)

    visit(full, num_sets, 0.0, ())
    return best[0], chosen[0]


def _unlimited(worth: Matrix) -> Matrix:
    """Return for each mask the best partition of it into any number of sets."""
    bound = np.full(len(worth), -np.inf)
    bound[0] = 0.0
    for mask in range(1, len(worth)):
        lowest = mask & -mask
        first = subsets(mask ^ lowest) | lowest
        bound[mask] = (worth[first] + bound[mask ^ first]).max()
    return bound
