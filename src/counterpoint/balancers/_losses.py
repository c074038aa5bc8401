"""Reading the losses of one call: which task each belongs to, and whether it can be used."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from counterpoint.errors import GraphError, NonFiniteError, OptionError, ShapeError
from counterpoint.registry import unknown

Losses = Mapping[str, Tensor | None] | Sequence[Tensor | None] | Tensor


@dataclasses.dataclass(frozen=True)
class Step:
    """The losses of one call, checked.

    Attributes:
        names: Names of all K tasks.
        present: Positions of the k tasks that have a loss.
        losses: Their losses.
        values: The same, detached, (k,), in float32 or wider.
    """

    names: tuple[str, ...]
    present: tuple[int, ...]
    losses: tuple[Tensor, ...]
    values: Tensor

    def names_of(self, positions: Sequence[int]) -> tuple[str, ...]:
        """Return the names of tasks given by their positions among the present ones."""
        return tuple(self.names[self.present[position]] for position in positions)


@torch.enable_grad()  # the caller may have switched it off, and a view must keep the graph
def read_losses(
    owner: str, num_tasks: int, names: tuple[str, ...] | None, losses: Losses, *, nonnegative: bool = False
) -> Step:
    """Check the losses of a call and sort them by task.

    Args:
        owner: Name of the balancer, for messages.
        num_tasks: Number of tasks K.
        names: Names of the tasks, if they are known.
        losses: What the caller gave.
        nonnegative: Refuse losses below zero.

    Raises:
        ShapeError: If the number of losses is not K, or one is no real scalar.
        UnknownNameError: If a mapping has a task that is not among the names.
        GraphError: If a loss has no graph.
        NonFiniteError: If a loss is NaN or infinite.
        OptionError: If a loss is negative where it must not be.
    """
    names, given = align(owner, num_tasks, names, losses)
    present = tuple(task for task, loss in enumerate(given) if loss is not None)
    found = tuple(
        _check_scalar(f"{owner}: the loss of task {names[task]!r}", loss)
        for task, loss in enumerate(given)
        if loss is not None
    )
    if not found:
        return Step(names, (), (), torch.zeros(0))
    step = Step(names, present, found, _values(found))
    check_values(owner, step.names_of(range(len(step.losses))), step.values, nonnegative=nonnegative)
    return step


@torch.no_grad()
def _values(losses: Sequence[Tensor]) -> Tensor:
    """Return the losses as one vector, on the device of the first, in float32 or wider."""
    dtypes = {loss.dtype for loss in losses}
    dtype = functools.reduce(torch.promote_types, dtypes, torch.float32)
    device = losses[0].device
    if dtypes == {dtype} and all(loss.device == device for loss in losses):
        return torch.stack(losses)  # type: ignore[arg-type]
    return torch.stack([loss.to(device, dtype) for loss in losses])


def read_values(
    owner: str, num_tasks: int, names: tuple[str, ...] | None, losses: Losses
) -> tuple[tuple[str, ...], tuple[int, ...], Tensor]:
    """Return the names of all tasks, which are present, and their losses (k,) in float64; no graph is needed.

    Raises:
        ShapeError: If the number of losses is not K, or one is no real scalar.
        UnknownNameError: If a mapping has a task that is not among the names.
        NonFiniteError: If a loss is NaN or infinite.
    """
    names, given = align(owner, num_tasks, names, losses)
    present = tuple(task for task, loss in enumerate(given) if loss is not None)
    values = []
    for task in present:
        loss = given[task]
        if not isinstance(loss, Tensor) or loss.numel() != 1 or loss.is_complex():
            shown = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise ShapeError(f"{owner}: the loss of task {names[task]!r} must be a real scalar tensor, got {shown}")
        values.append(loss.detach().reshape(()).double())
    found = torch.stack(values) if values else torch.zeros(0, dtype=torch.float64)
    check_values(owner, [names[task] for task in present], found, nonnegative=False)
    return names, present, found


def align(
    owner: str, num_tasks: int, names: tuple[str, ...] | None, losses: Losses
) -> tuple[tuple[str, ...], list[Tensor | None]]:
    """Return the names of all tasks and what was given for each.

    Raises:
        ShapeError: If the number of losses does not fit.
        UnknownNameError: If a name is not known.
    """
    count = f"num_tasks = {num_tasks}"
    if isinstance(losses, Mapping):
        if names is None and len(losses) != num_tasks:
            raise ShapeError(
                f"{owner}: expected the losses of {count} tasks, got {len(losses)}: {list(losses)}; build the "
                f"balancer with num_tasks={len(losses)}, or with tasks=[...] if some may be missing from a batch"
            )
        names = tuple(losses) if names is None else names
        strangers = [name for name in losses if name not in names]
        if strangers:
            error = unknown(f"task of {owner}", str(strangers[0]), names)
            raise error
        return names, [losses.get(name) for name in names]
    names = names or tuple(str(task) for task in range(num_tasks))
    if isinstance(losses, Tensor) and losses.ndim != 1:
        raise ShapeError(
            f"{owner}: a tensor of losses must be 1-D with one loss per task, got shape {tuple(losses.shape)}; "
            "use torch.stack(losses), or pass a list"
        )
    given = list(losses.unbind() if isinstance(losses, Tensor) else losses)
    if len(given) != num_tasks:
        raise ShapeError(
            f"{owner}: expected {count} losses, got {len(given)}; build the balancer with "
            f"num_tasks={len(given)}, or pass None for a task without labels in this batch"
        )
    return names, given


def _check_scalar(label: str, loss: Tensor) -> Tensor:
    """Return a loss as a 0-D tensor.

    Raises:
        ShapeError: If it is no real scalar tensor.
        GraphError: If it has no graph.
    """
    if not isinstance(loss, Tensor):
        raise ShapeError(
            f"{label} must be a scalar tensor with a graph, got {type(loss).__name__}; do not call .item() on it"
        )
    if loss.numel() != 1 or loss.is_complex():
        raise ShapeError(
            f"{label} must be a real scalar, got shape {tuple(loss.shape)} {loss.dtype}; reduce it with .mean()"
        )
    if not loss.requires_grad:
        raise GraphError(
            f"{label} has no graph (requires_grad is False); compute it from the model's output outside "
            "torch.no_grad() and without .detach() or .item(), or pass None for a task without labels"
        )
    return loss.reshape(()) if loss.ndim else loss


def check_values(owner: str, names: Sequence[str], values: Tensor, *, nonnegative: bool) -> None:
    """Raise if a value (k,) of a loss is not finite, or negative where that is refused.

    Raises:
        NonFiniteError: If one is NaN or infinite.
        OptionError: If one is negative.
    """
    by_task = dict(zip(names, values.tolist(), strict=True))
    bad = tuple(task for task, value in by_task.items() if value - value != 0.0)
    if bad:
        shown = ", ".join(repr(task) for task in bad)
        raise NonFiniteError(
            f"{owner}: the loss of task {shown} is not finite ({by_task}); nothing was written to .grad; "
            "lower the learning rate, check the batch, or pass None for this task",
            bad,
        )
    negative = {task: value for task, value in by_task.items() if nonnegative and value < 0}
    for task, value in negative.items():
        raise OptionError(
            f"{owner}: the loss of task {task!r} is {value:g}, and this method needs losses of at least 0; add a "
            "constant to the loss or take another method"
        )
