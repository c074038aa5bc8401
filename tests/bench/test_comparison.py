"""The table's numbers against a plain recomputation from the run folders."""

import json
import math
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from counterpoint.bench.compare import load_compare, make_config, run_comparison
from counterpoint.bench.comparison import read_comparison
from counterpoint.bench.recipes import digits
from counterpoint.bench.run_config import override
from counterpoint.bench.runner import Event
from counterpoint.errors import FileError, OptionError

SMALL = [
    ("training.epochs", "3"),
    ("data.num_train", "400"),
    ("data.num_val", "100"),
    ("data.num_test", "150"),
    ("training.monitor_every", "2"),
]
CALL = [sys.executable, "-m", "counterpoint.cli.main", "compare", "digits", "--balancers", "pcgrad", "dwa"]
CALL += ["--seeds", "0", "1", *(word for path, value in SMALL for word in (f"--{path}", value))]
TASKS = ("left", "right")


def compare(folder, methods=("pcgrad",), seeds=(0, 1), changes=()):
    events: list[Event] = []
    config = make_config(override(digits(), [*SMALL, *changes]), methods, seeds)
    run_comparison(config, folder, workers=1, listener=events.append)
    return events


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    compare(folder)
    return folder


def accuracy(folder, method, seed):
    """Return the test accuracies of the last epoch, straight from the files."""
    names = [f"single_task-{task}" for task in TASKS] if method == "single_task" else [method]
    found = {}
    for name in names:
        lines = (folder / "runs" / name / f"seed{seed}" / "metrics.jsonl").read_text().splitlines()
        epochs = [record for record in map(json.loads, lines) if record["kind"] == "epoch"]
        found |= {task: values["accuracy"] for task, values in epochs[-1]["test"].items()}
    return np.array([found[task] for task in TASKS])


def test_the_table_is_what_the_runs_say(finished):
    comparison = read_comparison(finished)
    assert [row.method for row in comparison.rows] == ["single_task", "equal", "rlw", "pcgrad"]
    assert [row.family for row in comparison.rows] == ["baseline", "baseline", "baseline", "gram"]
    base = np.mean([accuracy(finished, "single_task", seed) for seed in (0, 1)], axis=0)
    change = {
        row.method: np.array([100 * (accuracy(finished, row.method, seed) - base) / base for seed in (0, 1)])
        for row in comparison.rows
    }
    for row in comparison.rows:
        reading, own = row.final, change[row.method]
        for position, task in enumerate(TASKS):
            raw = [accuracy(finished, row.method, seed)[position] for seed in (0, 1)]
            assert reading.metrics[task]["accuracy"].values == pytest.approx(raw)
            assert reading.metrics[task]["accuracy"].std == pytest.approx(np.std(raw, ddof=1))
            assert reading.change[task].values == pytest.approx(own[:, position])
        assert reading.delta["tasks"].values == pytest.approx(own.mean(axis=1))
        assert reading.delta["metrics"].values == pytest.approx(-own.mean(axis=1))
        assert reading.worst.values == pytest.approx(own.min(axis=1))
        assert reading.worst_task == TASKS[int(own.mean(axis=0).argmin())]
        assert reading.against_equal.values == pytest.approx(own.mean(axis=1) - change["equal"].mean(axis=1))
    means = {method: own.mean(axis=0) for method, own in change.items() if method != "single_task"}
    for row in comparison.rows[1:]:
        ranks = [
            sum(other[t] > means[row.method][t] for other in means.values())
            + (1 + sum(other[t] == means[row.method][t] for other in means.values())) / 2
            for t in range(2)
        ]
        assert row.final.mean_rank == pytest.approx(np.mean(ranks))
    assert math.isnan(comparison.rows[0].final.mean_rank)


def test_costs(finished):
    rows = {row.method: row for row in read_comparison(finished).rows}
    steps = 3 * math.ceil(400 / 128)
    assert rows["equal"].num_backward.values == (steps, steps)
    assert rows["pcgrad"].num_backward.values == (2 * steps, 2 * steps)
    assert rows["single_task"].num_backward.values == (2 * steps, 2 * steps), "the two networks together"
    for row in rows.values():
        assert all(value > 0 for value in (*row.step_ms.values, *row.train_seconds.values))


