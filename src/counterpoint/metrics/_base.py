"""What every metric declares."""

import dataclasses
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True)
class MetricSpec:
    """A metric of a task.

    Attributes:
        make: Returns a fresh ``torchmetrics.Metric``, updated with ``(prediction, target)``.
        higher_is_better: Direction.
        unit: Unit of the value, such as ``"%"`` or ``"m"``; empty for a pure number.
        factor: Multiplies the computed value, to bring it to the unit.
    """

    make: Callable[[], Any]
    higher_is_better: bool
    unit: str = ""
    factor: float = 1.0
