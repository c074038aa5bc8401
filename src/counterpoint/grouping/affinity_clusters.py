"""Groups by affinity propagation, under a budget."""

from typing import final

import numpy as np

from counterpoint._checks import check_integer
from counterpoint.errors import SolverError
from counterpoint.grouping._base import Solver
from counterpoint.grouping._clusters import from_clusters, similarity
from counterpoint.grouping.affinity import AffinityMatrix
from counterpoint.grouping.affinity_propagation import affinity_propagation
from counterpoint.grouping.groups import Grouping


@final
class AffinityPropagation(Solver):
    """Clusters that find their own number; needs a symmetric matrix.

    ``num_groups`` is a bound: while there are more, the preference is lowered by growing steps (our reading).

    Args:
        damping: Share of the old message that is kept in each round, in [0.5, 1).
        max_iter: Rounds at most.
        convergence_iter: Rounds in which the exemplars must not change.
        seed: Of the noise that breaks ties.

    References:
        Frey, Dueck, "Clustering by Passing Messages Between Data Points", Science 2007.
    """

    symmetric = True
    key = "affinity_propagation"
    source = "Frey and Dueck, Science 2007"
    provenance = "paper; the bound on the number of groups is ours"
    cost = "T^2 per round"

    def __init__(self, *, damping: float = 0.5, max_iter: int = 200, convergence_iter: int = 15, seed: int = 0) -> None:
        self.damping = damping
        self.max_iter = max_iter
        self.convergence_iter = convergence_iter
        self.seed = seed

    def solve(self, matrix: AffinityMatrix, num_groups: int) -> Grouping:
        """Return at most ``num_groups`` groups without overlap.

        Raises:
            NonFiniteError: If an entry was never measured.
            OptionError: If the matrix is directed.
            SolverError: If the messages do not settle on few enough groups.
        """
        check_integer("AffinityPropagation: num_groups", num_groups, low=1)
        values = similarity(matrix, "AffinityPropagation")
        middle = float(np.median(values))
        span = float(np.ptp(values)) or 1.0
        for lower in (0.0, *(0.05 * span * 1.5**power for power in range(20))):
            found = affinity_propagation(
                values,
                preference=middle - lower,
                damping=self.damping,
                max_iter=self.max_iter,
                convergence_iter=self.convergence_iter,
                seed=self.seed,
            )
            if found.converged and 1 <= len(found.groups) <= num_groups:
                return from_clusters(matrix, found.groups, self.key)
        raise SolverError(
            f"AffinityPropagation: no {num_groups} or fewer groups after {self.max_iter} rounds; raise damping or "
            "max_iter, or use agglomerative"
        )
