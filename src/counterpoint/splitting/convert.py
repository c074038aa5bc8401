"""Splitting: give each task its own copy of some layers, in any network, and leave the network as it is."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from counterpoint._checks import check_choice, check_integer
from counterpoint.errors import OptionError
from counterpoint.registry import unknown
from counterpoint.splitting._copies import add_copies, num_tasks_of
from counterpoint.splitting._heads import read_own_stream, task_of
from counterpoint.splitting._whole import make_picklable, make_whole
from counterpoint.splitting.layers import Layer, find_layers, kind_of, own_modules, own_tensors
from counterpoint.splitting.plan import SplitPlan

Init = Literal["same", "independent"] | Callable[[nn.Module, int], object]


def split(
    network: nn.Module,
    layers: Sequence[str] | SplitPlan,
    num_tasks: int,
    *,
    init: Init = "same",
    dropout: Literal["own", "same"] = "own",
    heads: str | Sequence[str] = (),
    whole: Sequence[str] = (),
) -> nn.Module:
    """Give each task its own copy of some layers, in place.

    Every module stays where it is; only the parameters and buffers of the chosen layers get one original per task.
    Where the network first uses one of them, its activation becomes one tensor per task (:class:`Streams`), and
    everything after that runs once per task; what comes before runs once. All that is not chosen stays shared.

    A shared batch normalization that reads streams normalizes each with its own batch statistics and updates its
    running statistics once per task; at evaluation they serve all tasks.

    Args:
        network: Any module. Make the optimizer after splitting.
        layers: Names as in :func:`find_layers`, or a plan. May be empty. A parameter that is tied is split in all
            places where it stands.
        num_tasks: Number of tasks K, at least 1; with one task there is nothing to split.
        init: ``"same"``: all copies start as the layer is, so that no output changes. ``"independent"``: the first
            keeps the layer's values, every other starts anew by the layer's ``reset_parameters``. Or a function
            ``init(layer, task)`` that changes a copy of the layer in place.
        dropout: ``"own"``: every task draws its own random numbers after the first split layer; ``"same"``: all tasks
            draw the same. Of masks that a network makes without reading an activation's values, from its shape, tasks
            have one in common either way.
        heads: The heads, one per task, in the order of the tasks: names of the modules, or the name of one container of
            them. Head k reads and returns plain tensors, those of task k. What has no heads inside returns streams: see
            :func:`streams`.
        whole: Modules that run once per task as a whole, for code that cannot be mapped operation by operation.

    Returns:
        The network itself.

    Raises:
        UnknownNameError: If there is no such layer or module; the message has the nearest names.
        OptionError: If an option does not fit the network. Nothing is changed then.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from counterpoint.splitting import split, streams
        >>> network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> first, second = streams(split(network, ["2"], num_tasks=2)(torch.randn(5, 4)))
        >>> torch.equal(first, second)
        True

    References:
        Shi et al., "Recon: Reducing Conflicting Gradients from the Root for Multi-Task Learning", ICLR 2023,
        arXiv:2302.11289. Differs from the released code: no network is rewritten; a
        residual sum of a common and a split branch reaches every task; copies start equal by default.
    """
    check_integer("split: num_tasks", num_tasks, low=1)
    check_choice("split: dropout", dropout, ("own", "same"))
    modules = dict(network.named_modules(remove_duplicate=False))
    chosen = _chosen(network, modules, layers, num_tasks)
    head_modules = _heads(modules, heads, num_tasks, chosen)
    whole_modules = [_module(modules, name) for name in whole]
    if num_tasks == 1 or not chosen:
        return network
    values: dict[Tensor, list[Tensor]] = {}
    for name, module in chosen.items():
        _copy(name, module, num_tasks, init, values)
    places = [place for _, module in own_modules(network) for place in own_tensors(module) if place[2] in values]
    for owner, attribute, tensor in places:
        add_copies(owner, attribute, values[tensor], same_noise=dropout == "same")
        make_picklable(owner)
    leaves = [module for module in chosen.values() if not _children(module)]
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]  # each stream counts for them
    for module in (*leaves, *norms, *whole_modules):
        make_whole(module)
    for task, head in enumerate(head_modules):
        read_own_stream(head, task)
    return network


def _chosen(
    network: nn.Module, modules: Mapping[str, nn.Module], layers: Sequence[str] | SplitPlan, num_tasks: int
) -> dict[str, nn.Module]:
    """Return the modules to split by name, once each, after all checks."""
    known = find_layers(network)
    if isinstance(layers, SplitPlan):
        layers.check({name: layer.num_parameters for name, layer in known.items()})
        layers = layers.layers
    if isinstance(layers, str):
        raise OptionError(f"split: layers must be a list of names, got the text {layers!r}; write [{layers!r}]")
    by_module = {modules[name]: name for name in known}
    chosen: dict[str, nn.Module] = {}
    for name in layers:
        found = by_module.get(modules[name]) if name in modules else None
        if found is None:
            raise _no_layer(name, modules, known)
        if known[found].num_copies > 1:
            raise OptionError(f"split: layer {name} is split already, for {known[found].num_copies} tasks")
        chosen[found] = modules[found]
    before = num_tasks_of(network)
    if before not in (None, num_tasks):
        raise OptionError(f"split: the network was split for {before} tasks already, got num_tasks={num_tasks}")
    return chosen


def _no_layer(name: str, modules: Mapping[str, nn.Module], known: Mapping[str, Layer]) -> Exception:
    """Build the error for a name that is no layer."""
    inside = [layer for layer in known if not name or layer.startswith(f"{name}.")]
    if name in modules:
        hint = f"; its layers are {', '.join(inside)}" if inside else ""
        what = f"{name or 'the network itself'} ({kind_of(modules[name])})"
        return OptionError(f"split: {what} has no parameters of its own{hint}")
    return unknown("layer of this network", name, known)


def _module(modules: Mapping[str, nn.Module], name: str) -> nn.Module:
    if name not in modules:
        raise unknown("module of this network", name, modules)
    return modules[name]


def _heads(
    modules: Mapping[str, nn.Module], heads: str | Sequence[str], num_tasks: int, chosen: Mapping[str, nn.Module]
) -> list[nn.Module]:
    """Return one head per task, or none."""
    if isinstance(heads, str):
        found = list(_module(modules, heads).children())
    else:
        found = [_module(modules, name) for name in heads]
    if found or heads:
        if len(found) != num_tasks or len(set(found)) != num_tasks:
            raise OptionError(f"split: heads must be num_tasks = {num_tasks} different modules, got {len(set(found))}")
        for task, head in enumerate(found):
            inside = set(head.modules())
            for name in (name for name, module in chosen.items() if module in inside):
                raise OptionError(f"split: layer {name} is in the head of task {task}, and so of one task already")
            if task_of(head) not in (None, task):
                raise OptionError(f"split: the head of task {task} was made that of task {task_of(head)} before")
    return found


def _children(module: nn.Module) -> list[str]:
    return [name for name in module._modules if name != "parametrizations"]


def _copy(name: str, module: nn.Module, num_tasks: int, init: Init, values: dict[Tensor, list[Tensor]]) -> None:
    """Add to ``values`` one tensor per task for each parameter and buffer of a layer; the first is the layer's own."""
    own = [tensor for _, _, tensor in own_tensors(module)]
    rows: list[list[Tensor]] = [own]
    for task in range(num_tasks):
        made = [tensor.detach().clone() for tensor in own] if init == "same" else _start(name, module, task, init)
        if task:
            rows.append(made)
        elif callable(init):
            for tensor, value in zip(own, made, strict=True):
                tensor.data.copy_(value)
    for tensor, *others in zip(*rows, strict=True):
        if tensor not in values:
            values[tensor] = [tensor, *(_like(tensor, other) for other in others)]


def _start(name: str, module: nn.Module, task: int, init: Init) -> list[Tensor]:
    """Return the tensors of a copy of a layer after it was initialized."""
    made = copy.deepcopy(module)
    if callable(init):
        with torch.no_grad():
            init(made, task)
    elif init == "independent":
        reset: Any = getattr(made, "reset_parameters", None) or getattr(made, "_reset_parameters", None)
        if reset is None:
            raise OptionError(
                f"split: init='independent' needs reset_parameters, which {name} ({kind_of(module)}) has not; pass a "
                "function init(layer, task)"
            )
        reset()
    else:
        check_choice("split: init", init, ("same", "independent"))
    return [tensor.detach() for _, _, tensor in own_tensors(made)]


def _like(tensor: Tensor, value: Tensor) -> Tensor:
    """Return ``value`` as a parameter with what users noted on the original one, or as it is for a buffer."""
    if isinstance(tensor, nn.Parameter):
        value = nn.Parameter(value, tensor.requires_grad)
        vars(value).update(vars(tensor))
    return value
