"""Import of optional packages at the point of use."""

import importlib
from types import ModuleType

from counterpoint.errors import MissingExtraError

# Package -> extra that installs it, for what the packages of an extra import when they are loaded.
_BENCH = "docstring_parser jinja2 jsonargparse lightning_fabric plotly rich sklearn torchmetrics yaml"
EXTRAS = dict.fromkeys(_BENCH.split(), "bench")


def missing_extra(error: ModuleNotFoundError) -> MissingExtraError | None:
    """Return the error that names the extra to install; ``None`` if no extra has the missing package."""
    name = (error.name or "").split(".")[0]
    if name not in EXTRAS:
        return None
    return MissingExtraError(f"{name} is not installed; install it with: pip install 'counterpoint[{EXTRAS[name]}]'")


def require(package: str, *, extra: str) -> ModuleType:
    """Import ``package`` or say which extra installs it.

    Raises:
        MissingExtraError: If the package is not installed.
        ModuleNotFoundError: If the package is there and something that it imports is not.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != package.split(".")[0]:
            raise
        message = f"{error.name} is not installed; install it with: pip install 'counterpoint[{extra}]'"
        raise MissingExtraError(message) from error
