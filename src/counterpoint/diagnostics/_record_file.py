"""Records on disk: one compressed file of arrays."""

import dataclasses
import io
import json
import os
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from counterpoint.errors import FileError

_FORMAT = 1
_PLAIN = ("tasks", "layers", "sizes", "thresholds", "exact", "kinds")
# what numpy, zipfile and json raise about bytes that somebody else wrote
_DAMAGE = (
    *(OSError, ValueError, LookupError, TypeError, AttributeError, EOFError, MemoryError, OverflowError, RuntimeError),
    *(SyntaxError, zipfile.BadZipFile, zlib.error, struct.error),
)

Record = TypeVar("Record")


def write_record(path: str | Path, record: Any) -> None:
    """Write a frozen dataclass of arrays and plain data, under another name first.

    Raises:
        FileError: If it cannot be written.
    """
    fields = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
    plain = {name: fields.pop(name) for name in _PLAIN}
    plain |= {"sizes": dict(plain["sizes"]), "kinds": dict(plain["kinds"])}
    header = np.array(json.dumps({"format": _FORMAT, **plain}))
    path = Path(path)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            np.savez_compressed(file, header=header, **fields)
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise FileError(f"{path}: cannot be written: {error.strerror}") from error


def read_record(path: str | Path, kind: type[Record]) -> Record:
    """Read what :func:`write_record` wrote.

    Raises:
        FileError: If the file is not there, or is damaged, or is no record.
    """
    try:
        with np.load(io.BytesIO(Path(path).read_bytes()), allow_pickle=False) as file:
            content = dict(file)
        plain = json.loads(str(content.pop("header")))
        if plain.pop("format") != _FORMAT:
            raise ValueError("it is of another version of counterpoint")
        for name in ("tasks", "layers", "thresholds"):
            plain[name] = tuple(plain[name])
        record = kind(**plain, **content)
        _check_shapes(record)
    except FileNotFoundError as error:
        raise FileError(f"{path}: there is no such file") from error
    except _DAMAGE as error:
        raise FileError(f"{path}: damaged, or not a record of conflicts ({error})") from error
    return record


def _check_shapes(record: Any) -> None:
    """Raise ``ValueError`` if an array does not have the shape that tasks, layers and steps say."""
    entries, layers, tasks = len(record.steps), len(record.layers), len(record.tasks)
    pairs = tasks * (tasks - 1) // 2
    expected = {
        "steps": (entries,),
        "counts": (entries,),
        "cosines": (entries, layers, pairs),
        "measured": (entries, layers, pairs),
        "norms": (entries, layers, tasks),
        "whole_cosines": (entries, pairs),
        "whole_measured": (entries, pairs),
        "whole_norms": (entries, tasks),
        "effective_rank": (entries,),
        "whole_below": (pairs, 201),
        "below": (len(record.thresholds), entries, layers, pairs),
    }
    for name, shape in expected.items():
        if getattr(record, name).shape != shape:
            raise ValueError(f"{name} is {getattr(record, name).shape} and should be {shape}")
