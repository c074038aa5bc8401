"""The two readings of a comparison, its baselines and its failures, as every output names them."""

from counterpoint.bench.results import Comparison, MethodRow, Reading, Spread

SINGLE_TASK = "single_task"
EQUAL = "equal"
READINGS = {"final": "at the end of training", "equal_time": "at equal wall-clock"}


def get_reading(row: MethodRow, reading: str) -> Reading | None:
    """Return what a method reached at a reading, a key of :data:`READINGS`; ``None`` if it reached nothing."""
    return row.final if reading == "final" else row.equal_time


def find_row(comparison: Comparison, method: str) -> MethodRow | None:
    """Return the row of a method, if it is there."""
    return next((row for row in comparison.rows if row.method == method), None)


def failed_runs(comparison: Comparison) -> list[tuple[str, str | None, int, str]]:
    """Return (method, task, seed, message) of every run that failed, as the runs and the rows record it."""
    failed = [
        (run.method, run.task, run.seed, run.error or "no message") for run in comparison.runs if run.status == "failed"
    ]
    known = {(method, seed) for method, _, seed, _ in failed}
    for row in comparison.rows:
        failed += [
            (row.method, None, seed, text) for seed, text in row.errors.items() if (row.method, seed) not in known
        ]
    return failed


def relative_time(comparison: Comparison, row: MethodRow) -> Spread:
    """Return the training time over that of equal weighting with the same seed; empty without equal weighting."""
    equal = find_row(comparison, EQUAL)
    if equal is None:
        return Spread(())
    pairs = zip(row.train_seconds.values, equal.train_seconds.values, strict=True)
    return Spread(tuple(own / base if base > 0 else float("nan") for own, base in pairs))


def ranked_rows(comparison: Comparison, reading: str = "final") -> list[int]:
    """Return the positions of the rows, best delta_m ("tasks") at a reading first, without a result last."""

    def key(index: int) -> tuple[bool, float]:
        own = get_reading(comparison.rows[index], reading)
        found = own is not None and bool(own.delta["tasks"].finite)
        return not found, -own.delta["tasks"].mean if own is not None and found else 0.0

    return sorted(range(len(comparison.rows)), key=key)