def test_reading_at_equal_time(finished, tmp_path):
    """Times are rewritten: a method twice as slow as equal weighting had one of its three epochs when that ended."""
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    for method, seconds in (("equal", 1.0), ("pcgrad", 2.0), ("rlw", 4.0)):
        for seed in (0, 1):
            path = folder / "runs" / method / f"seed{seed}" / "metrics.jsonl"
            records = [json.loads(line) for line in path.read_text().splitlines()]
            for record in records:
                if record["kind"] == "epoch":
                    record["train_seconds"] = seconds * record["epoch"]
            path.write_text("".join(json.dumps(record) + "\n" for record in records))
    rows = {row.method: row for row in read_comparison(folder).rows}
    assert rows["single_task"].equal_time is None
    assert rows["equal"].equal_time.delta == rows["equal"].final.delta
    assert rows["pcgrad"].equal_time.epochs.values == (1, 1)
    first = json.loads(
        next(
            line
            for line in (folder / "runs" / "pcgrad" / "seed0" / "metrics.jsonl").read_text().splitlines()
            if '"kind": "epoch"' in line
        )
    )
    assert rows["pcgrad"].equal_time.metrics["left"]["accuracy"].values[0] == first["test"]["left"]["accuracy"]
    assert rows["rlw"].equal_time is None, "not one epoch had ended"


def test_what_is_done_is_not_run_again_and_more_can_be_added(finished, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("metrics.jsonl")}
    compare(folder, methods=("pcgrad", "cagrad(c=0.2)"))
    after = {path: path.stat().st_mtime_ns for path in folder.rglob("metrics.jsonl")}
    assert before.items() <= after.items()
    assert len(after) == len(before) + 2
    assert [row.method for row in read_comparison(folder).rows][-1] == "cagrad(c=0.2)"


def test_a_comparison_of_another_configuration_is_refused(finished):
    with pytest.raises(
        FileError, match=r"holds another comparison \(optimizer.options.lr is 0.003 there and 0.1 now\)"
    ):
        compare(finished, changes=[("optimizer.lr", "0.1")])


def test_a_run_that_fails_is_recorded_and_the_rest_goes_on(tmp_path, monkeypatch):
    from counterpoint.training import visit

    original = visit.forward

    def sabotage(model, tasks, batch, *form):
        losses, output = original(model, tasks, batch, *form)
        if sabotage.method == "pcgrad" and len(tasks) == 2:
            losses["right"] = losses["right"] * float("inf")
        return losses, output

    from counterpoint.bench import runner

    real = runner.run_one

    def run_one(config, path, on_epoch=None):
        sabotage.method = config.balancer.name if config.seed == 1 else ""
        return real(config, path, on_epoch)

    monkeypatch.setattr(visit, "forward", sabotage)
    monkeypatch.setattr(runner, "run_one", run_one)
    events = compare(tmp_path, methods=("pcgrad", "gls"))
    failed = [event for event in events if event.kind == "failed"]
    assert len(failed) == 1
    assert "epoch 1, step 1: PCGrad: the loss of task 'right' is not finite" in failed[0].message
    rows = {row.method: row for row in read_comparison(tmp_path).rows}
    assert list(rows["pcgrad"].errors) == [1]
    assert "task 'right'" in rows["pcgrad"].errors[1]
    assert math.isnan(rows["pcgrad"].final.delta["tasks"].values[1])
    assert math.isfinite(rows["pcgrad"].final.delta["tasks"].mean)
    assert rows["gls"].errors == {}

    monkeypatch.undo()
    compare(tmp_path, methods=("pcgrad", "gls"))  # the cause is gone: only the failed run is run again
    assert {row.method: row.errors for row in read_comparison(tmp_path).rows}["pcgrad"] == {}
    assert not list(tmp_path.rglob("error.json"))


def test_without_runs_every_row_has_its_errors(tmp_path, finished):
    shutil.copy(finished / "compare.yaml", tmp_path)
    rows = read_comparison(tmp_path).rows
    assert all(row.final is None and set(row.errors) == {0, 1} for row in rows)
    assert "not finished" in rows[0].errors[0]


def test_a_damaged_comparison_is_named(tmp_path, finished):
    (tmp_path / "compare.yaml").write_text("methods: [equal]\n")
    with pytest.raises(FileError, match=r"compare\.yaml: must have methods, seeds, run and tasks"):
        load_compare(tmp_path)


