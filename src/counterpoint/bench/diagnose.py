"""Diagnosis of a run: train with the monitor on, and say where its tasks conflict."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from counterpoint._checks import check_integer, check_range
from counterpoint.bench.build import Built
from counterpoint.bench.diagnose_page import render_diagnosis
from counterpoint.bench.monitored import monitored_run
from counterpoint.bench.run_config import RunConfig
from counterpoint.bench.tables import write_text
from counterpoint.diagnostics import ConflictMonitor, ConflictRecord, conflict_bins
from counterpoint.errors import OptionError
from counterpoint.splitting import find_layers

PAGE = "diagnose.html"
MEASUREMENTS = 200  # about so many, where the caller does not say how often
_MOST_COSINES = 50_000_000  # 200 MB; with more only those below the threshold are counted


def diagnose(
    config: RunConfig,
    path: Path,
    *,
    every: int | None = None,
    share: float = 1.0,
    threshold: float = 0.0,
    bins: str | Sequence[float] = "mnist",
    recipe: str = "RECIPE",
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
) -> ConflictRecord:
    """Train with the monitor on and write ``record.npz`` and ``diagnose.html`` to the folder of the run.

    A diagnosis that is done is not done again, only its page is written anew; one that was stopped starts from the
    beginning.

    Args:
        config: What to train, with any balancer.
        path: Folder.
        every: Measure at every so-many-th step; default such that there are about 200 measurements.
        share: Share of the epochs to train, in (0, 1], at least one epoch. Recon's search takes 0.2 to 0.25.
        threshold: S, for findings and table.
        bins: Bins of the distribution; see :func:`counterpoint.diagnostics.conflict_bins`.
        recipe: What the suggested command is to be called with.
        on_epoch: Called with the record of each epoch.

    Raises:
        OptionError: If an option is outside its range, or there is one task only.
        FileError: If the folder holds another diagnosis.
    """
    every = None if every is None else check_integer("diagnose: every", every, low=1)
    check_range("diagnose: share", share, low=0.0, high=1.0, low_open=True)
    check_range("diagnose: threshold", threshold, low=-1.0, high=1.0)
    chosen = conflict_bins(bins)
    config = config.shortened(share)

    def make_monitor(built: Built) -> ConflictMonitor:
        monitor = _monitor(built, config, every, threshold)
        fine = [edge for edge in (*chosen.edges, chosen.severe) if abs(100 * edge - round(100 * edge)) > 1e-7]
        if fine and not monitor.keep_cosines:
            raise OptionError(
                f"diagnose: in a run this long cosines are counted in steps of 0.01, so no bin can end at {fine[0]:g}; "
                "give multiples of 0.01, or measure less often (--every)"
            )
        return monitor

    options = {"every": every, "share": share}
    record = monitored_run(config, path, make_monitor, options=options, on_epoch=on_epoch)
    title = f"Conflict between tasks: {config.balancer.name} on {config.data.name}"
    content = json.dumps(config.to_dict(), indent=2)
    page = render_diagnosis(record, threshold=threshold, bins=chosen, title=title, recipe=recipe, config=content)
    write_text(path / PAGE, page)
    return record


def _monitor(built: Built, config: RunConfig, every: int | None, threshold: float) -> ConflictMonitor:
    samples: Any = built.data.split("train")
    steps = config.training.epochs * math.ceil(len(samples) / config.training.batch_size)
    every = max(1, round(steps / MEASUREMENTS)) if every is None else every
    tasks = [task.name for task in built.tasks]
    pairs = len(tasks) * (len(tasks) - 1) // 2
    keep = math.ceil(steps / every) * len(find_layers(built.model)) * pairs <= _MOST_COSINES
    thresholds = tuple(dict.fromkeys((threshold, 0.0)))
    return ConflictMonitor(built.model, tasks=tasks, every=every, thresholds=thresholds, keep_cosines=keep)
