"""The copies of a layer: parameters and buffers with one original per task, read as streams."""

import threading
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from counterpoint.splitting.streams import Streams, gather


class _Selected(threading.local):
    """The task for which a module runs as a whole; ``None`` for all at once."""

    task: int | None = None


_local = _Selected()


def selected() -> int | None:
    """Return the task for which a module runs as a whole; ``None`` for all at once."""
    return _local.task


class select:  # noqa: N801 - used like a function
    """Read one task's copies instead of streams, as a context manager."""

    __slots__ = ("task",)

    def __init__(self, task: int) -> None:
        self.task = task

    def __enter__(self) -> None:
        _local.task = self.task

    def __exit__(self, *_: object) -> None:
        _local.task = None


class Copies(nn.Module):
    """Parametrization with one original per task.

    Args:
        num_tasks: Number of tasks K.
        same_noise: What is computed from these copies draws the same random numbers for every task.
    """

    def __init__(self, num_tasks: int, *, same_noise: bool) -> None:
        super().__init__()
        self.num_tasks = num_tasks
        self.same_noise = same_noise

    def forward(self, *originals: Tensor) -> Tensor:
        """Return the originals as streams, or the one of the selected task."""
        task = selected()
        return gather(originals, same_noise=self.same_noise) if task is None else originals[task]

    def right_inverse(self, value: Tensor) -> list[Tensor]:
        """Return one tensor per task from streams, or from one tensor for all."""
        if isinstance(value, Streams):
            return [part.clone() for part in value._parts]
        return [value, *(value.clone() for _ in range(self.num_tasks - 1))]

    def extra_repr(self) -> str:
        """Say for how many tasks."""
        return f"num_tasks={self.num_tasks}"


def add_copies(module: nn.Module, name: str, values: Sequence[Tensor], *, same_noise: bool) -> None:
    """Give a parameter or buffer of a module one original per task.

    Args:
        module: Owner of the tensor.
        name: Attribute.
        values: The originals. A tensor that is tied to another module comes here twice, with the same values.
        same_noise: See :class:`Copies`.
    """
    persistent = name not in module._non_persistent_buffers_set
    if parametrize.is_parametrized(module) and type(module).__dict__.get("_counterpoint_owner") != id(module):
        base: Any = type(module)  # by parametrizations of somebody else's; copies of the module have the same class
        module.__class__ = type(base.__name__, (base,), {"__module__": base.__module__})
    parametrize.register_parametrization(module, name, Copies(len(values), same_noise=same_noise), unsafe=True)
    add_shortcut(type(module), name)
    type(module)._counterpoint_owner = id(module)  # pyright: ignore[reportAttributeAccessIssue] - its own class
    holders: Any = module.parametrizations
    holder = holders[name]
    for task, value in enumerate(values):
        key = f"original{task}"
        if isinstance(value, nn.Parameter):
            setattr(holder, key, value)
        else:
            holder.register_buffer(key, value, persistent=persistent)


def add_shortcut(kind: type[nn.Module], name: str) -> None:
    """Let a parametrized attribute give a selected task's original without the calls of modules in between.

    Args:
        kind: The class of one module, with the property that ``torch.nn.utils.parametrize`` made.
        name: The attribute.
    """
    slow: Any = kind.__dict__[name]

    def get(self: nn.Module) -> Any:
        task = _local.task
        if task is None:
            return slow.fget(self)
        holder: Any = self._modules["parametrizations"]._modules[name]  # pyright: ignore[reportOptionalMemberAccess]
        steps = holder._modules
        if len(steps) != 1 or not isinstance(steps["0"], Copies):
            return slow.fget(self)
        key = f"original{task}"
        return holder._parameters[key] if key in holder._parameters else holder._buffers[key]

    setattr(kind, name, property(get, slow.fset))


def num_tasks_of(module: nn.Module) -> int | None:
    """Return for how many tasks a network was split; ``None`` if it was not."""
    counts = {part.num_tasks for part in module.modules() if isinstance(part, Copies)}
    return counts.pop() if counts else None
