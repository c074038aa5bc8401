"""A run with a monitor of every layer; what it measured is a file in the folder of the run."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from counterpoint._files import write_atomically
from counterpoint.bench.build import Built
from counterpoint.bench.run_config import RunConfig
from counterpoint.bench.runner import run_one
from counterpoint.diagnostics import ConflictMonitor, ConflictRecord
from counterpoint.errors import FileError, OptionError

RECORD, OPTIONS = "record.npz", "monitor.json"


def monitored_run(
    config: RunConfig,
    path: Path,
    make_monitor: Callable[[Built], ConflictMonitor],
    *,
    options: dict[str, Any],
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
) -> ConflictRecord:
    """Do a run with a monitor and return what it measured; one that is done is not done again.

    A run that was stopped begins anew, since what was measured does not survive it.

    Args:
        config: What to run; other monitoring is switched off.
        path: Folder of the run; ``record.npz`` is written to it.
        make_monitor: Builds the monitor from the objects of the run.
        options: How it measures, to tell runs apart.
        on_epoch: Called with the record of each epoch.

    Raises:
        OptionError: If the run has fewer than two tasks.
        FileError: If the folder holds a run that was measured otherwise, or not at all.
    """
    _check_folder(path, options)
    training = config.training
    training = dataclasses.replace(training, checkpoint_every=training.epochs, monitor_every=0)
    monitors: list[ConflictMonitor] = []

    def watch(built: Built) -> ConflictMonitor:
        if len(built.tasks) < 2:
            found = [task.name for task in built.tasks]
            raise OptionError(
                f"conflict is between tasks, and this run has {found} only; give two or more with --data.tasks"
            )
        write_atomically(path / OPTIONS, (json.dumps(options) + "\n").encode())
        monitors.append(make_monitor(built))
        return monitors[-1]

    def ended(record: dict[str, Any]) -> None:
        if monitors:
            monitors[-1].record().save(path / RECORD)
        if on_epoch is not None:
            on_epoch(record)

    run_one(dataclasses.replace(config, training=training), path, ended, watch=watch)
    if not (path / RECORD).exists():
        raise FileError(f"{path}: the run is done, but was not measured; choose another folder with --out")
    return ConflictRecord.load(path / RECORD)


def _check_folder(path: Path, options: dict[str, Any]) -> None:
    """Raise if the folder holds a run that was measured otherwise.

    Raises:
        FileError: If it does.
    """
    if not (path / OPTIONS).exists():
        return
    try:
        before = json.loads((path / OPTIONS).read_text())
    except (OSError, ValueError) as error:
        raise FileError(f"{path / OPTIONS}: damaged ({error}); delete the folder and run again") from error
    if before != options:
        then, now = (", ".join(f"{key}={value}" for key, value in own.items()) for own in (before, options))
        raise FileError(f"{path}: was measured with {then}, not {now}; choose another folder with --out")
