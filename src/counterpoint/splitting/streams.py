"""Streams: one tensor per task that go through a network as one, and come out as one output per task."""

import copy
import dataclasses
import functools
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from counterpoint.errors import OptionError, SplitError
from counterpoint.splitting import _write
from counterpoint.splitting._noise import NOISY, repeated_noise
from counterpoint.splitting._where import running_module

# a common tensor takes shape, dtype or device from its argument, and none of its values
_METADATA_ONLY = frozenset({"expand_as", "view_as", "reshape_as", "type_as", "to"})
_READS = frozenset({"item", "tolist", "__float__", "__complex__"})
_PLAIN = (int, float, bool, str, type(None), torch.Size, torch.dtype, torch.device, torch.layout, torch.memory_format)
_ATOMS = frozenset(_PLAIN)
_FLAT = frozenset({Tensor, torch.nn.Parameter, *_PLAIN})  # types of arguments that have nothing inside
_META = torch.device("meta")
_ANY = Tensor.requires_grad.__get__  # pyright: ignore[reportAttributeAccessIssue] - a copy may be frozen for one task
_ALONE = "write it with tensor operations, or name the module in split(..., whole=[...]): it then runs once per task"


class Streams(Tensor):
    """One tensor per task that behaves as a single one: every operation is mapped over the tasks.

    What mixes a common tensor with streams gives streams: the common one takes part in each of them. A decision that
    all tasks take alike is taken (``if (x < 0).any():``); as soon as they differ, an error names the module.
    """

    _parts: tuple[Tensor, ...]
    _same_noise: bool

    @classmethod
    def __torch_function__(cls, func: Callable, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        """Map a call over the tasks."""
        return _call(func, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        """Refuse what bypasses :meth:`__torch_function__`: it cannot be mapped from here."""
        raise refusal(f"{func} is called from code that Python does not see (a C++ extension, a custom function)")

    def __repr__(self, *, tensor_contents: object = None) -> str:
        return f"Streams({', '.join(map(repr, self._parts))})"

    def __format__(self, spec: str) -> str:
        return repr(self)

    def __hash__(self) -> int:
        return id(self)

    def __iter__(self) -> Any:
        return iter(self.unbind(0))

    def __deepcopy__(self, memo: dict[int, Any]) -> "Streams":
        return gather([copy.deepcopy(part, memo) for part in self._parts], same_noise=self._same_noise)

    def __reduce_ex__(self, protocol: Any) -> tuple:
        return functools.partial(gather, same_noise=self._same_noise), (self._parts,)


def gather(parts: Sequence[Tensor], *, same_noise: bool) -> Streams:
    """Return one tensor per task as streams.

    Args:
        parts: One tensor per task.
        same_noise: Operations that draw random numbers (dropout) draw the same ones for every task.
    """
    first = parts[0]
    made = Tensor._make_wrapper_subclass(  # pyright: ignore[reportAttributeAccessIssue]
        Streams,
        first.shape,
        dtype=first.dtype,
        device=_META,  # code in C that assigns or reads it finds no memory and fails, where it would take any address
        requires_grad=True in [part.requires_grad for part in parts],
    )
    made._parts = tuple(parts)
    made._same_noise = same_noise
    return made


def streams(output: Any, num_tasks: int | None = None) -> tuple[Any, ...]:
    """Return one output per task of a network that was split.

    Args:
        output: What the network returned: a tensor, or tensors in tuples, lists, mappings and dataclasses.
        num_tasks: Number of tasks K. Needed where no layer on the way to ``output`` is split: it is then the output of
            every task.

    Returns:
        K outputs of the same form; what no split layer reaches stands in each of them.

    Raises:
        OptionError: If nothing in ``output`` differs by task and ``num_tasks`` is not given.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from counterpoint.splitting import split, streams
        >>> network = split(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1)), ["2"], num_tasks=3)
        >>> [tuple(y.shape) for y in streams(network(torch.randn(5, 4)))]
        [(5, 1), (5, 1), (5, 1)]
    """
    found: list[Streams] = []
    collect(output, found)
    check_history(found)
    count = len(found[0]._parts) if found else num_tasks
    if count is None:
        raise OptionError(
            "streams: no split layer is on the way to this output; pass num_tasks to get it for each task"
        )
    if num_tasks not in (None, count):
        raise OptionError(f"streams: the network was split for {count} tasks, got num_tasks={num_tasks}")
    return tuple(pick(output, task) for task in range(count))


def each(function: Callable, *args: Any, **kwargs: Any) -> Any:
    """Call a function once per task, each time with the tensors of that task, and return the joined results.

    The way out for code of your own that cannot be mapped operation by operation: a custom autograd function, a C++
    extension, a Python branch on values.

    Args:
        function: Gets plain tensors.
        args: Positional arguments; streams anywhere in tuples, lists and mappings are replaced by one task's tensor.
        kwargs: The same by name.
    """
    found: list[Streams] = []
    collect((args, kwargs), found)
    if not found:
        return function(*args, **kwargs)
    check_history(found)
    results = [function(*pick(args, task), **pick(kwargs, task)) for task in range(count_tasks(found))]
    return join(results, getattr(function, "__name__", "the function"), found, same_noise=draws_alike(found))


def collect(value: Any, found: list[Streams]) -> None:
    """Add every ``Streams`` inside a nested value to ``found``."""
    kind = type(value)
    if kind is Streams:
        found.append(value)
    elif kind not in _FLAT:
        for item in _items(value):
            collect(item, found)


def _items(value: Any) -> Iterable[Any]:
    """Return what is inside of a nested value; nothing for what is not nested."""
    if isinstance(value, Tensor):
        return ()
    if isinstance(value, (tuple, list)):
        return value
    if isinstance(value, Mapping):
        return value.values()
    if isinstance(value, slice):
        return value.start, value.stop, value.step
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [getattr(value, field.name) for field in dataclasses.fields(value)]
    return ()


def pick(value: Any, task: int) -> Any:
    """Return a nested value with the tensor of one task in place of every ``Streams``."""
    kind = type(value)
    if kind is Streams:
        return value._parts[task]
    if kind in _FLAT or isinstance(value, Tensor):
        return value
    if kind is tuple or kind is list:
        return kind([item._parts[task] if type(item) is Streams else pick(item, task) for item in value])
    if isinstance(value, tuple):
        items = [pick(item, task) for item in value]
        return kind(*items) if hasattr(value, "_fields") else value if isinstance(value, torch.Size) else kind(items)
    if isinstance(value, list):
        return kind([pick(item, task) for item in value])
    if isinstance(value, Mapping):
        return _fill(value, {key: pick(item, task) for key, item in value.items()})
    if isinstance(value, slice):
        return slice(*(pick(bound, task) for bound in (value.start, value.stop, value.step)))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        made = copy.copy(value)
        for field in dataclasses.fields(value):
            object.__setattr__(made, field.name, pick(getattr(value, field.name), task))
        return made
    return value


def _fill(value: Mapping, items: dict[Any, Any]) -> Any:
    """Return a mapping of the same kind with other items where that can be filled, else a dict."""
    if type(value) is dict or not hasattr(value, "__setitem__"):
        return items
    made: Any = copy.copy(value)
    for key, item in items.items():
        made[key] = item
    return made


def join(results: Sequence[Any], source: str | Callable, found: Sequence[Streams] = (), *, same_noise: bool) -> Any:
    """Return the results of K calls as one: tensors as streams, what is the same for all as it is.

    Args:
        results: One result per task.
        source: What was called, for the message.
        found: The streams among the arguments; one of them is returned where the results are its own tensors.
        same_noise: See :class:`Streams`.

    Raises:
        SplitError: If the results differ in a way that no tensor can carry.
    """
    first = results[0]
    if isinstance(first, Tensor):
        for known in found:
            if first is known._parts[0] and all(map(operator.is_, results, known._parts)):
                return known  # an in-place operation, or one that had nothing to do
        if len(results) > 1 and results[1] is first and all(result is first for result in results):
            return first
        return gather(results, same_noise=same_noise)
    if isinstance(first, _PLAIN):
        if any(result != first for result in results):
            shown = ", ".join(map(str, results))
            raise refusal(f"{_readable(source)} gives {shown} for the tasks: Python code can follow one only")
        return first
    if isinstance(first, tuple | list) and all(len(result) == len(first) for result in results):
        items = [join(column, source, found, same_noise=same_noise) for column in zip(*results, strict=True)]
        kind: Any = type(first)
        return kind(*items) if hasattr(first, "_fields") else kind(items)
    if isinstance(first, Mapping) and all(result.keys() == first.keys() for result in results):
        return _fill(
            first, {key: join([r[key] for r in results], source, found, same_noise=same_noise) for key in first}
        )
    raise refusal(f"{_readable(source)} gives a {type(first).__name__} for each task")


def refusal(what: str, advice: str = _ALONE) -> SplitError:
    """Build the error for something that cannot be done once for all tasks; names the running module."""
    return SplitError(f"split: {running_module()}, {what}; {advice}")


def draws_alike(found: Sequence[Streams]) -> bool:
    """Whether random numbers are to be the same for every task, where some streams meet."""
    return True in [known._same_noise for known in found]


def count_tasks(found: Sequence[Streams], further: Iterable[int] = ()) -> int:
    """Return the number of tasks of some streams, and of whatever else has one.

    Raises:
        SplitError: If it is not the same for all.
    """
    counts = [*[len(known._parts) for known in found], *further]
    count = counts[0]
    if counts.count(count) != len(counts):
        meeting = sorted(set(counts))
        raise refusal(f"streams of {meeting} tasks meet", "split all layers for the same number of tasks")
    return count


def check_history(found: Sequence[Streams]) -> None:
    """Refuse streams that got a history of their own: the streams inside have none, gradients would be lost."""
    with torch._C.DisableTorchFunctionSubclass():
        for known in found:
            if known.grad_fn is not None:
                raise refusal(f"the custom function {known.grad_fn.name()} is applied to streams")


def _call(func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
    """Run a function of PyTorch once per task."""
    kind = _kind(func.__name__)
    if kind != "special" and (not kwargs or all(type(value) in _ATOMS for value in kwargs.values())):
        flat = _flat_streams(args)
        if flat and (kind == "computes" or args[0] is flat[0]):
            count = count_tasks(flat)
            check_history(flat)
            if kind == "writes":
                _write.check_apart(flat[0]._parts, func.__name__)
            results = [
                func(*[a._parts[task] if type(a) is Streams else a for a in args], **kwargs) for task in range(count)
            ]
            return join(results, func, flat, same_noise=draws_alike(flat))
    found: list[Streams] = []
    collect(args, found)
    if kwargs:
        collect(kwargs, found)
    if not found:
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs)
    count = count_tasks(found)
    check_history(found)
    name = func.__name__
    if func == _ANY:
        return any(part.requires_grad for part in found[0]._parts)
    if name in _METADATA_ONLY and not isinstance(args[0], Streams) and _same_kind(found):
        return func(*pick(args, 0), **pick(kwargs, 0))
    if name in _READS and found[0]._parts[0].dtype.is_floating_point:
        raise refusal(f"{name} reads a number that differs by task")
    return _map(func, name, args, kwargs, found, count)


@functools.cache
def _kind(name: str) -> Literal["computes", "writes", "special"]:
    """Say whether a function of this name only computes, writes to its first argument, or needs a closer look."""
    if name in _METADATA_ONLY | _READS | NOISY | {"__get__", "__set__"}:
        return "special"
    return "writes" if _write.is_write(name) else "computes"


def _flat_streams(args: tuple) -> list[Streams]:
    """Return the streams among arguments that have none further inside; none if that takes a closer look."""
    found: list[Streams] = []
    for value in args:
        kind = type(value)
        if kind is Streams:
            found.append(value)
        elif kind is tuple:
            for item in value:
                if type(item) is not int:
                    return []
        elif kind not in _FLAT:
            return []
    return found


def _map(func: Callable, name: str, args: tuple, kwargs: dict[str, Any], found: Sequence[Streams], count: int) -> Any:
    """Run a function that computes something once per task, and see to what it writes."""
    quiet = draws_alike(found)

    def repeat(run: Callable[[int], Any]) -> list[Any]:
        if quiet and name in NOISY:
            return repeated_noise(run, count, found[0]._parts[0].device, kwargs)
        return [run(task) for task in range(count)]

    if _write.is_write(name):
        target = args[0]
        if not isinstance(target, Streams):
            parts = _write.write_common(
                func, name, target, repeat, lambda task: (pick(args[1:], task), pick(kwargs, task))
            )
            torch.utils.swap_tensors(target, gather(parts, same_noise=quiet))
            return target
        _write.check_apart(target._parts, name)
    elif kwargs.get("out") is not None:
        _write.check_out(kwargs["out"])
    results = repeat(lambda task: func(*pick(args, task), **pick(kwargs, task)))
    return join(results, func, found, same_noise=quiet)


def _same_kind(found: Sequence[Streams]) -> bool:
    """Whether shape, dtype and device do not differ by task."""
    kinds = [{(part.shape, part.dtype, part.device) for part in known._parts} for known in found]
    return all(len(kind) == 1 for kind in kinds)


def _readable(source: str | Callable) -> str:
    """Return a name of a function for a message; ``shape`` for the getter of the property."""
    if isinstance(source, str):
        return source
    name = source.__name__
    return getattr(getattr(source, "__self__", None), "__name__", name) if name in ("__get__", "__set__") else name
