import json
import subprocess
import sys

import pytest
import torch

from counterpoint import balancers, training
from counterpoint.errors import OptionError
from counterpoint.training.seed import epoch_generator, rng_state, seed_everything, set_rng_state
from training.runs import train


def read(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("balancer", "passes"), [("equal", 1), ("pcgrad", 2), ("graddrop", 2), ("gradnorm", 1), ("modo", 5)]
)
def test_result_and_records(make, tmp_path, balancer, passes):
    result = train(make(balancer, monitor_every=4), tmp_path)
    assert result["steps"] == 15  # three epochs of five batches of at most 16 of 70 samples
    assert result["num_backward"] == 15 * passes
    epochs = [record for record in read(tmp_path) if record["kind"] == "epoch"]
    assert [record["epoch"] for record in epochs] == [1, 2, 3]
    assert result["test"] == epochs[-1]["test"]
    assert epochs[-1]["train_seconds"] > epochs[0]["train_seconds"] > 0
    assert (epochs[0]["weights"] is None) == (balancer == "graddrop")
    conflicts = [record for record in read(tmp_path) if record["kind"] == "conflict"]
    assert [record["step"] for record in conflicts] == [1, 5, 9, 13]
    assert [record["epoch"] for record in conflicts] == [0.0, 0.8, 1.6, 2.4]
    assert all(-1 <= record["cosine"]["a|b"] <= 1 for record in conflicts)


def test_known_cosines_are_those_that_would_be_measured(make, tmp_path):
    train(make("pcgrad", monitor_every=1, epochs=1, dropout=0.0), tmp_path / "known")
    first = next(record for record in read(tmp_path / "known") if record["kind"] == "conflict")
    train(make("equal", monitor_every=1, epochs=1, dropout=0.0), tmp_path / "measured")
    same = next(record for record in read(tmp_path / "measured") if record["kind"] == "conflict")
    assert first["cosine"]["a|b"] == pytest.approx(same["cosine"]["a|b"], abs=1e-6)


def test_the_level_of_features_needs_one_backward_pass(make, tmp_path):
    result = train(make("mgda", level="features", monitor_every=2), tmp_path)
    assert result["num_backward"] == result["steps"]
    assert any(record["kind"] == "conflict" for record in read(tmp_path))


def test_seeds_change_results_and_repeat_them(make, tmp_path):
    results = [train(make(seed=seed), tmp_path / str(i)) for i, seed in enumerate((1, 1, 2))]
    states = [read(tmp_path / str(i))[-1]["train_loss"] for i in range(3)]
    assert results[0] == results[1]
    assert states[0] == states[1] != states[2]


def test_best_checkpoint_is_that_of_the_selected_epoch(make, tmp_path):
    result = train(make(selection="best", epochs=6), tmp_path)
    best = training.run_folder.load_checkpoint(tmp_path / "checkpoints" / "best.pt")
    assert best["epoch"] == result["selected_epoch"]


def test_tasks_without_labels_in_some_batches(make, toy, tmp_path):
    run = make("gradvac", data=toy(masked=True), batch_size=2)
    assert train(run, tmp_path)["epochs"] == 3


def test_epoch_orders_are_permutations_that_differ():
    orders = [torch.randperm(50, generator=epoch_generator(0, epoch)) for epoch in range(4)]
    orders += [torch.randperm(50, generator=epoch_generator(1, 0))]
    assert len({tuple(order.tolist()) for order in orders}) == 5


def test_generators_are_restored():
    import random

    import numpy as np

    seed_everything(5)
    state = rng_state()
    first = (torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random())
    set_rng_state(state)
    assert (torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()) == first


def test_peak_memory_sees_a_large_tensor():
    script = """
import torch
from counterpoint.training.memory import PeakMemory
memory = PeakMemory(torch.device("cpu"))
print(memory.extra_mb())
large = torch.ones(30_000_000)  # 114 MB
del large
print(memory.extra_mb())
"""  # in a process of its own: the peak of this one may lie far above what it holds now
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    before, after = map(float, done.stdout.split())
    assert before < 30
    assert after > 90


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "training: epochs must be"),
        ({"selection": "bst"}, "did you mean best"),
        ({"level": "feature"}, "did you mean features"),
        ({"monitor_every": -1}, "monitor_every must be"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(OptionError, match=message):
        training.FitOptions(**options)


class Watching(balancers.LossBalancer):
    """Remembers what it was told."""

    key = "watching"
    needs = frozenset({"metrics"})

    def __init__(self, num_tasks=None, *, tasks=None):
        super().__init__(num_tasks, tasks)
        self.seen = []

    def objective(self, losses, *, present=None):
        return losses.sum()

    def observe_metrics(self, values, *, higher_is_better):
        self.seen.append((dict(values), dict(higher_is_better)))


def test_validation_metrics_are_given_to_a_balancer_that_asks(make, tmp_path):
    run = make()
    run.balancer = Watching(tasks=["a", "b"])
    train(run, tmp_path)
    records = [r for r in read(tmp_path) if r["kind"] == "epoch"]
    told = [{task: record["val"][task]["accuracy"] for task in ("a", "b")} for record in records]
    assert run.balancer.seen == [(values, {"a": True, "b": True}) for values in told]


@pytest.mark.parametrize("balancer", ["sdmgrad", "modo"])
def test_further_batches_are_of_the_training_split_in_other_orders(make, tmp_path, balancer):
    run = make(balancer, epochs=2)
    seen = []
    run.model.register_forward_pre_hook(
        lambda model, arguments: seen.append(arguments[0].sum(dim=(1, 2, 3))) if model.training else None
    )
    train(run, tmp_path)
    samples = run.data.split("train").tensors["image"].sum(dim=(1, 2, 3)).sort().values
    orders = [torch.cat(seen[start : start + 15][batch::3]) for start in (0, 15) for batch in range(3)]
    assert len(seen) == 30  # two epochs of five steps of three batches
    assert len({tuple(order.tolist()) for order in orders}) == 6
    for order in orders:
        assert torch.equal(order.sort().values, samples)
