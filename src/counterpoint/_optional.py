"""Import of optional packages at the point of use."""

import importlib
from types import ModuleType

from counterpoint.errors import MissingExtraError


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
