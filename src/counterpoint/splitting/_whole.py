"""Modules that run once per task as a whole, and classes made for one module that can be pickled all the same."""

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from counterpoint.splitting._copies import Copies, add_shortcut, select, selected
from counterpoint.splitting._noise import repeated_noise
from counterpoint.splitting._short import short_way
from counterpoint.splitting.streams import Streams, check_history, collect, count_tasks, draws_alike, join, pick


def make_whole(module: nn.Module) -> None:
    """Let ``forward`` of a module run once per task wherever tasks differ: in its input or in its copies.

    Inside, every tensor is a plain one. A module of which neither differs runs once, as before.
    """
    if not is_whole(module):
        base: Any = type(module)
        facts = {"forward": _forward_of(base), "_counterpoint_whole": True, "__reduce_ex__": _reduce}
        if isinstance(module, nn.RNNBase):
            facts["flatten_parameters"] = _keep  # the copies cannot lie in one block
        module.__class__ = type(base.__name__, (base,), {"__module__": base.__module__, **facts})


def is_whole(module: nn.Module) -> bool:
    """Whether a module runs once per task as a whole."""
    return getattr(type(module), "_counterpoint_whole", False)


def make_picklable(module: nn.Module) -> None:
    """Let a parametrized module be pickled; PyTorch refuses that, since its class exists in memory only."""
    kind = type(module)
    if parametrize.is_parametrized(module) and kind.__dict__.get("__reduce_ex__") is not _reduce:
        kind.__reduce_ex__ = _reduce  # pyright: ignore[reportAttributeAccessIssue] - the class is this module's own


def _forward_of(base: type[nn.Module]) -> Callable:
    """Return a ``forward`` that runs that of ``base`` once per task."""
    short = short_way(next(kind for kind in base.__mro__ if not _is_made(kind)))

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if selected() is not None:
            return base.forward(self, *args, **kwargs)
        if short is not None and len(args) == 1 and not kwargs:
            made = short(self, args[0])
            if made is not None:
                return made
        found: list[Streams] = []
        collect(args, found)
        if kwargs:
            collect(kwargs, found)
        copies = _find_copies(self)
        if not found and not copies:
            return base.forward(self, *args, **kwargs)
        check_history(found)
        count = count_tasks(found, [part.num_tasks for part in copies])
        quiet = draws_alike(found) or True in [part.same_noise for part in copies]

        def run(task: int) -> Any:
            with select(task):
                return base.forward(self, *pick(args, task), **(pick(kwargs, task) if kwargs else kwargs))

        if quiet:
            results = repeated_noise(run, count, _device(found, self), {})
        else:
            results = [run(task) for task in range(count)]
        return join(results, f"{base.__name__}.forward", found, same_noise=quiet)

    return forward


def _find_copies(module: nn.Module) -> list[Copies]:
    """Return the copies inside a module; in every forward, and so without what ``modules()`` does for each name."""
    found: list[Copies] = []
    left = [module]
    while left:
        for child in left.pop()._modules.values():
            if isinstance(child, Copies):
                found.append(child)
            elif child is not None and child._modules:
                left.append(child)
    return found


def _device(found: list[Streams], module: nn.Module) -> Any:
    """Return where random numbers are drawn."""
    return (found[0]._parts[0] if found else next(module.parameters())).device


def _keep(self: nn.Module) -> None:
    """Do nothing."""


def _reduce(self: nn.Module, protocol: Any) -> tuple:  # noqa: ARG001
    """Pickle a module by its own class and the names that its made-up class adds."""
    made = [kind for kind in type(self).__mro__ if _is_made(kind)]
    base: Any = next(kind for kind in type(self).__mro__ if kind not in made)
    names = tuple(self.parametrizations) if parametrize.is_parametrized(self) else ()  # pyright: ignore
    return _rebuild, (base, names, is_whole(self)), base.__getstate__(self)


def _is_made(kind: type) -> bool:
    """Whether a class was made for one module, here or by ``torch.nn.utils.parametrize``."""
    by_torch = kind.__module__ == parametrize.__name__ and kind.__name__.startswith("Parametrized")
    return by_torch or kind.__dict__.get("__reduce_ex__") is _reduce


def _rebuild(base: type[nn.Module], names: tuple[str, ...], whole: bool) -> nn.Module:
    """Make an empty module of a class like the one that was pickled."""
    module = base.__new__(base)
    if names:
        parametrize._inject_new_class(module)
        for name in names:
            parametrize._inject_property(module, name)
            add_shortcut(type(module), name)
        type(module).__reduce_ex__ = _reduce  # pyright: ignore[reportAttributeAccessIssue]
    if whole:
        make_whole(module)
    return module
