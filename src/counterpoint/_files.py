"""Files that are whole or not there, and data classes that are kept in them as JSON."""

import abc
import contextlib
import dataclasses
import json
import os
from pathlib import Path
from typing import Any, ClassVar, Self

from counterpoint.errors import CounterpointError, FileError, OptionError
from counterpoint.registry import unknown


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file under a temporary name, flush it to disk, then rename it.

    Raises:
        FileError: If the folder cannot be written to.
    """
    path = Path(os.path.realpath(path))  # a link stays one
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise FileError(
            f"{path}: cannot be written ({error.strerror or error}); choose a folder you may write to"
        ) from error
    finally:
        with contextlib.suppress(OSError):  # a file system that takes no file gives none back either
            temporary.unlink()


def read_json(path: Path, *, cure: str = "delete it and run again") -> Any:
    """Read a JSON file.

    Args:
        path: The file.
        cure: What to do where it is damaged, for the message.

    Raises:
        FileError: If it cannot be read or is not valid JSON.
    """
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise FileError(f"{path}: cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        raise FileError(f"{path}: not valid JSON ({error}); {cure}") from error


class JsonData(abc.ABC):
    """A data class that is kept as a JSON file, once it says how it becomes plain data and comes back."""

    FORMAT: ClassVar[int] = 1
    """Number of the form of the file; one that is not this is refused."""

    @abc.abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Return plain data, ready for JSON, with ``"format"``."""

    @classmethod
    @abc.abstractmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Rebuild what :meth:`to_dict` gave.

        Raises:
            OptionError: If something is missing, unknown, or of another format.
        """

    @classmethod
    def fields_of(cls, data: Any) -> dict[str, Any]:
        """Return the fields that stand in plain data; those with a default may be left out.

        Raises:
            OptionError: If the format is another one, or a field is missing or unknown.
        """
        owner = cls.__name__
        if not isinstance(data, dict) or data.get("format") != cls.FORMAT:
            found = data.get("format") if isinstance(data, dict) else type(data).__name__
            raise OptionError(f"{owner}: expected data of format {cls.FORMAT}, got {found!r}")
        plain = {key: value for key, value in data.items() if key != "format"}
        fields = {field.name: field for field in dataclasses.fields(cls)} if dataclasses.is_dataclass(cls) else {}
        for name in plain:
            if name not in fields:
                raise unknown(f"field of {owner}", name, fields)
        needed = [
            name
            for name, field in fields.items()
            if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        ]
        if missing := [name for name in needed if name not in plain]:
            raise OptionError(f"{owner}: must have {', '.join(needed)}; missing: {', '.join(missing)}")
        return plain

    def to_json(self) -> str:
        """Return the content of the file."""
        return json.dumps(self.to_dict(), indent=1) + "\n"

    def save(self, path: str | Path) -> None:
        """Write it as JSON.

        Raises:
            FileError: If the file cannot be written.
        """
        write_atomically(Path(path), self.to_json().encode())

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what :meth:`save` wrote.

        Raises:
            FileError: If there is no such file, or it holds something else or is damaged.
        """
        content = read_json(Path(path), cure="mend it, or make it again")
        try:
            return cls.from_dict(content)
        except (CounterpointError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise FileError(f"{path}: damaged, or no {cls.__name__} ({error}); mend it, or make it again") from error
