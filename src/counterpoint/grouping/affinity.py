"""Affinity between tasks: a matrix that says what its rows, columns and diagonal mean."""

import dataclasses
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from counterpoint._checks import check_tasks
from counterpoint._files import JsonData
from counterpoint.errors import NonFiniteError, OptionError, ShapeError

Matrix = NDArray[np.float64]


@dataclasses.dataclass(frozen=True, eq=False)
class AffinityMatrix(JsonData):
    """Effect of each task (row, the source) on each task (column, the target).

    Attributes:
        tasks: Names of the tasks, in the order of rows and columns.
        values: (T, T), read only; NaN is an entry that was never measured.
        directed: Whether entry (i, j) may differ from entry (j, i).
        higher_is_better: Whether a larger entry speaks for training the two together.
        diagonal: What entry (i, i) means, as text.
        source: What measured it, as text.
        cost: What the measurement cost, as text.
    """

    tasks: tuple[str, ...]
    values: Matrix
    directed: bool
    higher_is_better: bool = True
    diagonal: str = "not read"
    source: str = "given"
    cost: str = "unknown"

    def __post_init__(self) -> None:
        """Check names, shape and symmetry.

        Raises:
            ShapeError: If there is not one row and one column per task.
            OptionError: If names repeat, or a symmetric matrix is not symmetric.
            NonFiniteError: If an entry is infinite.
        """
        if isinstance(self.tasks, str):
            raise OptionError(f"AffinityMatrix: tasks must be a sequence of names, got {self.tasks!r}")
        object.__setattr__(self, "tasks", tuple(self.tasks))
        check_tasks("AffinityMatrix", None, self.tasks)
        values = np.array(self.values, dtype=np.float64)
        size = len(self.tasks)
        if values.shape != (size, size):
            raise ShapeError(f"AffinityMatrix: values must have shape ({size}, {size}), got {values.shape}")
        infinite = [self.pair(i, j) for i, j in np.argwhere(np.isinf(values))]
        if infinite:
            raise NonFiniteError(f"AffinityMatrix: infinite entry {infinite[0]}; leave out that measurement as NaN")
        if not self.directed and not np.allclose(values, values.T, rtol=1e-6, atol=1e-9, equal_nan=True):
            i, j = np.argwhere(~np.isclose(values, values.T, rtol=1e-6, atol=1e-9, equal_nan=True))[0]
            raise OptionError(
                f"AffinityMatrix: directed=False, but {self.pair(i, j)} is {values[i, j]:g} and {self.pair(j, i)} is "
                f"{values[j, i]:g}; pass directed=True"
            )
        values.setflags(write=False)
        object.__setattr__(self, "values", values)

    def pair(self, source: int, target: int) -> str:
        """Return how an entry is written in messages."""
        return f"{self.tasks[source]} -> {self.tasks[target]}"

    def symmetric(self) -> Self:
        """Return the mean of the matrix and its transpose, as a symmetric matrix."""
        return dataclasses.replace(self, values=(self.values + self.values.T) / 2, directed=False)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, ready for JSON; entries never measured are ``None``."""
        plain = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        values = [[None if np.isnan(value) else value for value in row] for row in self.values.tolist()]
        return {"format": self.FORMAT, **plain, "tasks": list(self.tasks), "values": values}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Rebuild what :meth:`to_dict` gave.

        Raises:
            OptionError: If something is missing or of a later format.
        """
        plain = cls.fields_of(data)
        try:
            rows = [[np.nan if value is None else float(value) for value in row] for row in plain.pop("values")]
        except (TypeError, ValueError) as error:
            raise OptionError("AffinityMatrix: values must be rows of numbers or null") from error
        return cls(values=np.array(rows), **plain)


def measured(matrix: AffinityMatrix, owner: str, *, diagonal: bool = False) -> Matrix:
    """Return the entries, turned so that higher is better; entries of the diagonal that are NaN are 0.

    Args:
        matrix: What was measured.
        owner: Who asks, for messages.
        diagonal: Whether the diagonal is read, and must not be NaN.

    Raises:
        NonFiniteError: If an entry was never measured; the message names it.
    """
    values = matrix.values if matrix.higher_is_better else -matrix.values
    missing = np.isnan(values) & (diagonal | ~np.eye(len(values), dtype=bool))
    if missing.any():
        i, j = np.argwhere(missing)[0]
        tasks = tuple(task for at, task in enumerate(matrix.tasks) if missing[at].any() or missing[:, at].any())
        raise NonFiniteError(
            f"{owner}: {matrix.pair(i, j)} was never measured ({int(missing.sum())} such entries); measure batches "
            "that have labels of both, or leave the task out",
            tasks,
        )
    return np.nan_to_num(values, nan=0.0)
