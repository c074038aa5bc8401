"""Heads read the stream of their task."""

from typing import Any

from torch import nn

from counterpoint.splitting.streams import Streams, check_history, collect, pick


class _Read:
    """Hook before ``forward``: hands a head the tensors of its own task."""

    def __init__(self, task: int) -> None:
        self.task = task

    def __call__(self, _module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        return _own((args, kwargs), self.task)


class _Give:
    """Hook after ``forward``: a head that reads split parameters (a tied embedding) gives its own task's output."""

    def __init__(self, task: int) -> None:
        self.task = task

    def __call__(self, _module: nn.Module, _args: Any, output: Any) -> Any:
        return _own(output, self.task)


def _own(value: Any, task: int) -> Any:
    """Return a nested value with the tensors of one task."""
    found: list[Streams] = []
    collect(value, found)
    check_history(found)
    return pick(value, task)


def read_own_stream(head: nn.Module, task: int) -> None:
    """Let a module read and return the tensors of one task; once, however often it is asked for."""
    if not any(isinstance(hook, _Read) for hook in head._forward_pre_hooks.values()):
        head.register_forward_pre_hook(_Read(task), with_kwargs=True)
        head.register_forward_hook(_Give(task))


def task_of(head: nn.Module) -> int | None:
    """Return whose stream a module reads; ``None`` if it was not made a head."""
    found = [hook.task for hook in head._forward_pre_hooks.values() if isinstance(hook, _Read)]
    return found[0] if found else None
