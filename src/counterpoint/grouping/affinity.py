"""Affinity between tasks: a matrix that says what its rows, columns and diagonal mean."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from counterpoint._checks import check_tasks
from counterpoint.errors import FileError, NonFiniteError, OptionError, ShapeError

Matrix = NDArray[np.float64]

_FORMAT = 1


@dataclasses.dataclass(frozen=True, eq=False)
class AffinityMatrix:
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
        return {"format": _FORMAT, **plain, "tasks": list(self.tasks), "values": values}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Rebuild what :meth:`to_dict` gave.

        Raises:
            OptionError: If something is missing or of a later format.
        """
        plain = checked("AffinityMatrix", cls, data, _FORMAT)
        try:
            rows = [[np.nan if value is None else float(value) for value in row] for row in plain.pop("values")]
        except (TypeError, ValueError) as error:
            raise OptionError("AffinityMatrix: values must be rows of numbers or null") from error
        return cls(values=np.array(rows), **plain)

    def save(self, path: str | Path) -> None:
        """Write the matrix as JSON."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what :meth:`save` wrote.

        Raises:
            FileError: If there is no such file or it is not JSON.
        """
        return cls.from_dict(read_json(path))


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


def checked(owner: str, cls: type, data: Any, current: int) -> dict[str, Any]:
    """Return the fields of a dataclass from plain data.

    Raises:
        OptionError: If the format is another one, or a field is missing or unknown.
    """
    if not isinstance(data, dict) or data.get("format") != current:
        found = data.get("format") if isinstance(data, dict) else type(data).__name__
        raise OptionError(f"{owner}: expected data of format {current}, got {found!r}")
    plain = {key: value for key, value in data.items() if key != "format"}
    valid: Sequence[str] = [field.name for field in dataclasses.fields(cls)]
    if set(plain) != set(valid):
        wrong = sorted(set(plain) ^ set(valid))
        raise OptionError(f"{owner}: must have exactly {', '.join(valid)}; missing or unknown: {', '.join(wrong)}")
    return plain


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        FileError: If there is no such file or it is not JSON.
    """
    try:
        return json.loads(Path(path).read_text())
    except OSError as error:
        raise FileError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise FileError(f"{path}: not JSON: {error}") from error
