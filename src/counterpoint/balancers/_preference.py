"""The option ``preference`` that several methods have: how much each task counts."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from counterpoint._checks import check_per_task, check_range

Preference = Sequence[float] | Mapping[str, float]


def check_preference(
    owner: str, preference: Preference | None, num_tasks: int, tasks: Sequence[str] | None, *, positive: bool = False
) -> tuple[float, ...] | None:
    """Return one number per task, or ``None`` if nothing is preferred.

    Args:
        owner: Name of the balancer, for messages.
        preference: What was given.
        num_tasks: Number of tasks K.
        tasks: Names of the tasks, if they have names.
        positive: Refuse 0.

    Raises:
        OptionError: If the number of values or the names do not fit, or a value is negative, infinite or NaN.
    """
    if preference is None:
        return None
    name = f"{owner}: preference"
    listed = check_per_task(name, preference, num_tasks, tasks)
    return tuple(float(check_range(name, share, low=0.0, low_open=positive, high_open=True)) for share in listed)


def preference_of(listed: tuple[float, ...] | None, present: tuple[int, ...]) -> Tensor:
    """Return the numbers of the tasks that are present in float64; the same share for each if nothing is preferred."""
    if listed is None:
        return torch.full((len(present),), 1 / len(present), dtype=torch.float64)
    return torch.tensor([listed[task] for task in present], dtype=torch.float64)
