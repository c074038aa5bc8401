"""Train once, measure how tasks affect each other, and propose groups."""

import dataclasses
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from counterpoint import grouping
from counterpoint.bench.build import build, check_run
from counterpoint.bench.group_plan import GroupPlan
from counterpoint.bench.options import check_component, one_line
from counterpoint.bench.run_config import RunConfig, ScheduleConfig
from counterpoint.bench.runner import run_one
from counterpoint.errors import OptionError
from counterpoint.grouping import AffinityMatrix, Estimator, Grouping, Solver
from counterpoint.registry import fold, unknown
from counterpoint.schedules import Selective
from counterpoint.training.run_folder import remove_run
from counterpoint.training.step import forward
from counterpoint.training.visit import Parts

ALIASES = {"cosine": "gradient_cosine"}
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
    match = re.fullmatch(r"\s*([^()]+?)\s*(?:\((.*)\))?\s*", text)
    if match is None:
        raise OptionError(f"{role} {text!r} is not of the form name or name(option=value, ...)")
    known = [name for name in grouping.names() if grouping.METHODS.get(name).role == role]
    by_folded = {fold(name): name for name in known}
    if role == "estimator" and fold(match[1]) == PROXIMAL and not match[2]:
        return PROXIMAL, {}
    key = by_folded.get(fold(ALIASES.get(match[1], match[1])))
    if key is None:
        raise unknown(role, match[1], [*known, *([*ALIASES, PROXIMAL] if role == "estimator" else [])])
    try:
        written = re.sub(r"(^|,)\s*(\w+)\s*=", r"\1 \2: ", match[2] or "")
        options = yaml.safe_load("{" + written + "}") or {}
    except yaml.YAMLError as error:
        raise OptionError(f"{role} {text!r}: {one_line(error)}") from error
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
                return {task.name: batch.get(task.name) for task in tasks}
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
        counts = np.array([estimator.measured for _, estimator in self.epochs], dtype=np.float64)
        values = np.stack([matrix.values for _, matrix in over_time])
        weights = counts[:, None, None] * ~np.isnan(values)
        total = weights.sum(axis=0)
        mean = np.divide(np.nansum(values * weights, axis=0), total, out=np.full(total.shape, np.nan), where=total > 0)
        first = over_time[0][1]
        source = f"{self.current!r}, mean of {int(counts.sum())} observations in {len(counts)} epochs"
        return dataclasses.replace(first, values=mean, source=source), over_time


def check_group(config: RunConfig, options: GroupOptions) -> int:
    """Check everything that can be checked before training; return the largest budget.

    Raises:
        OptionError: If an option is out of range or there are more groups than tasks.
    """
    check_run(config)
    parse_method(options.affinity, "estimator")
    parse_method(options.solver, "solver")
    if not 0 < options.share <= 1:
        raise OptionError(f"--share must be above 0 and at most 1, got {options.share}")
    if options.every < 1:
        raise OptionError(f"--every must be at least 1, got {options.every}")
    num_tasks = len(build(config).tasks)
    if num_tasks < 2:
        raise OptionError("groups need at least two tasks; the recipe has one")
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
    epochs = group_epochs(config, options)
    config = dataclasses.replace(config, training=dataclasses.replace(config.training, epochs=epochs))
    remove_run(path)
    key, given = parse_method(options.affinity, "estimator")
    if key == PROXIMAL and config.schedule.name != Selective.key:
        config = dataclasses.replace(config, schedule=ScheduleConfig(Selective.key))
    names = [task.name for task in build(config).tasks]
    observer = None if key == PROXIMAL else _Observer(lambda: _estimator(key, names, options.every, given))
    proximal: list[tuple[int, AffinityMatrix]] = []

    def ended(record: dict[str, Any]) -> None:
        if observer is None:
            proximal.append((record["epoch"], _proximal(names, record["schedule"]["affinity"])))
        else:
            observer.end_epoch(record["epoch"])
        if on_epoch is not None:
            on_epoch(record)

    run_one(config, path, ended, before_batch=observer)
    affinity, over_time = (proximal[-1][1], tuple(proximal)) if observer is None else observer.matrices()
    return GroupPlan(recipe, affinity, over_time, propose(affinity, options.solver, most))


def _proximal(tasks: Sequence[str], values: Sequence[Sequence[float]]) -> AffinityMatrix:
    """Return running affinities of selective updates relative to each target's effect on itself."""
    matrix = np.array(values, dtype=np.float64)
    own = matrix.diagonal()
    return AffinityMatrix(
        tuple(tasks),
        matrix / np.where(own > 0, own, np.nan),
        directed=True,
        diagonal="effect of a task on itself, which the others are relative to",
        source="proximal affinity, running mean of selective task group updates",
        cost="nothing beside the losses of the groups",
    )


def group_epochs(config: RunConfig, options: GroupOptions) -> int:
    """Return how many epochs are trained."""
    return max(1, round(config.training.epochs * options.share))


def propose(affinity: AffinityMatrix, solver: str, most: int) -> tuple[Grouping, ...]:
    """Return the groups for the budgets 1 to ``most``.

    Raises:
        SolverError: If a budget cannot be met.
    """
    key, given = parse_method(solver, "solver")
    made = grouping.create(key, **given)
    assert isinstance(made, Solver)
    return tuple(made.solve(affinity, budget) for budget in range(1, most + 1))


def _estimator(key: str, tasks: Sequence[str], every: int, options: dict[str, Any]) -> Estimator:
    made = grouping.create(key, tasks=list(tasks), **{"every": every, **options})
    assert isinstance(made, Estimator)
    return made
