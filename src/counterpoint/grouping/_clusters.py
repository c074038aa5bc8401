"""Groupings from clusters: what methods of clustering share."""

from collections.abc import Sequence

import numpy as np

from counterpoint.errors import OptionError
from counterpoint.grouping.affinity import AffinityMatrix, Matrix, measured
from counterpoint.grouping.groups import Grouping


def similarity(matrix: AffinityMatrix, owner: str) -> Matrix:
    """Return the entries of a symmetric matrix, higher is better.

    Raises:
        OptionError: If the matrix is directed.
    """
    if matrix.directed:
        raise OptionError(f"{owner}: needs a symmetric matrix; pass matrix.symmetric(), the mean of both directions")
    return measured(matrix, owner)


def from_clusters(matrix: AffinityMatrix, clusters: Sequence[Sequence[int]], solver: str) -> Grouping:
    """Return the grouping of a partition; a task's score is the mean entry with its group, 0 for a task alone."""
    values = measured(matrix, solver)
    ordered = sorted(sorted(cluster) for cluster in clusters)
    serves = [next(at for at, cluster in enumerate(ordered) if task in cluster) for task in range(len(matrix.tasks))]
    scores = []
    for task, at in enumerate(serves):
        others = [other for other in ordered[at] if other != task]
        scores.append(float(values[others, task].mean()) if others else 0.0)
    groups = tuple(tuple(matrix.tasks[task] for task in cluster) for cluster in ordered)
    return Grouping(matrix.tasks, groups, tuple(serves), float(np.mean(scores)), tuple(scores), solver)
