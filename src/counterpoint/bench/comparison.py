"""From run folders to the numbers of the table."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from counterpoint._files import read_json
from counterpoint.bench.compare import BASELINES, SINGLE_TASK, CompareConfig, load_compare, make_jobs
from counterpoint.bench.dimensions import parse_combination
from counterpoint.bench.method import what_it_reads
from counterpoint.bench.results import Comparison, MethodRow, Reading, RunRecord, Spread, TaskInfo
from counterpoint.bench.runner import Job
from counterpoint.diagnostics.record import PAPER_BINS, reduced_mass
from counterpoint.errors import FileError
from counterpoint.metrics import delta_m, mean_rank
from counterpoint.training.run_folder import (
    CONFIG,
    ENVIRONMENT,
    ERROR,
    METRICS,
    RESULT,
    Finished,
    check_configuration,
    read_finished,
    read_records,
)
from counterpoint.training.selection import describe_rule, select

Metrics = dict[str, dict[str, float]]
SEVERE = PAPER_BINS["mnist"].severe


def read_comparison(folder: Path) -> Comparison:
    """Read all runs of a comparison and compute its table.

    Args:
        folder: Folder made by ``counterpoint compare``. Runs that are missing or damaged count as failed.

    Raises:
        FileError: If the folder holds no comparison, or its ``compare.yaml`` is damaged.
    """
    config, tasks = load_compare(folder)
    jobs = make_jobs(config, folder, [task.name for task in tasks])
    runs = {(job.method, job.task, job.config.seed): _read_run(job) for job in jobs}
    rows = _Table(config, tasks, runs).rows()
    machine = next((job.path / ENVIRONMENT for job in jobs if (job.path / ENVIRONMENT).exists()), None)
    training = config.run.training
    return Comparison(
        title=f"{len(config.methods)} {_what_is_compared(config)} on {config.run.data.name}, {len(config.seeds)} seeds",
        tasks=tasks,
        seeds=config.seeds,
        selection=describe_rule(training.selection, training.selection_k),
        rows=rows,
        runs=tuple(runs.values()),
        config=config.to_dict(),
        environment={} if machine is None else read_json(machine),
    )


def _read_run(job: Job) -> RunRecord:
    """Read one run; one that is damaged, or that another configuration made, counts as failed."""
    path = job.path
    finished: Finished | None = None
    records: Sequence[dict[str, Any]] = ()
    try:
        if (path / CONFIG).exists():
            check_configuration(path, job.config.to_dict())
        if (path / RESULT).exists():
            finished = read_finished(path)
            records, error = finished.records, None
        else:
            records = tuple(read_records(path / METRICS))
            error = read_json(path / ERROR)["error"] if (path / ERROR).exists() else "not finished"
    except FileError as damage:
        error = str(damage)
    return RunRecord(
        method=job.method,
        task=job.task,
        seed=job.config.seed,
        status="failed" if finished is None else "done",
        error=error,
        history=tuple(record for record in records if record.get("kind") == "epoch"),
        conflicts=tuple(record for record in records if record.get("kind") == "conflict"),
        result={} if finished is None else finished.result,
        timing={} if finished is None else finished.timing,
        serves=job.serves,
        schedules=tuple(
            {"epoch": record["epoch"], "step": record["step"], **record["schedule"]}
            for record in records
            if record.get("kind") == "epoch" and "schedule" in record
        ),
    )


def _what_is_compared(config: CompareConfig) -> str:
    """Return ``"balancers"``, or ``"methods"`` where they differ in something else, too."""
    plain = not config.splits and all(len(parse_combination(method)) == 1 for method in config.methods)
    return "balancers" if plain else "methods"


class _Table:
    """The rows of a comparison, computed from its runs."""

    def __init__(
        self,
        config: CompareConfig,
        tasks: Sequence[TaskInfo],
        runs: Mapping[tuple[str, str | None, int], RunRecord],
    ) -> None:
        self.config = config
        self.seeds = config.seeds
        self.tasks = tasks
        self.runs = runs
        self.training = config.run.training
        self.directions = {task.name: task.higher_is_better for task in tasks}
        self.parts: dict[str, dict[str | None, None]] = {}
        for method, part, _ in runs:
            self.parts.setdefault(method, {})[part] = None
        self.baseline = self._baseline()

    def rows(self) -> tuple[MethodRow, ...]:
        """Return single-task networks, equal weighting, then the other methods."""
        final = {method: self._metrics_at_end(method) for method in (SINGLE_TASK, *self.config.methods)}
        early = {method: self._metrics_at_equal_time(method) for method in self.config.methods}
        equal = [self._delta(metrics, "tasks") for metrics, _ in final["equal"]]
        readings_final = self._readings(final, equal)
        readings_early = self._readings(early, equal)
        return tuple(self._row(method, readings_final[method], readings_early.get(method)) for method in final)

    def _row(self, method: str, final: Reading | None, equal_time: Reading | None) -> MethodRow:
        def over_seeds(value: Callable[[RunRecord], float]) -> Spread:
            return Spread(tuple(self._sum_over_tasks(method, seed, value) for seed in self.seeds))

        family = "baseline"
        if method not in (SINGLE_TASK, *BASELINES):
            family = what_it_reads(parse_combination(method)["balancer"])
        wanted = [run for seed in self.seeds for run in self._runs_of(method, seed)]
        return MethodRow(
            method=method,
            family=family,
            final=final,
            equal_time=equal_time,
            step_ms=over_seeds(lambda run: run.timing["step_ms"]),
            train_seconds=over_seeds(lambda run: run.timing["train_seconds"]),
            peak_memory_mb=Spread(tuple(self._largest_memory(method, seed) for seed in self.seeds)),
            num_backward=over_seeds(lambda run: run.result["num_backward"]),
            severe=self._severe(method),
            reduced=Spread(
                tuple(
                    reduced_mass(own, base)
                    for own, base in zip(self._severe(method).values, self._severe("equal").values, strict=True)
                )
            ),
            errors={run.seed: run.error for run in wanted if run.error is not None},
            num_updates=over_seeds(_updates_per_batch),
            num_parameters=over_seeds(lambda run: run.result["num_parameters"]),
        )

    def _runs_of(self, method: str, seed: int) -> list[RunRecord]:
        return [self.runs[method, part, seed] for part in self.parts[method]]

    def _sum_over_tasks(self, method: str, seed: int, value: Callable[[RunRecord], float]) -> float:
        runs = self._runs_of(method, seed)
        return sum(value(run) for run in runs) if all(run.status == "done" for run in runs) else math.nan

    def _severe(self, method: str) -> Spread:
        """Return the share of severe conflict in what was measured; NaN where nothing was."""
        shares: list[float] = []
        for seed in self.seeds:
            records = [record for run in self._runs_of(method, seed) for record in run.conflicts]
            cosines = [cosine for record in records for cosine in record["cosine"].values() if cosine is not None]
            shares.append(sum(cosine < SEVERE for cosine in cosines) / len(cosines) if cosines else math.nan)
        return Spread(tuple(shares))

    def _largest_memory(self, method: str, seed: int) -> float:
        runs = self._runs_of(method, seed)
        return (
            max(run.timing["peak_memory_mb"] for run in runs) if all(run.status == "done" for run in runs) else math.nan
        )

    def _baseline(self) -> Metrics:
        """Return the mean over seeds of the single-task networks; one fixed baseline for all seeds and methods."""
        baseline: Metrics = {}
        for task in self.tasks:
            done = [self.runs[SINGLE_TASK, task.name, seed] for seed in self.seeds]
            values = [_numbers(run.result["test"])[task.name] for run in done if run.status == "done"]
            baseline[task.name] = {
                name: Spread(tuple(value[name] for value in values)).mean for name in task.higher_is_better
            }
        return baseline

    def _metrics_at_end(self, method: str) -> list[tuple[Metrics | None, float]]:
        """Return for each seed the metrics by the selection rule, and the number of epochs."""
        found: list[tuple[Metrics | None, float]] = []
        for seed in self.seeds:
            runs = self._runs_of(method, seed)
            if all(run.status == "done" for run in runs):
                found.append((_joined(runs, [run.result["test"] for run in runs]), runs[0].result["epochs"]))
            else:
                found.append((None, math.nan))
        return found

    def _metrics_at_equal_time(self, method: str) -> list[tuple[Metrics | None, float]]:
        """Return for each seed what the rule picks among the epochs that ended while equal weighting trained."""
        found: list[tuple[Metrics | None, float]] = []
        for seed in self.seeds:
            runs, equal = self._runs_of(method, seed), self.runs["equal", None, seed]
            budget = equal.history[-1]["train_seconds"] if equal.status == "done" else -math.inf
            history = [record for record in _joined_history(runs) if record["train_seconds"] <= budget]
            if any(run.status != "done" for run in runs) or not history:
                found.append((None, math.nan))
                continue
            _, metrics = select(history, self.training.selection, self.training.selection_k, self.directions)
            found.append((_numbers(metrics["test"]), len(history)))
        return found

    def _delta(self, metrics: Metrics | None, convention: str) -> float:
        if metrics is None or not all(_usable(own) for own in self.baseline.values()):
            return math.nan
        return delta_m(metrics, self.baseline, self.directions, convention=convention)

    def _readings(
        self, metrics: Mapping[str, Sequence[tuple[Metrics | None, float]]], equal: Sequence[float]
    ) -> dict[str, Reading | None]:
        """Return the reading of every method from its metrics per seed."""
        spreads = {
            method: {
                task.name: {
                    name: Spread(tuple(math.nan if found is None else found[task.name][name] for found, _ in per_seed))
                    for name in task.higher_is_better
                }
                for task in self.tasks
            }
            for method, per_seed in metrics.items()
        }
        ranks = self._ranks({method: own for method, own in spreads.items() if method != SINGLE_TASK})
        return {
            method: self._reading(spreads[method], per_seed, ranks.get(method, math.nan), equal)
            if any(found is not None for found, _ in per_seed)
            else None
            for method, per_seed in metrics.items()
        }

    def _reading(
        self,
        spreads: dict[str, dict[str, Spread]],
        per_seed: Sequence[tuple[Metrics | None, float]],
        rank: float,
        equal: Sequence[float],
    ) -> Reading:
        delta = {
            convention: Spread(tuple(self._delta(found, convention) for found, _ in per_seed))
            for convention in ("tasks", "metrics")
        }
        change = {
            task.name: Spread(tuple(self._change(found, task.name) for found, _ in per_seed)) for task in self.tasks
        }
        worst = tuple(min(change[task.name].values[i] for task in self.tasks) for i in range(len(self.seeds)))
        return Reading(
            metrics=spreads,
            delta=delta,
            change=change,
            worst=Spread(worst),
            worst_task=min(change, key=lambda task: change[task].mean),
            mean_rank=rank,
            against_equal=Spread(tuple(a - b for a, b in zip(delta["tasks"].values, equal, strict=True))),
            epochs=Spread(tuple(epochs for _, epochs in per_seed)),
        )

    def _change(self, metrics: Metrics | None, task: str) -> float:
        """Return the mean relative change of one task's metrics against its single-task network, per cent."""
        if metrics is None or not _usable(self.baseline[task]):
            return math.nan
        return delta_m(metrics, self.baseline, {task: self.directions[task]}, convention="tasks")

    def _ranks(self, spreads: Mapping[str, Mapping[str, Mapping[str, Spread]]]) -> dict[str, float]:
        flat = {
            method: {f"{task}/{name}": spread.mean for task, own in tasks.items() for name, spread in own.items()}
            for method, tasks in spreads.items()
        }
        ranked = {method: own for method, own in flat.items() if not any(math.isnan(value) for value in own.values())}
        directions = {
            f"{task.name}/{name}": higher for task in self.tasks for name, higher in task.higher_is_better.items()
        }
        return mean_rank(ranked, directions) if ranked else {}


