"""In-place operations: what they write to must not be memory that the tasks have in common."""

import functools
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from counterpoint.errors import SplitError
from counterpoint.splitting._where import running_module, running_modules

_IN_PLACE = re.compile(
    r"[a-z].*_|__(?:i(?:add|sub|mul|div|truediv|floordiv|mod|pow|and|or|xor|lshift|rshift)|setitem|set)__"
)
# these keep no tensor for the backward pass, and so need no clone of what they write to
_OUT_OF_PLACE = {"add_": Tensor.add, "__iadd__": Tensor.add, "sub_": Tensor.sub, "__isub__": Tensor.sub}


@functools.cache
def is_write(name: str) -> bool:
    """Whether a function of this name writes to its first argument."""
    return _IN_PLACE.fullmatch(name) is not None


def check_apart(parts: Sequence[Tensor], name: str) -> None:
    """Raise if the tensors of several tasks are views of one memory, which would be written to once per task."""
    if len(parts) > 1 and parts[0]._is_view() and parts[1]._is_view() and parts[0]._base is parts[1]._base:
        raise _refused(name, "writes once per task to one memory", "write it out of place")


def check_out(out: Any) -> None:
    """Raise if ``out=`` is a tensor that all tasks have in common."""
    targets = out if isinstance(out, tuple | list) else (out,)
    if any(type(target) is Tensor or isinstance(target, torch.nn.Parameter) for target in targets):
        raise _refused("out=", "writes values that differ by task to a tensor common to all", "drop out=")


def write_common(
    func: Callable, name: str, target: Any, results: Callable[[Callable[[int], Tensor]], list[Tensor]], pick: Callable
) -> list[Tensor]:
    """Return what an in-place operation on a tensor common to all tasks makes of it, one new tensor per task.

    Args:
        func: The in-place operation.
        name: Its name.
        target: The common tensor.
        results: Runs a function for every task.
        pick: Returns the other arguments of one task, positional and by name.

    Raises:
        SplitError: If other tensors would have to see what is written.
    """
    if not isinstance(target, Tensor) or name == "__set__":
        raise _refused(name, "writes values that differ by task to something common to all", "write it out of place")
    _check_private(target, name)
    if target.is_leaf and target.requires_grad and torch.is_grad_enabled():
        func(target, *pick(0)[0], **pick(0)[1])  # raises what PyTorch has to say about it
    direct = _OUT_OF_PLACE.get(name)

    def run(task: int) -> Tensor:
        args, kwargs = pick(task)
        if direct is not None:
            made = direct(target, *args, **kwargs)
            if made.shape == target.shape and made.dtype == target.dtype:
                return made
        made = target.clone()
        func(made, *args, **kwargs)
        return made

    return results(run)


def _check_private(target: Tensor, name: str) -> None:
    """Raise unless the object ``target`` is all that has this memory."""
    inner = running_modules()[:1]
    for module in inner:
        for attribute, own in (*module._buffers.items(), *module._parameters.items()):
            if own is target:
                raise _refused(
                    name,
                    f"writes values that differ by task to its own {attribute!r}, which is common to all tasks",
                    "split this layer too",
                )
    if any(found > clean for found, clean in zip(_holders(target), _clean(target._is_view()), strict=True)):
        raise _refused(
            name,
            "writes values that differ by task to memory that other tensors share or that the backward pass needs",
            "write it out of place (x = x + y)",
        )


def _holders(tensor: Tensor) -> tuple[int, ...]:
    """Count what holds the tensor's implementation, its memory, and the tensor that it is a view of."""
    counts = (tensor._use_count(), torch._C._storage_Use_Count(tensor.untyped_storage()._cdata))  # pyright: ignore
    base = tensor._base
    return counts if base is None else (*counts, base._use_count(), sys.getrefcount(base))  # pyright: ignore


@functools.cache
def _clean(view: bool) -> tuple[int, ...]:
    """Return the counts of a tensor that nothing else holds; they differ by version of PyTorch and Python."""
    fresh = torch.zeros(2).view(1, 2) if view else torch.zeros(2)
    return _holders(fresh)


def _refused(name: str, what: str, advice: str) -> SplitError:
    return SplitError(f"split: {running_module()}, {name} {what}; {advice}")
