"""Groups of tasks, one network or one update each, and which group serves which task."""

import dataclasses
import math
from typing import Any, Self

from counterpoint._checks import check_tasks
from counterpoint._files import JsonData
from counterpoint.errors import OptionError
from counterpoint.registry import unknown


@dataclasses.dataclass(frozen=True)
class Grouping(JsonData):
    """Groups of tasks that may overlap; each task is served by one of them and only helps in the others.

    Attributes:
        tasks: Names of all tasks.
        groups: The groups, each the names of its tasks in the order of ``tasks``.
        serves: For each task the position of the group that serves it.
        score: What the solver maximized (or, for losses, minimized).
        task_scores: For each task its predicted score in the group that serves it; empty if the method has none.
        solver: Key of the method that made it.
    """

    tasks: tuple[str, ...]
    groups: tuple[tuple[str, ...], ...]
    serves: tuple[int, ...]
    score: float = math.nan
    task_scores: tuple[float, ...] = ()
    solver: str = "given"

    def __post_init__(self) -> None:
        """Check that the groups cover the tasks and that each task is served by a group it is in.

        Raises:
            UnknownNameError: If a group has a task that there is not.
            OptionError: If a group is empty or repeats, or a task is in none or served by a group it is not in.
        """
        for name in ("tasks", "serves", "task_scores"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        check_tasks("Grouping", None, self.tasks)
        groups = []
        for group in self.groups:
            if isinstance(group, str) or not group or len(set(group)) != len(group):
                raise OptionError(f"Grouping: a group must be a list of different tasks, got {group!r}")
            for task in group:
                if task not in self.tasks:
                    raise unknown("task", str(task), self.tasks)
            groups.append(tuple(sorted(group, key=self.tasks.index)))
        object.__setattr__(self, "groups", tuple(groups))
        if len(set(groups)) != len(groups):
            raise OptionError(f"Grouping: the groups must be different, got {groups}")
        self._check_service(groups)

    def _check_service(self, groups: list[tuple[str, ...]]) -> None:
        if left := [task for task in self.tasks if not any(task in group for group in groups)]:
            raise OptionError(f"Grouping: {', '.join(left)} is in no group; add it to one, or make it a group")
        if len(self.serves) != len(self.tasks):
            raise OptionError(f"Grouping: serves must have one group for each of {len(self.tasks)} tasks")
        for task, at in zip(self.tasks, self.serves, strict=True):
            if not isinstance(at, int) or not 0 <= at < len(groups) or task not in groups[at]:
                raise OptionError(f"Grouping: {task} is served by group {at!r}, in which it is not")
        if self.task_scores and len(self.task_scores) != len(self.tasks):
            raise OptionError(f"Grouping: task_scores must have {len(self.tasks)} values or none")

    @property
    def is_partition(self) -> bool:
        """Whether every task is in exactly one group."""
        return sum(map(len, self.groups)) == len(self.tasks)

    def served(self) -> dict[str, tuple[str, ...]]:
        """Return for each task the group that serves it."""
        return {task: self.groups[at] for task, at in zip(self.tasks, self.serves, strict=True)}

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, ready for JSON."""
        plain = dataclasses.asdict(self)
        plain = {key: list(value) if isinstance(value, tuple) else value for key, value in plain.items()}
        score = None if math.isnan(self.score) else self.score
        return {"format": self.FORMAT, **plain, "groups": [list(group) for group in self.groups], "score": score}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Rebuild what :meth:`to_dict` gave.

        Raises:
            OptionError: If something is missing or of a later format.
        """
        plain = cls.fields_of(data)
        if plain.get("score", 0.0) is None:
            plain["score"] = math.nan
        return cls(**plain)
