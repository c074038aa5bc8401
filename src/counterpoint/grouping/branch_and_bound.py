"""The best groups under a budget, exactly, by branch and bound."""

from typing import final

import numpy as np

from counterpoint.grouping._base import Solver, check_size
from counterpoint.grouping._partition import best_partition
from counterpoint.grouping._serve import infeasible, serve
from counterpoint.grouping.affinity import AffinityMatrix, measured
from counterpoint.grouping.groups import Grouping
from counterpoint.grouping.scores import group_scores, own_worth, served_worth


@final
class BranchAndBound(Solver):
    """Exact groups under a budget: the largest mean over tasks of the score in the group that serves each.

    ``num_groups`` is a bound: of equal values that with fewer groups is taken, so more groups than tasks changes
    nothing. Of equal ones with as many groups it is always the same one, but not the lexicographically first, which
    ``exhaustive`` takes.

    Args:
        overlap: Whether a task may help in further groups.
        singleton: Score of a task that is alone; ``None``: a group of one never serves its task.
        max_size: Largest group.

    Example:
        >>> matrix = AffinityMatrix(("a", "b", "c"), np.array([[0, 1, -1], [1, 0, -1], [-1, -1, 0]]), directed=False)
        >>> BranchAndBound(singleton=0.0).solve(matrix, 2).groups
        (('a', 'b'), ('c',))

    References:
        Fifty et al., "Efficiently Identifying Task Groupings for Multi-Task Learning", NeurIPS 2021, arXiv:2109.04617,
        score and budget. The released selection enumerates all families; the search here is ours.
    """

    key = "branch_and_bound"
    source = "Fifty et al., TAG, NeurIPS 2021 (score); the search is ours"
    provenance = "score as in the released code; exact search of ours"
    cost = "about 3^T operations; at most 14 tasks"

    def __init__(self, *, overlap: bool = True, singleton: float | None = None, max_size: int | None = None) -> None:
        self.overlap = overlap
        self.singleton = singleton
        self.max_size = max_size

    def solve(self, matrix: AffinityMatrix, num_groups: int) -> Grouping:
        """Return the best at most ``num_groups`` groups.

        Raises:
            NonFiniteError: If an entry was never measured.
            OptionError: If there are more than 14 tasks.
            SolverError: If no groups within the limits serve all tasks.
        """
        check_size("BranchAndBound", matrix, num_groups, most=14, instead="agglomerative or affinity_propagation")
        scores = group_scores(measured(matrix, "BranchAndBound"), singleton=self.singleton, max_size=self.max_size)
        if self.overlap:
            worth, owner = served_worth(scores)
        else:
            worth, owner = own_worth(scores), np.arange(len(scores))
        best, chosen = -np.inf, ()
        for count in range(1, min(num_groups, len(matrix.tasks)) + 1):
            value, sets = best_partition(worth, count)
            if value > best + 1e-12:
                best, chosen = value, sets
        if not chosen:
            raise infeasible("BranchAndBound", num_groups, f"max_size={self.max_size}" if self.max_size else "")
        return serve(matrix.tasks, [int(owner[mask]) for mask in chosen], scores, self.key, None)
