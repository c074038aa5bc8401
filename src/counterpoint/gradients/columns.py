"""Columns that mean the same parameters at every step, for methods with a state for each coordinate."""

import dataclasses
import weakref
from collections.abc import Iterable, Sequence

from torch import Tensor

from counterpoint.gradients.jacobian import TaskGradients, empty_rows


class Leaves:
    """The parameters that columns of a matrix belong to, in order; remembered, not held, and forgotten by copies."""

    def __init__(self, leaves: Iterable[Tensor] = ()) -> None:
        self._references = [weakref.ref(leaf) for leaf in leaves]

    def get(self) -> list[Tensor]:
        """Return the parameters, or none if one of them is no more."""
        found = [leaf for reference in self._references if (leaf := reference()) is not None]
        return found if len(found) == len(self._references) else []

    def __reduce__(self) -> tuple[type["Leaves"], tuple[()]]:
        return Leaves, ()


def in_columns(found: TaskGradients, leaves: Sequence[Tensor]) -> TaskGradients:
    """Return task gradients over the given leaves, in their order; zeros for one that no loss reached.

    Args:
        found: Task gradients over some of these leaves, in any order.
        leaves: The leaves of the columns.
    """
    own = found.scope.shared
    if len(own) == len(leaves) and all(mine is leaf for mine, leaf in zip(own, leaves, strict=True)):
        return found
    pieces = dict(zip(own, found.jacobian.split([_columns(leaf) for leaf in own], dim=1), strict=True))
    jacobian = empty_rows(len(found.jacobian), leaves, None)  # of one dtype whichever of the leaves are reached
    start = 0
    for leaf in leaves:
        stop = start + _columns(leaf)
        jacobian[:, start:stop] = pieces.get(leaf, 0.0)
        start = stop
    return dataclasses.replace(found, jacobian=jacobian, scope=dataclasses.replace(found.scope, shared=tuple(leaves)))


def _columns(leaf: Tensor) -> int:
    return leaf.numel() * (2 if leaf.is_complex() else 1)
