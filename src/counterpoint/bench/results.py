"""The records that a comparison is made of: plain data between runs, tables and the report."""

import dataclasses
import math
import statistics
from typing import Any


@dataclasses.dataclass(frozen=True)
class Spread:
    """One number per seed, NaN where a run failed."""

    values: tuple[float, ...]

    @property
    def finite(self) -> tuple[float, ...]:
        """The values that are there."""
        return tuple(value for value in self.values if math.isfinite(value))

    @property
    def mean(self) -> float:
        """Mean over the seeds that are there; NaN if none is."""
        return statistics.fmean(self.finite) if self.finite else math.nan

    @property
    def std(self) -> float:
        """Sample standard deviation over the seeds that are there; NaN for fewer than two."""
        return statistics.stdev(self.finite) if len(self.finite) > 1 else math.nan


@dataclasses.dataclass(frozen=True)
class Reading:
    """What a method reached, read at one point of training: at its end, or when equal weighting ended.

    Attributes:
        metrics: Task -> metric -> value on the test split, in the metric's unit.
        delta: Convention ("tasks", "metrics") -> delta_m against the single-task networks, per cent.
        change: Task -> mean relative change of its metrics against the single-task network, per cent, positive is
            better.
        worst: The smallest entry of ``change`` of each seed.
        worst_task: Task with the smallest mean change.
        mean_rank: Mean over metrics of the rank among the methods that are no single-task networks; 1 is best.
        against_equal: Difference of delta_m ("tasks") to equal weighting with the same seed, per cent points.
        epochs: Epochs that had ended at this point.
    """

    metrics: dict[str, dict[str, Spread]]
    delta: dict[str, Spread]
    change: dict[str, Spread]
    worst: Spread
    worst_task: str
    mean_rank: float
    against_equal: Spread
    epochs: Spread


@dataclasses.dataclass(frozen=True)
class MethodRow:
    """One line of the table.

    Attributes:
        method: Name of the method, such as ``"pcgrad"`` or ``"pcgrad @ alternating"``, or ``"single_task"``.
        family: ``"baseline"`` (single-task, equal, random weights), ``"losses"``, ``"gram"`` or ``"jacobian"``.
        final: Read at the end of training by the selection rule; ``None`` if every run failed.
        equal_time: Read at the training time at which equal weighting with the same seed had ended; ``None`` if
            every run failed or not one epoch had ended by then.
        step_ms: Median time of a training step, milliseconds.
        train_seconds: Time of all training steps, without evaluation and monitoring; summed over tasks for
            single-task networks.
        peak_memory_mb: Peak memory of the process above that at the start of training, MB.
        num_backward: Backward passes through the shared part over the whole training; summed over networks.
        errors: Seed -> message of a run that failed.
        num_updates: Forward passes and optimizer steps for each batch; summed over networks.
        num_parameters: Parameters, the copies of split layers included; summed over networks.
        severe: Share of the measured cosines between task gradients, of all that is still shared, below -0.01.
        reduced: ``1 - severe / severe of equal weighting on the network that is not split``, with the same seed.
    """

    method: str
    family: str
    final: Reading | None
    equal_time: Reading | None
    step_ms: Spread
    train_seconds: Spread
    peak_memory_mb: Spread
    num_backward: Spread
    errors: dict[int, str]
    num_updates: Spread = Spread(())
    num_parameters: Spread = Spread(())
    severe: Spread = Spread(())
    reduced: Spread = Spread(())


@dataclasses.dataclass(frozen=True)
class TaskInfo:
    """A task as the tables need it: metric -> unit, metric -> direction; the first metric is the primary one."""

    name: str
    units: dict[str, str]
    higher_is_better: dict[str, bool]


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """One run, as read from its folder.

    Attributes:
        method: Name of the method, or ``"single_task"``.
        task: Of a method with several networks, the tasks of this one, joined by plus signs; else ``None``.
        seed: Seed.
        status: ``"done"`` or ``"failed"``.
        error: Message of a failed run.
        history: One entry per epoch: ``epoch`` (from 1), ``train_seconds`` so far, ``train_loss`` (task -> mean),
            ``val`` and ``test`` (task -> metric -> value).
        conflicts: Now and then: ``step``, ``epoch`` (a fraction), ``cosine`` (``"a|b"`` -> cosine of the gradients).
        result: Content of ``result.json``; empty for a failed run.
        timing: Content of ``timing.json``; empty for a failed run.
        serves: Tasks whose numbers the method takes from this run; ``None`` for all.
        schedules: What the schedule recorded at the end of each epoch, if it records anything: ``epoch``, ``step``,
            ``groups``, ``num_groups`` (mean of the epoch), ``affinity`` (row = source).
    """

    method: str
    task: str | None
    seed: int
    status: str
    error: str | None
    history: tuple[dict[str, Any], ...]
    conflicts: tuple[dict[str, Any], ...]
    result: dict[str, Any]
    timing: dict[str, Any]
    serves: tuple[str, ...] | None = None
    schedules: tuple[dict[str, Any], ...] = ()


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Everything that the table and the report show.

    Attributes:
        title: What was compared, on what.
        tasks: The tasks, in order.
        seeds: The seeds, in order.
        selection: The rule by which an epoch was chosen, as a sentence.
        rows: One per method, single-task first, then equal weighting, then the others.
        runs: Every run.
        config: The configuration, as in ``compare.yaml``.
        environment: Versions and machine.
    """

    title: str
    tasks: tuple[TaskInfo, ...]
    seeds: tuple[int, ...]
    selection: str
    rows: tuple[MethodRow, ...]
    runs: tuple[RunRecord, ...]
    config: dict[str, Any]
    environment: dict[str, Any]
