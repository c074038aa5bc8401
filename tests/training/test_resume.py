"""A run that is killed goes on to the same numbers."""

import json
import random
import signal
import subprocess
import sys
import time

import pytest

from counterpoint.errors import FileError
from training.runs import StopError, train

TIMED = ("train_seconds", "step_ms")


def records(path):
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMED} for line in lines]


@pytest.mark.parametrize(
    "balancer",
    [
        *("equal", "uncertainty", "dwa", "gradvac", "pomsi", "graddrop", "rlw", "famo", "auto_lambda", "spmtl"),
        *("db_mtl", "moco", "sam_gs", "excess_mtl", "gradnorm", "sdmgrad", "modo", "rotograd", "gcond"),
    ],
)
def test_stopped_runs_end_with_the_same_numbers(make, tmp_path, balancer):
    options = {"epochs": 5, "monitor_every": 3, "schedule": {"step_size": 2, "gamma": 0.3}, "optimizer": "Adam"}
    whole = train(make(balancer, **options), tmp_path / "whole")
    for stop in (1, 2, 4):
        with pytest.raises(StopError):
            train(make(balancer, **options), tmp_path / "parts", stop_after=stop)
    parts = train(make(balancer, **options), tmp_path / "parts")
    assert parts == whole
    assert (tmp_path / "parts" / "result.json").read_bytes() == (tmp_path / "whole" / "result.json").read_bytes()
    assert records(tmp_path / "parts") == records(tmp_path / "whole")
    assert json.loads((tmp_path / "parts" / "timing.json").read_text())["resumed"] == 3


def test_records_after_the_checkpoint_are_dropped(make, tmp_path):
    with pytest.raises(StopError):
        train(make(monitor_every=2), tmp_path, stop_after=1)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "conflict", "step": 99, "epoch": 1.5, "cosine": {"a|b": 1.0}}\n{"kind": "epo')
    train(make(monitor_every=2), tmp_path)
    assert all(record["step"] != 99 for record in records(tmp_path))


def test_rarer_checkpoints_give_the_same_numbers(make, tmp_path):
    whole = train(make("pcgrad", epochs=5), tmp_path / "whole")
    with pytest.raises(StopError):
        train(make("pcgrad", epochs=5, checkpoint_every=2), tmp_path / "parts", stop_after=3)
    assert len(records(tmp_path / "parts")) == 3
    assert train(make("pcgrad", epochs=5, checkpoint_every=2), tmp_path / "parts") == whole
    assert [record["epoch"] for record in records(tmp_path / "parts")] == [1, 2, 3, 4, 5]


def test_a_done_run_is_returned_without_training(make, tmp_path):
    first = train(make(), tmp_path)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    assert train(make(), tmp_path, stop_after=1) == first
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_checkpoint_cut_short_is_named(make, tmp_path, share):
    with pytest.raises(StopError):
        train(make(), tmp_path, stop_after=1)
    path = tmp_path / "checkpoints" / "last.pt"
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(FileError, match=r"last\.pt: cut short or damaged.*delete it to train again"):
        train(make(), tmp_path)


def test_an_altered_checkpoint_is_named(make, tmp_path):
    with pytest.raises(StopError):
        train(make(), tmp_path, stop_after=1)
    path = tmp_path / "checkpoints" / "last.pt"
    content = bytearray(path.read_bytes())
    at = content.index(b"model")  # inside the pickle of the archive
    content[at] ^= 1
    path.write_bytes(content)
    with pytest.raises(FileError, match=r"last\.pt: altered .*delete it to train again"):
        train(make(), tmp_path)


def test_records_shorter_than_the_checkpoint_expects_are_named(make, tmp_path):
    with pytest.raises(StopError):
        train(make(), tmp_path, stop_after=2)
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(FileError, match=r"metrics\.jsonl: has 0 bytes, its checkpoint expects"):
        train(make(), tmp_path)


@pytest.mark.slow
def test_kill_minus_nine_at_three_random_moments(tmp_path):
    """Another process is killed for real; the result file is the same as that of an undisturbed run, bit for bit."""
    call = [sys.executable, "-m", "counterpoint.cli.main", "train", "digits", "--balancer", "gradvac"]
    call += ["--training.epochs", "12", "--data.num_train", "600", "--model.backbone_options.dropout", "0.3"]
    call += ["--training.monitor_every", "1"]
    draw = random.Random(11)
    path = tmp_path / "killed"
    for _ in range(3):
        process = subprocess.Popen([*call, "--out", path], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        before = size(path)
        while size(path) == before and process.poll() is None:
            time.sleep(0.005)
        time.sleep(draw.random() * 0.6)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (path / "result.json").exists(), "the run ended before it was killed: kill it earlier"
    for out in (path, tmp_path / "whole"):
        subprocess.run([*call, "--out", out], check=True, stdout=subprocess.DEVNULL)
    assert (path / "result.json").read_bytes() == (tmp_path / "whole" / "result.json").read_bytes()
    assert records(path) == records(tmp_path / "whole")
    assert not list(path.rglob("*.tmp*")), "a temporary file was left and not cleaned up"


def size(path):
    file = path / "metrics.jsonl"
    return file.stat().st_size if file.exists() else -1
