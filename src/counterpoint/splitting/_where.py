"""Which module is running, read off the call stack when an error needs its name; costs nothing before."""

import sys
from types import FrameType

from torch import nn


def running_modules() -> list[nn.Module]:
    """Return the modules whose methods are running, innermost first."""
    modules: list[nn.Module] = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, nn.Module) and not (modules and modules[-1] is owner):
            modules.append(owner)
        frame = frame.f_back
    return modules


def running_module() -> str:
    """Return name and class of the innermost module that is running, for a message."""
    modules = running_modules()
    if not modules:
        return "outside of any module"
    inner = modules[0]
    for outer in reversed(modules):
        for name, module in outer.named_modules():
            if module is inner:
                return f"in {name or 'the module itself'} ({class_name(inner)})"
    return f"in a module ({class_name(inner)})"


def class_name(module: nn.Module) -> str:
    """Return the name of a module's class as it was before the module was split."""
    for base in type(module).__mro__:
        if "_counterpoint_base" not in base.__dict__ and not base.__name__.startswith("Parametrized"):
            return base.__name__
    return type(module).__name__
