"""Groups by merging the most similar ones."""

from typing import final

import numpy as np

from counterpoint._checks import check_choice, check_integer
from counterpoint.errors import SolverError
from counterpoint.grouping._base import Solver
from counterpoint.grouping._clusters import from_clusters, similarity
from counterpoint.grouping.affinity import AffinityMatrix
from counterpoint.grouping.groups import Grouping


@final
class Agglomerative(Solver):
    """Start with every task alone and merge the two most similar groups until ``num_groups`` are left.

    No optimum, but any number of tasks. Needs a symmetric matrix. Ties: the first pair.

    Args:
        linkage: Similarity of two groups: the ``"average"``, smallest (``"complete"``) or largest (``"single"``) entry.

    References:
        Standard; average linkage as in the clustering steps of the methods here.
    """

    symmetric = True
    key = "agglomerative"
    source = "folklore"
    provenance = "standard"
    cost = "T^4 at most"

    def __init__(self, *, linkage: str = "average") -> None:
        self.linkage = check_choice("Agglomerative: linkage", linkage, ("average", "complete", "single"))

    def solve(self, matrix: AffinityMatrix, num_groups: int) -> Grouping:
        """Return exactly ``num_groups`` groups without overlap.

        Raises:
            NonFiniteError: If an entry was never measured.
            OptionError: If the matrix is directed.
            SolverError: If there are more groups than tasks.
        """
        check_integer("Agglomerative: num_groups", num_groups, low=1)
        values = similarity(matrix, "Agglomerative")
        if num_groups > len(values):
            raise SolverError(f"Agglomerative: {len(values)} tasks cannot be parted into {num_groups} groups")
        link = {"average": np.mean, "complete": np.min, "single": np.max}[self.linkage]
        clusters = [[task] for task in range(len(values))]
        while len(clusters) > num_groups:
            pairs = [(i, j) for j in range(len(clusters)) for i in range(j)]
            closeness = [float(link(values[np.ix_(clusters[i], clusters[j])])) for i, j in pairs]
            i, j = pairs[int(np.argmax(closeness))]
            clusters[i] = sorted(clusters[i] + clusters.pop(j))
        return from_clusters(matrix, clusters, self.key)
