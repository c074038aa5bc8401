"""Counterpoint: multi-task learning without letting the tasks fight.

The subpackages are loaded on first use, so that ``import counterpoint`` costs nothing and imports no torch.
"""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

from counterpoint._optional import missing_extra
from counterpoint._version import __version__ as __version__

__all__ = [
    "architectures",
    "balancers",
    "bench",
    "blocks",
    "data",
    "diagnostics",
    "errors",
    "gradients",
    "grouping",
    "linalg",
    "losses",
    "metrics",
    "schedules",
    "solvers",
    "splitting",
    "tasks",
    "testing",
    "training",
]

if TYPE_CHECKING:
    from counterpoint import (
        architectures,
        balancers,
        bench,
        blocks,
        data,
        diagnostics,
        errors,
        gradients,
        grouping,
        linalg,
        losses,
        metrics,
        schedules,
        solvers,
        splitting,
        tasks,
        testing,
        training,
    )


def __getattr__(name: str) -> ModuleType:
    if name in __all__:
        try:
            return importlib.import_module(f"counterpoint.{name}")
        except ModuleNotFoundError as error:
            if (missing := missing_extra(error)) is None:
                raise
            raise missing from error
    raise AttributeError(f"module 'counterpoint' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
