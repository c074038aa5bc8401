"""Groups of tasks as a caller gives them: lists of names or positions."""

from collections.abc import Sequence

from counterpoint.errors import OptionError
from counterpoint.registry import unknown

Group = tuple[int, ...]


def read_groups(
    owner: str, groups: Sequence[Sequence[str | int]], num_tasks: int, tasks: Sequence[str] | None
) -> list[Group]:
    """Return the positions of the tasks of each group.

    Args:
        owner: Name of the schedule, for messages.
        groups: Each a list of names or positions of tasks.
        num_tasks: Number of tasks K.
        tasks: Their names, if they have names.

    Raises:
        OptionError: If there is no group, one is empty or has a task twice, or there is no such task.
    """
    found = [_positions(owner, group, num_tasks, tasks or ()) for group in groups]
    if not found:
        raise OptionError(f"{owner}: groups must have at least one group")
    return found


def left_out(groups: Sequence[Group], num_tasks: int, tasks: Sequence[str] | None) -> list[str | int]:
    """Return the names, or positions, of the tasks in no group."""
    names: Sequence[str | int] = tasks or range(num_tasks)
    return [name for task, name in enumerate(names) if not any(task in group for group in groups)]


def _positions(owner: str, group: Sequence[str | int], num_tasks: int, names: Sequence[str]) -> Group:
    if isinstance(group, str) or not isinstance(group, Sequence) or not group:
        raise OptionError(f"{owner}: each group must be a list of at least one task, got {group!r}")
    positions: list[int] = []
    for task in group:
        known: Sequence[str | int] = names if isinstance(task, str) else range(num_tasks)
        if task not in known or isinstance(task, bool):
            hint = "; build the schedule with tasks=[...] to use names" if isinstance(task, str) and not names else ""
            raise OptionError(f"{owner}: {unknown('task', str(task), map(str, known))}{hint}")
        positions.append(known.index(task))  # type: ignore[arg-type]
    if len(set(positions)) != len(positions):
        raise OptionError(f"{owner}: a group must have each task once, got {list(group)}")
    return tuple(sorted(positions))