@pytest.mark.parametrize("tasks", ["3", "[3]", "[{name: left}]"])
def test_tasks_of_a_comparison_that_are_none(tmp_path, finished, tasks):
    content = (finished / "compare.yaml").read_text()
    (tmp_path / "compare.yaml").write_text(content[: content.index("\ntasks:")] + f"\ntasks: {tasks}\n")
    with pytest.raises(FileError, match=r"compare\.yaml: damaged .*delete it"):
        load_compare(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("timing.json", None, "timing.json: missing"),
        ("timing.json", "{}", "timing.json: not whole"),
        ("result.json", "{", "result.json: not valid JSON"),
        ("metrics.jsonl", None, "metrics.jsonl: has 0 epochs, result.json counts 3"),
        ("metrics.jsonl", "{\n", "metrics.jsonl:1: not valid JSON"),
        ("config.yaml", "seed: 7\n", "made by another configuration"),
        ("config.yaml", "", "config.yaml: damaged"),
    ],
)
def test_a_damaged_run_counts_as_failed_and_the_rest_is_shown(finished, tmp_path, name, content, message):
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    path = folder / "runs" / "pcgrad" / "seed1" / name
    path.unlink() if content is None else path.write_text(content)
    rows = {row.method: row for row in read_comparison(folder).rows}
    assert message in rows["pcgrad"].errors[1]
    assert math.isnan(rows["pcgrad"].final.delta["tasks"].values[1])
    assert math.isfinite(rows["pcgrad"].final.delta["tasks"].values[0])
    assert rows["rlw"].errors == {}
    failed = [event for event in compare(folder) if event.kind == "failed"]
    assert [message in event.message for event in failed] == [True], "the command says so, too"
    shutil.rmtree(path.parent)
    assert not [event for event in compare(folder) if event.kind == "failed"], "the cure does not help"
    assert {row.method: row.errors for row in read_comparison(folder).rows}["pcgrad"] == {}


def test_seeds_that_no_generator_takes():
    with pytest.raises(OptionError, match="a seed must be a whole number from 0 to 4294967295, got 4294967296"):
        make_config(digits(), ["pcgrad"], [0, 2**32])


def deterministic(path):
    """Return the columns of table.csv that do not depend on a clock."""
    import csv

    with path.open() as file:
        rows = list(csv.DictReader(file))
    timed = ("seconds", "step_ms", "memory", "time")
    return [
        {name: value for name, value in row.items() if not any(word in name for word in timed)}
        for row in rows
        if row["reading"] == "final"
    ]


@pytest.mark.slow
def test_killed_and_started_again_gives_the_same_table(tmp_path):
    """The command is killed for real with two workers, then a worker alone; the table does not show it."""
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = subprocess.Popen(
        [*CALL, "--out", killed, "--workers", "2"], stdout=subprocess.DEVNULL, start_new_session=True
    )
    wait_for(lambda: len(list(killed.rglob("metrics.jsonl"))) >= 2, process)
    import os

    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (killed / "table.csv").exists()

    process = subprocess.Popen(
        [*CALL, "--out", killed, "--workers", "2"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    done = len(list(killed.rglob("result.json")))
    wait_for(lambda: len(list(killed.rglob("result.json"))) > done, process)
    os.kill(worker_of(process.pid), signal.SIGKILL)
    _, err = process.communicate()
    assert process.returncode == 0, err
    assert err == b"", "progress must be silent when not on a terminal"

    subprocess.run([*CALL, "--out", whole, "--workers", "1"], check=True, stdout=subprocess.DEVNULL)
    assert deterministic(killed / "table.csv") == deterministic(whole / "table.csv")
    assert deterministic(whole / "table.csv")
    assert not list(killed.rglob("error.json"))


def wait_for(condition, process):
    while not condition():
        assert process.poll() is None, "the command ended before it could be killed"
        time.sleep(0.01)


def worker_of(parent):
    """Return a worker process of a comparison: a child that runs multiprocessing's spawn_main."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            fields = (path / "stat").read_text().rsplit(")", 1)[1].split()
            command = (path / "cmdline").read_bytes()
        except OSError:
            continue
        if int(fields[1]) == parent and b"spawn_main" in command:
            return int(path.name)
    raise AssertionError("no worker process found")
