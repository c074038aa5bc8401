"""What the methods of this family share: estimators measure a matrix, solvers make groups of it."""

import abc
from typing import ClassVar

from counterpoint._checks import check_integer
from counterpoint.errors import OptionError
from counterpoint.grouping.affinity import AffinityMatrix
from counterpoint.grouping.groups import Grouping
from counterpoint.registry import Rebuildable


class Method(Rebuildable, abc.ABC):
    """An estimator or a solver; ``role`` says which."""

    key: ClassVar[str]
    role: ClassVar[str]
    source: ClassVar[str] = ""
    provenance: ClassVar[str] = ""
    cost: ClassVar[str] = ""
    reads: ClassVar[str] = ""


class Solver(Method):
    """Makes groups of an affinity matrix under a budget."""

    role = "solver"
    symmetric: ClassVar[bool] = False  # whether it needs a symmetric matrix
    reads = "an affinity matrix"

    @abc.abstractmethod
    def solve(self, matrix: AffinityMatrix, num_groups: int) -> Grouping:
        """Return the best groups; the class says whether ``num_groups`` is a bound or the exact number."""


def check_size(owner: str, matrix: AffinityMatrix, num_groups: int, *, most: int, instead: str) -> None:
    """Raise if the budget is no whole number of at least 1, or there are more tasks than the method can do.

    Raises:
        OptionError: If so; the message says what to use instead.
    """
    check_integer(f"{owner}: num_groups", num_groups, low=1)
    if len(matrix.tasks) > most:
        raise OptionError(f"{owner}: {len(matrix.tasks)} tasks are more than the {most} it can do; use {instead}")
