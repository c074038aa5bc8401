"""Optimizers and schedules of torch by name, with several parameter groups."""

import inspect
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer, lr_scheduler

from counterpoint.balancers import Balancer
from counterpoint.errors import OptionError
from counterpoint.registry import fold, nearest, unknown


def _classes(module: Any, base: type) -> dict[str, Any]:
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, base) and value is not base and not name.startswith("_")
    }


def find_class(kind: str, name: str, module: Any, base: type) -> Any:
    """Return the class of a torch module by name; case and punctuation do not matter.

    Raises:
        UnknownNameError: If there is none.
    """
    classes = _classes(module, base)
    for candidate, value in classes.items():
        if fold(candidate) == fold(name):
            return value
    raise unknown(kind, name, classes)


# What classes of torch raise for an option that they do not like, some only when they are used.
_REFUSALS = (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RuntimeError)


def _arguments(cls: Any) -> dict[str, inspect.Parameter]:
    """Return the constructor arguments that are options."""
    parameters = inspect.signature(cls).parameters.items()
    return {name: parameter for name, parameter in parameters if name not in ("self", "params", "optimizer")}


def check_required(cls: Any, options: Mapping[str, Any], section: str) -> None:
    """Raise unless every constructor argument without a default is given.

    Raises:
        OptionError: If one is not; with its path in the configuration.
    """
    for name, parameter in _arguments(cls).items():
        variadic = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if parameter.default is parameter.empty and not variadic and name not in options:
            raise OptionError(f"{cls.__name__} needs {name}; give it as {section}.options.{name}")


def check_arguments(cls: Any, options: Mapping[str, Any]) -> None:
    """Raise unless every option is a constructor argument of the class.

    Raises:
        OptionError: If one is not; with the nearest names.
    """
    valid = list(_arguments(cls))
    for option in options:
        if option not in valid:
            hint = nearest(option, valid) or f"; its options: {', '.join(valid)}"
            raise OptionError(f"{cls.__name__} has no option {option!r}{hint}")


def build_optimizer(
    name: str,
    options: Mapping[str, Any],
    groups: Sequence[tuple[str, Mapping[str, Any]]],
    model: nn.Module,
    balancer: Balancer | None = None,
) -> Optimizer:
    """Build an optimizer over a model's parameters, and over the balancer's own.

    Args:
        name: Class of ``torch.optim``, such as ``"SGD"`` or ``"AdamW"``.
        options: Its arguments.
        groups: Pairs of a regular expression on parameter names and options for what it finds; the first that fits
            counts, and what no expression fits takes ``options``.
        model: Network to train.
        balancer: Its learnable weights get a group of their own, without weight decay (which would change the method).

    Raises:
        OptionError: If an option does not exist or is refused, or an expression fits no parameter.
    """
    cls = find_class("optimizer in torch.optim", name, torch.optim, Optimizer)
    if cls is torch.optim.LBFGS:
        raise OptionError("LBFGS evaluates the loss several times a step, which the loop does not offer; take another")
    check_arguments(cls, options)
    check_required(cls, options, "optimizer")
    for _, own in groups:
        check_arguments(cls, own)
    lists: list[list[nn.Parameter]] = [[] for _ in range(len(groups) + 1)]
    for parameter_name, parameter in model.named_parameters():
        if parameter.requires_grad:
            fits = [i for i, (pattern, _) in enumerate(groups) if _finds(pattern, parameter_name)]
            lists[fits[0] if fits else -1].append(parameter)
    for (pattern, _), found in zip(groups, lists, strict=False):
        if not found:
            some = ", ".join(name for name, _ in list(model.named_parameters())[:5])
            raise OptionError(f"optimizer group {pattern!r} fits no parameter; names are like {some}")
    built: list[dict[str, Any]] = [{"params": found, **own} for (_, own), found in zip(groups, lists, strict=False)]
    built += [{"params": lists[-1]}] if lists[-1] else []
    own = list(balancer.parameters()) if balancer is not None else []
    if own:
        built.append(
            {"params": own, **({"weight_decay": 0.0} if "weight_decay" in inspect.signature(cls).parameters else {})}
        )
    try:
        return cls(built, **options)
    except _REFUSALS as error:
        raise OptionError(f"{cls.__name__} does not take {dict(options)}: {error}") from error


def _finds(pattern: str, name: str) -> bool:
    """Return whether a regular expression finds something in a name.

    Raises:
        OptionError: If it is none.
    """
    try:
        return re.search(pattern, name) is not None
    except re.error as error:
        raise OptionError(f"optimizer group {pattern!r} is no regular expression: {error}") from error


def build_scheduler(name: str | None, options: Mapping[str, Any], optimizer: Optimizer) -> Any:
    """Build a schedule of ``torch.optim.lr_scheduler`` by name; ``None`` for none.

    Raises:
        OptionError: If an option does not exist or is refused.
    """
    if name is None:
        return None
    cls = find_class("schedule in torch.optim.lr_scheduler", name, lr_scheduler, lr_scheduler.LRScheduler)
    check_arguments(cls, options)
    check_required(cls, options, "scheduler")
    if cls is lr_scheduler.ReduceLROnPlateau:
        options = {"mode": "max", **options}  # it is fed the validation score, where higher is better
    try:
        return cls(optimizer, **options)
    except _REFUSALS as error:
        raise OptionError(f"{cls.__name__} does not take {dict(options)}: {error}") from error


def rehearse(optimizer: Optimizer, scheduler: Any, *, every_step: bool) -> None:
    """Take a step on a network made for it: some classes refuse their options only then.

    Args:
        optimizer: Over parameters that nobody needs.
        scheduler: Its schedule, or ``None``.
        every_step: Whether the schedule is to be stepped after every update.

    Raises:
        OptionError: If the optimizer or the schedule cannot take a step.
    """
    if every_step and isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
        raise OptionError(
            "ReduceLROnPlateau follows the validation score, which there is once an epoch; set scheduler.every_step to "
            "false"
        )
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.ones_like(parameter)
    acting: Any = optimizer
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            optimizer.step()
            acting = scheduler
            if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
                scheduler.step(0.0)
            elif scheduler is not None:
                scheduler.step()
    except AssertionError:
        pass  # an option for another device, such as capturable; the run will tell
    except _REFUSALS as error:
        raise OptionError(f"{type(acting).__name__} cannot take a step with these options: {error}") from error
