"""Train once, measure how tasks affect each other, and propose groups."""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from counterpoint import grouping
from counterpoint._checks import check_range
from counterpoint.bench.build import build, check_run
from counterpoint.bench.group_plan import GroupPlan
from counterpoint.bench.options import check_component, parse_call
from counterpoint.bench.run_config import RunConfig, ScheduleConfig
from counterpoint.bench.runner import run_one
from counterpoint.errors import OptionError
from counterpoint.grouping import AffinityMatrix, Estimator, Grouping, Solver
from counterpoint.registry import fold, unknown
from counterpoint.schedules import Selective
from counterpoint.training.run_folder import begin_anew
from counterpoint.training.step import forward
from counterpoint.training.visit import Parts

ALIASES = {"cosine": "gradient_cosine"}
MARKER = "group-run"  # a file that says who may delete the folder
PROXIMAL = "proximal"  # measured by the schedule of selective updates, which trains with it
DEFAULT_SOLVER = "branch_and_bound(overlap=false, singleton=0.0)"


@dataclasses.dataclass(frozen=True)
class GroupOptions:
    """How to measure and to group.

    Attributes:
        affinity: An estimator, with options as in ``"tag(divide_by_lr=true)"``.
        solver: A solver, in the same form.
        max_networks: Budgets from 1 to this are solved; ``None`` for up to the number of tasks, at most five.
        every: Updates between measurements.
        share: Share of the epochs of the recipe to train, in (0, 1].
    """

    affinity: str = "tag"
    solver: str = DEFAULT_SOLVER
    max_networks: int | None = None
    every: int = 10
    share: float = 1.0


def parse_method(text: str, role: str) -> tuple[str, dict[str, Any]]:
    """Read an estimator or a solver with its options.

    Raises:
        OptionError: If it is not of the form name(option=value) or an option is wrong.
        UnknownNameError: If there is none of that role; names the nearest.
    """
    name, options = parse_call(text, role)
    known = [name for name in grouping.names() if grouping.METHODS.get(name).role == role]
    by_folded = {fold(name): name for name in known}
    if role == "estimator" and fold(name) == PROXIMAL and not options:
        return PROXIMAL, {}
    key = by_folded.get(fold(ALIASES.get(name, name)))
    if key is None:
        raise unknown(role, name, [*known, *([*ALIASES, PROXIMAL] if role == "estimator" else [])])
    check_component(grouping.METHODS, key, options, where=f"'{key}({{}}=VALUE)'")
    return key, options


class _Observer:
    """Feeds an estimator with the batches of a run; a new one for each epoch."""

    def __init__(self, make: Callable[[], Estimator]) -> None:
        self.make = make
        self.current = make()
        self.epochs: list[tuple[int, Estimator]] = []

    def __call__(self, parts: Parts, batch: Any) -> None:
        """Observe a batch before the update on it."""
        tasks, model = parts.tasks, parts.model

        def compute() -> Any:
            if self.current.reads == "labels":
                return {task.name: _labels(batch, task.name) for task in tasks}
            losses, output = forward(model, tasks, batch)
            return losses if self.current.reads == "losses" else (output.features[-1], output.preds)

        self.current.observe(compute, parts.raw_model, parts.raw_optimizer)

    def end_epoch(self, epoch: int) -> None:
        """Keep what was measured in an epoch."""
        self.epochs.append((epoch, self.current))
        self.current = self.make()

    def matrices(self) -> tuple[AffinityMatrix, tuple[tuple[int, AffinityMatrix], ...]]:
        """Return the mean over all measurements, and what each epoch had."""
        over_time = tuple((epoch, estimator.result()) for epoch, estimator in self.epochs)
        values = np.stack([matrix.values for _, matrix in over_time])
        weights = np.stack([estimator.counts for _, estimator in self.epochs]) * ~np.isnan(values)
        total = weights.sum(axis=0)
        mean = np.divide(np.nansum(values * weights, axis=0), total, out=np.full(total.shape, np.nan), where=total > 0)
        first = over_time[0][1]
        observed = sum(estimator.measured for _, estimator in self.epochs)
        source = f"{self.current!r}, mean of {observed} observations in {len(self.epochs)} epochs"
        return dataclasses.replace(first, values=mean, source=source), over_time


