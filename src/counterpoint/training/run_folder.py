"""The folder of one run: configuration, records, checkpoints, result. It never holds half a file."""

import contextlib
import dataclasses
import json
import math
import os
import pickle
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from counterpoint._files import read_json, write_atomically
from counterpoint.errors import FileError

CONFIG, ENVIRONMENT, METRICS = "config.yaml", "environment.json", "metrics.jsonl"
RESULT, TIMING, ERROR = "result.json", "timing.json", "error.json"

_RESULT_KEYS = {"selection", "selected_epoch", "val", "test", "epochs", "num_backward"}
_TIMING_KEYS = {"train_seconds", "step_ms", "peak_memory_mb"}


def first_difference(ours: Any, theirs: Any, path: str = "") -> str | None:
    """Return ``"key: theirs -> ours"`` for the first key in which two configurations differ, or ``None``."""
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        for key in [*theirs, *(key for key in ours if key not in theirs)]:
            inner = first_difference(ours.get(key), theirs.get(key), f"{path}.{key}" if path else str(key))
            if inner:
                return inner
        return None
    return None if ours == theirs else f"{path} is {theirs!r} there and {ours!r} now"


def begin_anew(folder: Path, marker: str) -> None:
    """Make an empty folder for a run that cannot go on where it was stopped; delete one that was made like this.

    Args:
        folder: The folder.
        marker: Name of the empty file that tells a folder made by this function from anything else.

    Raises:
        FileError: If the folder holds something else.
    """
    if folder.exists() and any(folder.iterdir()):
        if not (folder / marker).exists():
            raise FileError(f"{folder}: holds files of something else and is not replaced; choose another with --out")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / marker).touch()


def check_configuration(folder: Path, config: Mapping[str, Any]) -> None:
    """Raise unless a run folder was made by this configuration.

    Raises:
        FileError: If it was made by another one, or its ``config.yaml`` is damaged.
    """
    path = folder / CONFIG
    found = read_yaml(path)
    if not isinstance(found, Mapping):
        raise FileError(f"{path}: damaged, it holds no configuration; delete {folder} and run again")
    plain = json.loads(json.dumps(config))  # tuples become lists, as in the file
    if difference := first_difference(plain, found):
        raise FileError(
            f"{folder}: made by another configuration ({difference}); take another folder or delete this one"
        )


@dataclasses.dataclass(frozen=True)
class Finished:
    """What a run that is done has left.

    Attributes:
        result: Content of ``result.json``.
        timing: Content of ``timing.json``.
        records: All records of ``metrics.jsonl``, in order.
    """

    result: dict[str, Any]
    timing: dict[str, Any]
    records: tuple[dict[str, Any], ...]


def read_finished(folder: Path) -> Finished:
    """Read everything that a run which is done has left, and see that nothing of it is missing.

    Raises:
        FileError: If a file is missing or damaged, or ``metrics.jsonl`` has not the epochs that the result counts.
    """
    cure = f"delete {folder} and run again"
    found: dict[str, dict[str, Any]] = {}
    for name, keys in ((RESULT, _RESULT_KEYS), (TIMING, _TIMING_KEYS)):
        content = read_json(folder / name) if (folder / name).exists() else None
        if not isinstance(content, dict) or not keys <= set(content):
            raise FileError(f"{folder / name}: {'missing' if content is None else 'not whole'}; {cure}")
        found[name] = content
    records = tuple(read_records(folder / METRICS))
    epochs = [record.get("epoch") for record in records if record.get("kind") == "epoch"]
    if epochs != list(range(1, found[RESULT]["epochs"] + 1)):
        raise FileError(
            f"{folder / METRICS}: has {len(epochs)} epochs, {RESULT} counts {found[RESULT]['epochs']}; {cure}"
        )
    return Finished(found[RESULT], found[TIMING], records)


