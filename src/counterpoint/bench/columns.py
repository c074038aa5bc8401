"""The columns that every table of a comparison is made of."""

import dataclasses
from collections.abc import Callable

from counterpoint.bench.numbers import choose_decimals
from counterpoint.bench.readings import READINGS, SINGLE_TASK, get_reading, relative_time
from counterpoint.bench.results import Comparison, MethodRow, Reading, Spread, TaskInfo

COST = "Cost"
CONFLICT = "Conflict"


@dataclasses.dataclass(frozen=True)
class Column:
    """One column: where its numbers come from and how they are read.

    Attributes:
        group: Heading above it.
        label: Heading.
        note: What it is, as a sentence.
        values: Returns the numbers of a row at a reading; ``None`` if it has none.
        unit: Unit, or empty.
        higher_is_better: Direction; ``None`` if neither is better.
        signed: Numbers carry an explicit plus sign.
        remark: Returns a word to add to the number, such as the task it belongs to.
        max_decimals: More decimals than this would only be noise.
    """

    group: str
    label: str
    note: str
    values: Callable[[MethodRow, Reading | None], Spread | None]
    unit: str = ""
    higher_is_better: bool | None = None
    signed: bool = False
    remark: Callable[[Reading], str] | None = None
    max_decimals: int = 6

    @property
    def arrow(self) -> str:
        """The direction of better as an arrow."""
        return "" if self.higher_is_better is None else "\u2191" if self.higher_is_better else "\u2193"

    def of(self, row: MethodRow, reading: str) -> Spread | None:
        """Return the numbers of a row at a reading."""
        found = self.values(row, get_reading(row, reading))
        return found if found is not None and found.finite else None

    def decimals(self, comparison: Comparison) -> int:
        """Return the decimals of the whole column, over both readings."""
        found = [self.of(row, reading) for row in comparison.rows for reading in READINGS]
        return min(self.max_decimals, choose_decimals(spread for spread in found if spread is not None))

    def best(self, comparison: Comparison, reading: str) -> set[str]:
        """Return the multi-task methods with the best mean as it is written, with ties; none for costs."""
        decimals = self.decimals(comparison)
        found = {row.method: self.of(row, reading) for row in comparison.rows if row.method != SINGLE_TASK}
        means = {method: round(spread.mean, decimals) for method, spread in found.items() if spread is not None}
        if self.higher_is_better is None or self.group == COST or len(means) < 2:
            return set()
        top = max(means.values()) if self.higher_is_better else min(means.values())
        return {method for method, mean in means.items() if mean == top}


def _read(get: Callable[[Reading], Spread | None]) -> Callable[[MethodRow, Reading | None], Spread | None]:
    """Return ``values`` of a column that depends on the reading."""
    return lambda _row, reading: None if reading is None else get(reading)


def summary_columns() -> list[Column]:
    """Return the columns that compare a method with single-task networks and with equal weighting."""
    group = "Against the baselines"
    return [
        Column(
            group,
            "\u0394m (tasks)",
            "Mean over tasks of each task's mean relative change against the mean of its single-task networks; "
            "positive is better.",
            _read(lambda reading: reading.delta.get("tasks")),
            "%",
            higher_is_better=True,
            signed=True,
        ),
        Column(
            group,
            "\u0394m (metrics)",
            "Flat mean over all metrics of the relative change, with the sign turned; negative is better.",
            _read(lambda reading: reading.delta.get("metrics")),
            "%",
            higher_is_better=False,
            signed=True,
        ),
        Column(
            group,
            "vs equal",
            "Difference of \u0394m (tasks) to equal weighting with the same seed, percentage points.",
            _read(lambda reading: reading.against_equal),
            "pp",
            higher_is_better=True,
            signed=True,
        ),
        Column(
            group,
            "Worst task",
            "Smallest change of any task against the mean of its single-task networks; the task with the smallest "
            "mean is named.",
            _read(lambda reading: reading.worst),
            "%",
            higher_is_better=True,
            signed=True,
            remark=lambda reading: reading.worst_task,
        ),
        Column(
            group,
            "Mean rank",
            "Mean over metrics of the rank among the multi-task methods; 1 is best.",
            _read(lambda reading: Spread((reading.mean_rank,))),
            higher_is_better=False,
            max_decimals=2,
        ),
    ]


