"""The option ``task_weights`` that several methods have: a factor for each loss."""

from collections.abc import Mapping, Sequence

from counterpoint._checks import check_per_task, check_range
from counterpoint.errors import OptionError

TaskWeights = Sequence[float] | Mapping[str, float]
Tasks = Sequence[str] | None


def infer_tasks(owner: str, task_weights: TaskWeights, num_tasks: int | None, tasks: Tasks) -> tuple[int | None, Tasks]:
    """Return number and names of the tasks, as far as the weights tell what was not given.

    Args:
        owner: Name of the balancer, for messages.
        task_weights: What was given.
        num_tasks: Number of tasks K, if it was given.
        tasks: Names of the tasks, if they were given.

    Raises:
        OptionError: If the weights are neither a sequence nor a mapping.
    """
    if not isinstance(task_weights, Sequence | Mapping) or isinstance(task_weights, str):
        raise OptionError(f"{owner}: task_weights must be a sequence or a mapping by task name, got {task_weights!r}")
    if num_tasks is None and tasks is None:
        num_tasks = len(task_weights)
    if tasks is None and isinstance(task_weights, Mapping):
        tasks = tuple(task_weights)
    return num_tasks, tasks


def check_task_weights(owner: str, task_weights: TaskWeights, num_tasks: int, tasks: Tasks) -> tuple[float, ...]:
    """Return one weight per task.

    Args:
        owner: Name of the balancer, for messages.
        task_weights: What was given.
        num_tasks: Number of tasks K.
        tasks: Names of the tasks, if they have names.

    Raises:
        OptionError: If the number of weights or the names do not fit, a weight is negative, infinite or NaN, or none is
            positive.
    """
    name = f"{owner}: task_weights"
    listed = check_per_task(name, task_weights, num_tasks, tasks)
    found = tuple(float(check_range(name, weight, low=0.0, high_open=True)) for weight in listed)
    if not any(found):
        raise OptionError(f"{name} must have a positive entry, got {task_weights!r}")
    return found