class RunFolder:
    """One run on disk.

    ``config.yaml`` and ``environment.json`` say what is run on what, ``metrics.jsonl`` has a line per record,
    ``checkpoints/last.pt`` and ``best.pt`` the state, ``timing.json`` what was measured with a clock, ``result.json``
    the rest; the last one is written at the very end, so its presence means that the run is done. ``error.json`` tells
    why a run failed.

    Args:
        path: The folder.
        config: Configuration as plain data.
        environment: Versions and machine, written when the folder is made.

    Raises:
        FileError: If the folder was made with another configuration, is in use by another process, or cannot be
            written.
    """

    def __init__(
        self, path: Path | str, config: Mapping[str, Any], environment: Mapping[str, Any] | None = None
    ) -> None:
        self.path = Path(path)
        plain = json.loads(json.dumps(config))  # tuples become lists, as in the file
        existing = self.path / CONFIG
        if existing.exists():
            check_configuration(self.path, plain)
        else:
            if orphan := next((name for name in (RESULT, METRICS) if (self.path / name).exists()), None):
                raise FileError(
                    f"{existing}: missing, but {orphan} is there, so nobody knows what was run; delete {self.path} and "
                    "run again"
                )
            write_atomically(self.path / ENVIRONMENT, _dump_json(environment or {}))
            write_atomically(existing, yaml.safe_dump(plain, sort_keys=False).encode())
        self._lock = _lock(self.path / ".lock")
        for stale in self.path.rglob("*.tmp"):  # left by a process that was killed while it wrote
            stale.unlink(missing_ok=True)

    def close(self) -> None:
        """Give the folder free for other processes."""
        self._lock.close()

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def result(self) -> dict[str, Any] | None:
        """Content of ``result.json``; ``None`` while the run is not done."""
        path = self.path / RESULT
        return read_json(path) if path.exists() else None

    def append(self, record: Mapping[str, Any]) -> None:
        """Add a line to ``metrics.jsonl`` and flush it."""
        with (self.path / METRICS).open("a") as file:
            file.write(json.dumps(_strict(record), allow_nan=False) + "\n")

    def size(self) -> int:
        """Return the length of ``metrics.jsonl`` in bytes, after forcing it to disk."""
        path = self.path / METRICS
        if not path.exists():
            return 0
        with path.open("rb") as file:
            os.fsync(file.fileno())
            return os.fstat(file.fileno()).st_size

    def truncate(self, size: int) -> None:
        """Drop the records after ``size`` bytes: those of an epoch that was cut off.

        Raises:
            FileError: If the file is shorter than that, which a killed run cannot cause.
        """
        path = self.path / METRICS
        actual = path.stat().st_size if path.exists() else 0
        if actual < size:
            raise FileError(
                f"{path}: has {actual} bytes, its checkpoint expects {size}; delete {self.path} and run again"
            )
        if path.exists():
            os.truncate(path, size)

    def save_checkpoint(self, name: str, state: Mapping[str, Any]) -> None:
        """Write ``checkpoints/<name>.pt``, whole or not at all.

        Raises:
            FileError: If it cannot be written.
        """
        path = self.path / "checkpoints" / f"{name}.pt"
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        try:
            path.parent.mkdir(exist_ok=True)
            with temporary.open("wb") as file:
                torch.save(dict(state), file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except (OSError, RuntimeError) as error:  # torch.save answers a full disk with a RuntimeError
            problem = getattr(error, "strerror", None) or error
            raise FileError(f"{path}: cannot be written ({problem}); is the disk full?") from error
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()

    def load_checkpoint(self, name: str) -> dict[str, Any] | None:
        """Read ``checkpoints/<name>.pt``; ``None`` if there is none.

        Raises:
            FileError: If the file is damaged.
        """
        return load_checkpoint(self.path / "checkpoints" / f"{name}.pt")

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file, whole or not at all."""
        write_atomically(self.path / name, _dump_json(content))

    def remove(self, name: str) -> None:
        """Delete a file of the folder if it is there."""
        (self.path / name).unlink(missing_ok=True)


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """Read a checkpoint; ``None`` if there is none.

    Raises:
        FileError: If the file is damaged.
    """
    if not path.exists():
        return None
    cure = "delete it to train again from the start"
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # torch.load does not compare the checksums that torch.save wrote
    except (zipfile.BadZipFile, NotImplementedError, EOFError, OSError, IndexError, ValueError, RuntimeError) as error:
        raise FileError(f"{path}: cut short or damaged, no whole checkpoint; {cure}") from error
    if damaged is not None:
        raise FileError(f"{path}: altered (the checksum of {damaged} does not fit); {cure}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError) as error:
        raise FileError(f"{path}: not a checkpoint of this program; {cure}") from error
    if not isinstance(state, dict):
        raise FileError(f"{path}: not a checkpoint of this program; {cure}")
    return state


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the whole records of a ``metrics.jsonl``; a last line without its end is left out.

    Raises:
        FileError: If another line is not valid JSON.
    """
    if not path.exists():
        return
    with path.open() as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith("\n"):
                return
            try:
                record = json.loads(line)
            except ValueError as error:
                raise FileError(f"{path}:{number}: not valid JSON; delete the run's folder and run again") from error
            if not isinstance(record, dict):
                raise FileError(f"{path}:{number}: no record; delete the run's folder and run again")
            yield record


class _UniqueKeys(yaml.SafeLoader):
    """YAML as data only, and no key twice: YAML itself would take the last one and say nothing."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key.value!r} is given twice", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> Any:
    """Read a YAML file.

    Raises:
        FileError: If it cannot be read or is not YAML; one line, with the place.
    """
    try:
        return yaml.load(path.read_text(), _UniqueKeys)
    except OSError as error:
        raise FileError(f"{path}: cannot be read ({error.strerror or error}); check its name") from error
    except UnicodeDecodeError as error:
        raise FileError(f"{path}: not a text file in UTF-8") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "not valid YAML"
        cure = "; indent with spaces, YAML allows no tabs" if "\\t" in problem or "'\t'" in problem else ""
        raise FileError(f"{path}{place}: {problem}{cure}") from error


def _dump_json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(_strict(content), indent=2, allow_nan=False) + "\n").encode()


def _strict(content: Any) -> Any:
    """Replace NaN and infinity by ``None``: JSON has neither."""
    if isinstance(content, Mapping):
        return {key: _strict(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_strict(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def _lock(path: Path) -> Any:
    """Hold a lock for as long as the file is open; the system drops it when the process dies."""
    try:
        file = path.open("w")
    except OSError as error:
        raise FileError(
            f"{path.parent}: cannot be written ({error.strerror or error}); choose another folder"
        ) from error
    try:
        import fcntl  # noqa: PLC0415 - not on Windows, where folders are not locked
    except ModuleNotFoundError:
        return file
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise FileError(f"{path.parent}: in use by another process; wait for it or choose another folder") from error
    return file
