"""Checks of user input; each message names the owner, the argument, what was expected and what came."""

from collections.abc import Collection
from typing import TypeVar

from counterpoint.errors import OptionError
from counterpoint.registry import nearest

Number = TypeVar("Number", int, float)


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


def check_choice(name: str, value: str, choices: Collection[str]) -> str:
    """Return ``value`` if it is one of ``choices``, else raise with the nearest one.

    Raises:
        OptionError: If it is not.
    """
    if value in choices:
        return value
    raise OptionError(f"{name} must be one of {', '.join(choices)}, got {value!r}{nearest(str(value), choices)}")
