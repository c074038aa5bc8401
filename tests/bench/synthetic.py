"""A made-up comparison with everything that the outputs must survive; numbers follow the definitions, not the code."""

import math
import random
import statistics

from counterpoint.bench.results import Comparison, MethodRow, Reading, RunRecord, Spread, TaskInfo

NAN = math.nan
HOSTILE = '<img src=x onerror="boom()">&amp;</script>%{x}_$1'
HOSTILE_ERROR = (
    'RuntimeError: </script><script>window.boom = 1</script> & "quotes" \x1b[31m loss of {task} is 100% _NaN_'
)
TASKS = (
    TaskInfo("seg", {"miou": "%", "pix_acc": "%"}, {"miou": True, "pix_acc": True}),
    TaskInfo("depth", {"abs_err": "m", "rel_err": ""}, {"abs_err": False, "rel_err": False}),
    TaskInfo("normals", {"mean_angle": "°", "within_11": "%"}, {"mean_angle": False, "within_11": True}),
)
BASE = {
    "seg": {"miou": 38.4, "pix_acc": 63.9},
    "depth": {"abs_err": 0.611, "rel_err": 0.267},
    "normals": {"mean_angle": 25.1, "within_11": 30.4},
}
# method -> (family, change of each task in per cent, step time over equal weighting)
METHODS = {
    "single_task": ("baseline", (0.0, 0.0, 0.0), 2.4),
    "equal": ("baseline", (3.1, 8.4, -12.9), 1.0),
    "random": ("baseline", (2.6, 7.1, -12.1), 1.01),
    "uncertainty": ("losses", (3.3, 9.9, -11.2), 1.02),
    "dwa": ("losses", (3.2, 8.6, -12.5), 1.0),
    "pcgrad": ("gram", (2.9, 9.3, -9.4), 1.83),
    "cagrad": ("gram", (4.0, 11.2, -6.0), 1.88),
    "nash_mtl": ("gram", (4.3, 12.6, -3.1), 2.06),
    "graddrop": ("jacobian", (2.4, 6.5, -10.8), 2.31),
    "gradvac": ("gram", (3.0, 9.0, -9.9), 1.86),
    HOSTILE: ("losses", (1.1, 2.0, -20.0), 1.3),
    "broken": ("jacobian", (0.0, 0.0, 0.0), 2.5),
}
SEEDS = (0, 1, 7)
EPOCHS = 20


def change(value, base, higher):
    return 100 * (value - base) / base * (1 if higher else -1)


def make_reading(values, base, equal_delta, epochs, rank):
    """Build a reading from task -> metric -> list over seeds, by the definitions."""
    changes = {
        task.name: [
            statistics.fmean(
                change(values[task.name][m][s], base[task.name][m][s], up) for m, up in task.higher_is_better.items()
            )
            for s in range(len(epochs))
        ]
        for task in TASKS
    }
    count = range(len(epochs))
    tasks = [statistics.fmean(changes[task.name][s] for task in TASKS) for s in count]
    flat = [
        -statistics.fmean(
            change(values[t.name][m][s], base[t.name][m][s], up) for t in TASKS for m, up in t.higher_is_better.items()
        )
        for s in count
    ]
    spreads = {task: Spread(tuple(own)) for task, own in changes.items()}
    return Reading(
        metrics={task: {m: Spread(tuple(own)) for m, own in metrics.items()} for task, metrics in values.items()},
        delta={"tasks": Spread(tuple(tasks)), "metrics": Spread(tuple(flat))},
        change=spreads,
        worst=Spread(tuple(min(changes[task.name][s] for task in TASKS) for s in count)),
        worst_task=min(spreads, key=lambda task: spreads[task].mean),
        mean_rank=rank,
        against_equal=Spread(tuple(own - other for own, other in zip(tasks, equal_delta or tasks, strict=True))),
        epochs=Spread(tuple(float(epoch) for epoch in epochs)),
    )


def make_values(rng, shifts, factor, missing):
    """Draw task -> metric -> list over seeds."""
    values = {}
    for task, shift in zip(TASKS, shifts, strict=True):
        values[task.name] = {}
        for metric, higher in task.higher_is_better.items():
            base = BASE[task.name][metric]
            sign = 1 if higher else -1
            drawn = [base * (1 + sign * (shift * factor + rng.gauss(0, 0.5)) / 100) for _ in SEEDS]
            values[task.name][metric] = [
                NAN if seed in missing else value for seed, value in zip(SEEDS, drawn, strict=True)
            ]
    return values


