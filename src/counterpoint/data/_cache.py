"""A cache of generated arrays: one checked file per set of options."""

import contextlib
import hashlib
import json
import os
import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from counterpoint.errors import FileError

Arrays = dict[str, NDArray[Any]]


def default_folder() -> Path:
    """Return ``$XDG_CACHE_HOME/counterpoint``, or ``~/.cache/counterpoint`` where that is not set."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "counterpoint"


def cache_path(folder: Path, name: str, key: Mapping[str, Any]) -> Path:
    """Return the file of a key: everything that the arrays depend on, as plain data."""
    return folder / f"{name}-{hashlib.sha256(_text(key).encode()).hexdigest()[:16]}.npz"


def load(path: Path, key: Mapping[str, Any]) -> Arrays | None:
    """Return the arrays in a file, checked against their SHA-256, or ``None`` if there is no such file.

    Raises:
        FileError: If the file cannot be read, is damaged or altered, or belongs to another key. It is never replaced
            silently: a file that changes by itself is something to look into.
    """
    try:
        opened = path.open("rb")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise FileError(
            f"{path}: the cache cannot be read ({error.strerror}); pass another folder as cache, or cache=None"
        ) from error
    try:
        with opened as file:
            archive = np.load(file, allow_pickle=False)  # a plain array for a file that is no archive
            arrays = dict(archive) if isinstance(archive, np.lib.npyio.NpzFile) else {}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise FileError(f"{path}: damaged cache file ({error}); delete it, it is made anew") from error
    saved_key, digest = str(arrays.pop("key", "")), str(arrays.pop("sha256", ""))
    if saved_key != _text(key) or digest != _digest(saved_key, arrays):
        raise FileError(f"{path}: altered cache file, its SHA-256 does not fit; delete it, it is made anew")
    return arrays


def save(path: Path, key: Mapping[str, Any], arrays: Arrays) -> None:
    """Write the arrays under a temporary name and rename it, so that there is a whole file or none.

    Raises:
        FileError: If the folder cannot be made or written.
    """
    content: dict[str, Any] = {"key": np.array(_text(key)), "sha256": np.array(_digest(_text(key), arrays)), **arrays}
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=".tmp")
        with os.fdopen(handle, "wb") as file:
            np.savez(file, **content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise FileError(
            f"{path.parent}: the cache cannot be written ({error.strerror}); "
            "pass a writable folder as cache, or cache=None"
        ) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):  # gone when it was renamed
                Path(temporary).unlink()


def _text(key: Mapping[str, Any]) -> str:
    return json.dumps(key, sort_keys=True)


def _digest(key: str, arrays: Arrays) -> str:
    """Return the SHA-256 of the key and of every array's name, dtype, shape and content."""
    total = hashlib.sha256(key.encode())
    for name, array in sorted(arrays.items()):
        total.update(f"\n{name} {array.dtype.str} {array.shape}\n".encode())
        total.update(np.ascontiguousarray(array).data)
    return total.hexdigest()