def metric_columns(task: TaskInfo) -> list[Column]:
    """Return the columns of the test metrics of one task."""

    def values(metric: str) -> Callable[[MethodRow, Reading | None], Spread | None]:
        return _read(lambda reading: reading.metrics.get(task.name, {}).get(metric))

    return [
        Column(
            task.name,
            metric,
            f"{metric} of {task.name} on the test split; {'higher' if higher else 'lower'} is better.",
            values(metric),
            task.units.get(metric, ""),
            higher_is_better=higher,
        )
        for metric, higher in task.higher_is_better.items()
    ]


def cost_columns(comparison: Comparison) -> list[Column]:
    """Return the columns of measured cost, which do not depend on the reading, and the epochs read."""
    group = COST
    return [
        Column(
            group,
            "Time",
            "Training time over that of equal weighting with the same seed.",
            lambda row, _reading: relative_time(comparison, row),
            "\u00d7 equal",
            higher_is_better=False,
            max_decimals=2,
        ),
        Column(
            group,
            "Train",
            "Time of all training steps, without evaluation and monitoring; summed over tasks for single-task "
            "networks.",
            lambda row, _reading: row.train_seconds,
            "s",
            higher_is_better=False,
            max_decimals=1,
        ),
        Column(
            group,
            "Step",
            "Median time of a training step.",
            lambda row, _reading: row.step_ms,
            "ms",
            higher_is_better=False,
            max_decimals=2,
        ),
        Column(
            group,
            "Memory",
            "Peak memory of the process above that at the start of training.",
            lambda row, _reading: row.peak_memory_mb,
            "MB",
            higher_is_better=False,
            max_decimals=1,
        ),
        *_pass_columns(),
        Column(
            group,
            "Epochs",
            "Epochs that had ended at this reading.",
            _read(lambda reading: reading.epochs),
            max_decimals=1,
        ),
    ]


def split_columns(comparison: Comparison) -> list[Column]:
    """Return the columns on size and conflict, if networks are split."""
    if not comparison.config.get("splits"):
        return []
    return [
        Column(
            COST,
            "Size",
            "Parameters in float32, in MB of 2^20 bytes, the copies of split layers included; summed over tasks for "
            "single-task networks.",
            lambda row, _reading: _scaled(row.num_parameters, 4 / 2**20),
            "MB",
            higher_is_better=False,
            max_decimals=2,
        ),
        Column(
            CONFLICT,
            "Severe",
            "Share of the measured cosines between task gradients, of all that is still shared, below -0.01.",
            lambda row, _reading: _scaled(row.severe, 100),
            "%",
            max_decimals=1,
        ),
        Column(
            CONFLICT,
            "Reduced",
            "1 - severe / severe of equal weighting on the network that is not split, with the same seed.",
            lambda row, _reading: _scaled(row.reduced, 100),
            "%",
            signed=True,
            max_decimals=1,
        ),
    ]


def _scaled(spread: Spread, factor: float) -> Spread:
    return Spread(tuple(factor * value for value in spread.values))


def _pass_columns() -> list[Column]:
    """Return the columns that count passes and updates."""
    group = COST
    return [
        Column(
            group,
            "Backward",
            "Backward passes through the shared part over the whole training; summed over networks.",
            lambda row, _reading: row.num_backward,
            "passes",
            higher_is_better=False,
            max_decimals=0,
        ),
        Column(
            group,
            "Updates",
            "Forward passes and optimizer steps for each batch; more than one where groups of tasks are updated in "
            "turn or a method has several networks.",
            lambda row, _reading: row.num_updates,
            "a batch",
            higher_is_better=False,
            max_decimals=2,
        ),
    ]


def all_columns(comparison: Comparison) -> list[Column]:
    """Return the columns of the full table, in order."""
    metrics = [column for task in comparison.tasks for column in metric_columns(task)]
    return [*summary_columns(), *metrics, *cost_columns(comparison), *split_columns(comparison)]
