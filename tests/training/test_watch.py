"""A monitor in the training loop: what it measures, at which steps, and that its time is not the training's."""

import time

import pytest

from counterpoint import training
from counterpoint.diagnostics import ConflictMonitor
from training.runs import StopError, train


def monitor_of(made, every=3):
    return ConflictMonitor(made.model, tasks=["a", "b"], every=every, keep_cosines=True)


@pytest.mark.parametrize("balancer", ["equal", "pcgrad", "graddrop", "db_mtl"])
def test_steps_are_those_of_the_run_also_after_a_stop(make, tmp_path, balancer):
    made = make(balancer, epochs=3)  # five steps an epoch
    whole = monitor_of(made)
    train(made, tmp_path / "whole", watch=whole)
    assert whole.record().steps.tolist() == [0, 3, 6, 9, 12]
    with pytest.raises(StopError):
        train(make(balancer, epochs=3), tmp_path / "parts", stop_after=1)
    made = make(balancer, epochs=3)
    rest = monitor_of(made)
    train(made, tmp_path / "parts", watch=rest)
    assert rest.record().steps.tolist() == [6, 9, 12]
    assert rest.record().cosines.tolist() == whole.record().cosines[2:].tolist()


@pytest.mark.parametrize(
    ("balancer", "engine", "told"), [("equal", None, 0), ("pcgrad", "low_memory", 0), ("pcgrad", None, 1)]
)
def test_the_time_of_measuring_is_not_that_of_training(make, tmp_path, monkeypatch, balancer, engine, told):
    made = make(balancer, epochs=1)
    if engine is not None:
        made.balancer.engine = engine
    monitor = monitor_of(made, every=1)
    take, count = monitor.take, 0

    def slow(*args, **kwargs):
        nonlocal count
        count += 1
        if not told:
            time.sleep(0.2)
        return take(*args, **kwargs)

    monkeypatch.setattr(monitor, "take", slow)
    began = time.perf_counter()
    train(made, tmp_path / "run", watch=monitor)
    lasted = time.perf_counter() - began
    assert count == 5
    if not told:  # a second of sleep is in the whole and not in the training
        spent = training.run_folder.read_finished(tmp_path / "run").timing["train_seconds"]
        assert spent < lasted - 1.0
