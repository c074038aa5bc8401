"""Reading what a training loop tells a balancer of the validation metrics."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from counterpoint.errors import NonFiniteError, ShapeError
from counterpoint.registry import unknown

Values = Mapping[str, float] | Sequence[float]
Directions = Mapping[str, bool] | Sequence[bool]


def read_metrics(
    owner: str, names: Sequence[str], values: Values, higher_is_better: Directions
) -> list[tuple[float, bool]]:
    """Return metric and direction of each task, in the order of the tasks; NaN for a task without a metric.

    Args:
        owner: Name of the balancer, for messages.
        names: Names of the tasks.
        values: Metric by task name, or in the order of the tasks.
        higher_is_better: Direction of each, in the same form.

    Raises:
        UnknownNameError: If there is a task that the balancer does not know.
        ShapeError: If the number of values is not that of the tasks.
        NonFiniteError: If a value is infinite.
    """
    measured = _by_task(owner, names, values, math.nan)
    higher = _by_task(owner, names, higher_is_better, True)
    for name, value in zip(names, measured, strict=True):
        if math.isinf(value):
            raise NonFiniteError(f"{owner}: the metric of task {name!r} is {value}; pass NaN for none", (name,))
    return [(float(value), bool(up)) for value, up in zip(measured, higher, strict=True)]


def _by_task(owner: str, names: Sequence[str], given: Mapping[str, Any] | Sequence[Any], missing: float) -> list[Any]:
    if isinstance(given, Mapping):
        for name in given:
            if name not in names:
                raise unknown(f"task of {owner}", str(name), names)
        return [given.get(name, missing) for name in names]
    if len(given) != len(names):
        raise ShapeError(f"{owner}: expected one metric for each of num_tasks = {len(names)}, got {len(given)}")
    return list(given)
