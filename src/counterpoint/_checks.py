"""Checks of user input; each message names the owner, the argument, what was expected and what came."""

from collections.abc import Collection, Mapping, Sequence
from typing import TypeVar

from counterpoint.errors import OptionError
from counterpoint.registry import nearest

Number = TypeVar("Number", int, float)
Value = TypeVar("Value")


def check_range(
    name: str,
    value: Number,
    *,
    low: float = float("-inf"),
    high: float = float("inf"),
    low_open: bool = False,
    high_open: bool = False,
) -> Number:
    """Return ``value`` if it lies between ``low`` and ``high``, else raise.

    Args:
        name: ``Owner: argument`` as it should stand in the message.
        value: The number to check; NaN is always refused.
        low: Lower bound.
        high: Upper bound.
        low_open: The lower bound itself is not allowed.
        high_open: The upper bound itself is not allowed.

    Raises:
        OptionError: If the value is no number or outside the range.
    """
    interval = f"{'(' if low_open else '['}{low:g}, {high:g}{')' if high_open else ']'}"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise OptionError(f"{name} must be a number in {interval}, got {value!r}")
    above = value > low if low_open else value >= low
    below = value < high if high_open else value <= high
    if not (above and below):
        raise OptionError(f"{name} must be in {interval}, got {value!r}")
    return value


def check_integer(name: str, value: int, *, low: int) -> int:
    """Return ``value`` if it is a whole number of at least ``low``.

    Raises:
        OptionError: If it is not.
    """
    if not isinstance(value, int):
        raise OptionError(f"{name} must be a whole number, got {value!r}")
    return check_range(name, value, low=low)


def check_choice(name: str, value: str, choices: Collection[str]) -> str:
    """Return ``value`` if it is one of ``choices``, else raise with the nearest one.

    Raises:
        OptionError: If it is not.
    """
    if value in choices:
        return value
    raise OptionError(f"{name} must be one of {', '.join(choices)}, got {value!r}{nearest(str(value), choices)}")


def check_per_task(
    name: str, value: Value | Sequence[Value] | Mapping[str, Value], num_tasks: int, tasks: Sequence[str] | None
) -> tuple[Value, ...]:
    """Return one value per task, from one for all, a sequence in the order of the tasks, or a mapping by task name.

    Args:
        name: ``Owner: argument`` as it should stand in the message.
        value: What was given; text counts as one value.
        num_tasks: Number of tasks K.
        tasks: Names of the tasks, if they have names.

    Raises:
        OptionError: If the number of values or the names do not fit.
    """
    if isinstance(value, Mapping):
        if tasks is None:
            raise OptionError(f"{name} is given by task name, so the balancer needs the names: tasks=[...]")
        if set(value) != set(tasks):
            raise OptionError(f"{name} must have one value for each of {list(tasks)}, got {list(value)}")
        return tuple(value[task] for task in tasks)
    if isinstance(value, Sequence) and not isinstance(value, str):
        if len(value) != num_tasks:
            raise OptionError(f"{name} must have num_tasks = {num_tasks} values, got {len(value)}: {list(value)!r}")
        return tuple(value)
    return (value,) * num_tasks  # type: ignore[return-value]


def check_tasks(owner: str, num_tasks: int | None, tasks: Sequence[str] | None) -> int:
    """Return the number of tasks.

    Args:
        owner: Class whose arguments they are, for messages.
        num_tasks: Number of tasks K, if it was given.
        tasks: Names of the tasks, if they were given.

    Raises:
        OptionError: If it is not given, or does not fit the names.
    """
    if isinstance(tasks, str):
        raise OptionError(f"{owner}: tasks must be a sequence of names, got the single name {tasks!r}")
    if tasks is not None and len(set(tasks)) != len(tasks):
        raise OptionError(f"{owner}: tasks must be different names, got {list(tasks)}")
    if num_tasks is None:
        if tasks is None:
            raise OptionError(f"{owner}: give num_tasks, or the names of the tasks with tasks=[...]")
        num_tasks = len(tasks)
    if isinstance(num_tasks, bool) or not isinstance(num_tasks, int) or num_tasks < 1:
        raise OptionError(f"{owner}: num_tasks must be a whole number of at least 1, got {num_tasks!r}")
    if tasks is not None and len(tasks) != num_tasks:
        raise OptionError(f"{owner}: num_tasks = {num_tasks} but {len(tasks)} names in tasks: {list(tasks)}")
    return num_tasks


def check_flag(name: str, value: bool) -> bool:
    """Return a value that must be true or false.

    Raises:
        OptionError: If it is anything else, such as text that would count as true.
    """
    if not isinstance(value, bool):
        raise OptionError(f"{name} must be true or false, got {value!r}")
    return value
