"""Processes that die by themselves: only the guilty run fails."""

import json
import subprocess
import sys

import pytest

from counterpoint.bench.run_config import DataConfig, ModelConfig, RunConfig, TrainingConfig
from counterpoint.bench.runner import Job, run_many

MODULE = '''
import os
import signal
from counterpoint.data import Digits


class Deadly(Digits):
    """Kills its process while it is read, for the first `lives` times."""

    key = "deadly"

    def __init__(self, *, counter: str, lives: int) -> None:
        with open(counter, "a") as file:
            file.write("x")
        if os.path.getsize(counter) <= lives:
            os.kill(os.getpid(), signal.SIGKILL)
        super().__init__(num_train=60, num_val=30, num_test=30)
'''

LOCKED = """
import multiprocessing
import os
from counterpoint.bench.runner import _forwarding


def die(news):
    news.put("first")
    news.close()
    news.join_thread()  # sent
    news._wlock.acquire()
    os._exit(1)


if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    news = context.Queue()
    with _forwarding(news, print):
        process = context.Process(target=die, args=(news,))
        process.start()
        process.join()
    print("ended")
"""


def test_a_worker_killed_while_it_writes_its_news_holds_nobody_up(tmp_path):
    script = tmp_path / "locked.py"
    script.write_text(LOCKED)
    done = subprocess.run([sys.executable, script], check=True, timeout=100, capture_output=True, text=True)
    assert done.stdout.split() == ["first", "ended"]


def job(tmp_path, name, lives):
    options = {"counter": str(tmp_path / f"{name}.count"), "lives": lives}
    config = RunConfig(
        data=DataConfig("deadly_data:Deadly", options), model=ModelConfig(), training=TrainingConfig(epochs=1)
    )
    return Job(name, None, config, tmp_path / name)


@pytest.mark.slow
def test_only_the_run_that_kills_its_process_fails(tmp_path, monkeypatch):
    (tmp_path / "deadly_data.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "argv", ["pytest"])
    jobs = [job(tmp_path, "guilty", 99), job(tmp_path, "healthy", 0), job(tmp_path, "unlucky", 1)]
    jobs.append(job(tmp_path, "other", 0))
    events = []
    run_many(jobs, workers=2, listener=events.append)
    assert [event.index for event in events if event.kind == "failed"] == [0]
    assert sorted(event.index for event in events if event.kind == "done") == [1, 2, 3]
    assert "died twice" in json.loads((tmp_path / "guilty" / "error.json").read_text())["error"]
    assert not (tmp_path / "guilty" / "result.json").exists()
    assert all((tmp_path / name / "result.json").exists() for name in ("healthy", "unlucky", "other"))