def _labels(batch: Any, task: str) -> Tensor | None:
    """Return the labels of a task as numbers, NaN where a sample has none."""
    labels, mask = batch.get(task), batch.get(f"{task}_mask")
    if labels is None:
        return None
    return labels.float() if mask is None else labels.float().masked_fill(~mask.bool(), float("nan"))


def check_group(config: RunConfig, options: GroupOptions) -> int:
    """Check everything that can be checked before training; return the largest budget.

    Raises:
        OptionError: If an option is out of range or there are more groups than tasks.
    """
    check_run(config)
    parse_method(options.affinity, "estimator")
    parse_method(options.solver, "solver")
    check_range("--share", options.share, low=0.0, low_open=True, high=1.0)
    if options.every < 1:
        raise OptionError(f"--every must be at least 1, got {options.every}")
    names = [task.name for task in build(config).tasks]
    num_tasks = len(names)
    if num_tasks < 2:
        raise OptionError("groups need at least two tasks; the recipe has one")
    most = _check_budget(options, num_tasks)
    propose(AffinityMatrix(tuple(names), np.eye(num_tasks), directed=True), options.solver, most)  # can it be solved?
    return most


def _check_budget(options: GroupOptions, num_tasks: int) -> int:
    """Return the largest budget.

    Raises:
        OptionError: If there are more groups than tasks.
    """
    if options.max_networks is None:
        return min(num_tasks, 5)
    if not 1 <= options.max_networks <= num_tasks:
        raise OptionError(
            f"--max-networks must be from 1 to {num_tasks}, the number of tasks: each group needs a task to serve; "
            f"got {options.max_networks}"
        )
    return options.max_networks


def measure_and_group(
    recipe: str,
    config: RunConfig,
    options: GroupOptions,
    path: Path,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
) -> GroupPlan:
    """Train once while measuring, and solve for each budget.

    Args:
        recipe: What the user called the run.
        config: What to train.
        options: How to measure and to group.
        path: Folder of the run; one that is there is replaced, as what was measured in it is gone.
        on_epoch: Called with the record of each epoch.
    """
    most = check_group(config, options)
    config = config.shortened(options.share)
    epochs = config.training.epochs
    begin_anew(path, MARKER)
    key, given = parse_method(options.affinity, "estimator")
    if key == PROXIMAL and config.schedule.name != Selective.key:
        config = dataclasses.replace(config, schedule=ScheduleConfig(Selective.key))
    names = [task.name for task in build(config).tasks]
    observer = None if key == PROXIMAL else _Observer(lambda: _estimator(key, names, options.every, given))
    proximal: list[tuple[int, AffinityMatrix]] = []

    def ended(record: dict[str, Any]) -> None:
        if observer is not None:
            observer.end_epoch(record["epoch"])
        else:
            early = contextlib.suppress(OptionError) if record["epoch"] < epochs else contextlib.nullcontext()
            with early:  # the first epochs may have measured nothing yet
                values = np.array(record["schedule"]["affinity"])
                proximal.append((record["epoch"], grouping.proximal_matrix(names, values)))
        if on_epoch is not None:
            on_epoch(record)

    run_one(config, path, ended, before_batch=observer)
    affinity, over_time = (proximal[-1][1], tuple(proximal)) if observer is None else observer.matrices()
    return GroupPlan(recipe, affinity, over_time, propose(affinity, options.solver, most))


def propose(affinity: AffinityMatrix, solver: str, most: int) -> tuple[Grouping, ...]:
    """Return the groups for the budgets 1 to ``most``.

    Raises:
        SolverError: If a budget cannot be met.
    """
    key, given = parse_method(solver, "solver")
    made = grouping.create(key, **given)
    assert isinstance(made, Solver)
    if made.symmetric and affinity.directed:
        affinity = affinity.symmetric()
    return tuple(found.grouping for found in grouping.predicted_gains(affinity, max_groups=most, solver=made))


def _estimator(key: str, tasks: Sequence[str], every: int, options: dict[str, Any]) -> Estimator:
    made = grouping.create(key, tasks=list(tasks), **{"every": every, **options})
    assert isinstance(made, Estimator)
    return made