def make_history(rng, task_shift, step, last, epochs):
    """Draw the epochs of a run, for the tasks in ``task_shift``."""
    history = []
    for epoch in range(1, epochs + 1):
        val = {}
        for task in TASKS:
            if task.name in task_shift:
                metric, higher = next(iter(task.higher_is_better.items()))
                reached = 1 - math.exp(-epoch / 5)
                final = BASE[task.name][metric] * (1 + (1 if higher else -1) * task_shift[task.name] / 100)
                start = 0.45 if higher else 1.8
                value = final * (start + (1 - start) * reached) * (1 + rng.gauss(0, 0.008))
                val[task.name] = {metric: NAN if epoch == last else value}
        loss = dict.fromkeys(val, 1 / epoch)
        history.append({"epoch": epoch, "train_seconds": step * epoch, "train_loss": loss, "val": val, "test": val})
    return tuple(history)


def make_conflicts(rng, level, epochs):
    """Draw the cosines of all pairs, ten a run."""
    names = [task.name for task in TASKS]
    pairs = [f"{a}|{b}" for i, a in enumerate(names) for b in names[i + 1 :]]
    offsets = dict(zip(pairs, (0.25, 0.05, -0.12), strict=True))
    records = []
    for step in range(0, epochs * 50, 50):
        drift = level - 0.2 * step / (epochs * 50)
        cosine = {pair: offset + drift + rng.gauss(0, 0.04) for pair, offset in offsets.items()}
        records.append({"step": step, "epoch": step / 50, "cosine": cosine})
    return tuple(records)


def make_runs(rng, method, shifts, speed, failed, errors):
    """Draw the runs of one method."""
    runs = []
    for seed in SEEDS:
        parts = [task.name for task in TASKS] if method == "single_task" else [None]
        for part in parts:
            names = {
                t.name: s + rng.gauss(0, 0.4) for t, s in zip(TASKS, shifts, strict=True) if part in (None, t.name)
            }
            bad = seed in failed
            epochs = 4 if bad else EPOCHS
            history = make_history(rng, names, 6.0 * speed / len(parts), None, epochs)
            conflicts = () if part else make_conflicts(rng, 0.1 * (speed - 1), epochs)
            status = "failed" if bad else "done"
            error = errors.get(seed)
            runs.append(RunRecord(method, part, seed, status, error, history, conflicts, {}, {}))
    return runs


def make_comparison(*, hostile=True):
    """Build the comparison; without ``hostile`` the title and the names are harmless."""
    rng = random.Random(5)
    rows, runs = [], []
    base = {"final": None, "equal_time": None}
    equal = {"final": None, "equal_time": None}
    for number, (method, (family, shifts, speed)) in enumerate(METHODS.items()):
        if method == HOSTILE and not hostile:
            continue
        failed = SEEDS if method == "broken" else (1,) if method == "gradvac" else ()
        message = HOSTILE_ERROR if hostile else "FloatingPointError: the loss of task depth is NaN at step 212"
        errors = dict.fromkeys(failed, message)
        readings = {}
        for name, factor in (("final", 1.0), ("equal_time", 1.0 if speed < 1.1 else 0.6)):
            values = make_values(rng, shifts, factor, failed)
            base[name] = base[name] or values
            stop = EPOCHS if name == "final" else int(EPOCHS / speed)
            epochs = [NAN if seed in failed else stop - 1 - rng.randrange(2) for seed in SEEDS]
            reading = make_reading(
                values, base[name], equal[name], epochs, NAN if number in (0, 4) else 1.5 + number % 7
            )
            if method == "equal":
                equal[name] = reading.delta["tasks"].values
            readings[name] = None if method == "broken" or (method == "graddrop" and name == "equal_time") else reading
        seconds = [NAN if seed in failed else 120 * speed * (1 + rng.gauss(0, 0.01)) for seed in SEEDS]
        rows.append(
            MethodRow(
                method,
                family,
                readings["final"],
                readings["equal_time"],
                Spread(tuple(value / 9.6 for value in seconds)),
                Spread(tuple(seconds)),
                Spread(tuple(310 * speed + rng.random() if value == value else NAN for value in seconds)),
                Spread(tuple(NAN if value != value else 3000.0 * (3 if speed > 1.5 else 1) for value in seconds)),
                errors,
            )
        )
        runs += make_runs(rng, method, shifts, speed, failed, errors)
    title = "Three tasks on rooms" + (' <b>& "more"</b> </script>' if hostile else ": hard sharing, ResNet-18")
    return Comparison(
        title=title,
        tasks=TASKS,
        seeds=SEEDS,
        selection="Last epoch; no selection on the validation split.",
        rows=tuple(rows),
        runs=tuple(runs),
        config={
            "data": {"name": "rooms", "size": (64, 64)},
            "note": "</pre><script>window.boom = 2</script>",
            "epochs": EPOCHS,
        },
        environment={"python": "3.12.3", "torch": "2.14.0", "threads": 1},
    )