def _joined(runs: Sequence[RunRecord], found: Sequence[Mapping[str, Mapping[str, float | None]]]) -> Metrics:
    """Return the metrics of each task from the network that serves it.

    Args:
        runs: The networks of a method.
        found: Task -> metric -> value of each.
    """
    return {
        task: values
        for run, own in zip(runs, found, strict=True)
        for task, values in _numbers(own).items()
        if run.serves is None or task in run.serves
    }


def _joined_history(runs: Sequence[RunRecord]) -> Sequence[Mapping[str, Any]]:
    """Return the epochs of a method: several networks count as trained side by side, and their times are summed."""
    if len(runs) == 1:
        return runs[0].history
    return [
        {
            "epoch": records[0]["epoch"],
            "train_seconds": sum(record["train_seconds"] for record in records),
            **{split: _joined(runs, [record[split] for record in records]) for split in ("val", "test")},
        }
        for records in zip(*(run.history for run in runs), strict=False)
    ]


def _updates_per_batch(run: RunRecord) -> float:
    """Return optimizer steps for each batch, on average; NaN of a run that did not count them."""
    return run.result.get("num_updates", math.nan) / run.result["steps"]


def _usable(baseline: Mapping[str, float]) -> bool:
    """Return whether a relative change against these values is defined."""
    return not any(math.isnan(value) or value == 0 for value in baseline.values())


def _numbers(metrics: Mapping[str, Mapping[str, float | None]]) -> Metrics:
    """Return metrics with NaN where JSON has null."""
    return {
        task: {name: math.nan if value is None else value for name, value in own.items()}
        for task, own in metrics.items()
    }
