"""The best groups under a budget, by trying all."""

import itertools
import math
from typing import final

import numpy as np

from counterpoint.errors import OptionError
from counterpoint.grouping._base import Solver, check_size
from counterpoint.grouping._serve import infeasible, serve
from counterpoint.grouping.affinity import AffinityMatrix, measured
from counterpoint.grouping.groups import Grouping
from counterpoint.grouping.scores import group_scores, membership

_MOST = 2_000_000
_BLOCK = 100_000


@final
class Exhaustive(Solver):
    """All families of groups under a budget, tried one by one; the plain reference of ``branch_and_bound``.

    ``num_groups`` is a bound; of equal values that with fewer groups, then the lexicographically first, is taken.

    Args:
        overlap: Whether a task may help in further groups.
        singleton: Score of a task that is alone; ``None``: a group of one never serves its task.
        max_size: Largest group.

    References:
        Fifty et al., "Efficiently Identifying Task Groupings for Multi-Task Learning", NeurIPS 2021, arXiv:2109.04617.
    """

    key = "exhaustive"
    source = "Fifty et al., TAG, NeurIPS 2021"
    provenance = "as in the released code, with at most num_groups groups and an explicit singleton rule"
    cost = "every choice of num_groups out of 2^T - 1 groups; refused beyond 2 million"

    def __init__(self, *, overlap: bool = True, singleton: float | None = None, max_size: int | None = None) -> None:
        self.overlap = overlap
        self.singleton = singleton
        self.max_size = max_size

    def solve(self, matrix: AffinityMatrix, num_groups: int) -> Grouping:
        """Return the best at most ``num_groups`` groups.

        Raises:
            NonFiniteError: If an entry was never measured.
            OptionError: If there are too many families to try.
            SolverError: If no groups within the limits serve all tasks.
        """
        check_size("Exhaustive", matrix, num_groups, most=12, instead="branch_and_bound")
        scores = group_scores(measured(matrix, "Exhaustive"), singleton=self.singleton, max_size=self.max_size)
        member = membership(len(matrix.tasks))
        allowed = [mask for mask in range(1, len(scores)) if np.isfinite(scores[mask][member[mask]]).all()]
        best, chosen = -np.inf, ()
        for count in range(1, min(num_groups, len(matrix.tasks)) + 1):
            if math.comb(len(allowed), count) > _MOST:
                raise OptionError(
                    f"Exhaustive: {math.comb(len(allowed), count)} families of {count} groups are too many to try; "
                    "branch_and_bound gives the same groups"
                )
            pool = itertools.combinations(allowed, count)
            while block := list(itertools.islice(pool, _BLOCK)):
                rows = np.array(block)
                values = scores[rows].max(axis=1).mean(axis=1)
                if not self.overlap:
                    values[member[rows].sum(axis=1).max(axis=1) > 1] = -np.inf
                at = int(values.argmax())
                if values[at] > best + 1e-12:
                    best, chosen = float(values[at]), tuple(block[at])
        if not chosen:
            raise infeasible("Exhaustive", num_groups, f"max_size={self.max_size}" if self.max_size else "")
        return serve(matrix.tasks, chosen, scores, self.key, None)
