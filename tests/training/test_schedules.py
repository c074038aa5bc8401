"""Schedules in the training loop: joint is the loop as ever, the others are counted, resumed and told the truth."""

import itertools
import json

import pytest
import torch

from counterpoint import balancers, schedules
from counterpoint.errors import NonFiniteError
from training.runs import StopError, train

NAMES = ["a", "b"]
SCHEDULES = [
    ("joint", {}),
    ("alternating", {}),
    ("alternating", {"order": "random"}),
    ("alternating", {"per_batch": "one"}),
    ("fixed_groups", {"groups": [["b"], ["a", "b"]]}),
    ("random_groups", {}),
    ("sequential_reptile", {"inner_steps": 3}),
]
every = pytest.mark.parametrize(("name", "options"), SCHEDULES)


def create(name, options, seed=1):
    random = name != "joint"
    return schedules.create(
        name, tasks=NAMES, **options, **({"generator": torch.Generator().manual_seed(seed)} if random else {})
    )


def records(path):
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in ("train_seconds", "step_ms")} for line in lines]


def same(first, second):
    pairs = zip(first.model.state_dict().values(), second.model.state_dict().values(), strict=True)
    return all(torch.equal(mine, theirs) for mine, theirs in pairs)


@pytest.mark.parametrize("balancer", ["equal", "uncertainty", "pcgrad", "graddrop", "dwa"])
def test_one_group_of_all_is_joint_bit_for_bit(make, tmp_path, balancer):
    joint = make(balancer, monitor_every=2)
    expected = train(joint, tmp_path / "joint")
    ours = make(balancer, monitor_every=2)
    assert train(ours, tmp_path / "ours", create("fixed_groups", {"groups": [["a", "b"]]})) == expected
    assert records(tmp_path / "ours") == records(tmp_path / "joint")
    assert same(ours, joint)


@every
@pytest.mark.parametrize("balancer", ["equal", "gradvac"])
def test_stopped_runs_end_with_the_same_numbers(make, tmp_path, name, options, balancer):
    given = {"epochs": 4, "monitor_every": 3, "schedule": {"step_size": 2, "gamma": 0.3}, "optimizer": "Adam"}
    whole = make(balancer, **given)
    expected = train(whole, tmp_path / "whole", create(name, options))
    for stop in (1, 3):
        with pytest.raises(StopError):
            train(make(balancer, **given), tmp_path / "parts", create(name, options), stop_after=stop)
    parts = make(balancer, **given)
    assert train(parts, tmp_path / "parts", create(name, options, seed=99)) == expected
    assert records(tmp_path / "parts") == records(tmp_path / "whole")
    assert same(parts, whole)


@every
def test_steps_and_passes_are_counted(make, tmp_path, name, options):
    made, schedule = make(epochs=2), create(name, options)
    forwards, steps = itertools.count(), itertools.count()

    def note(module, _):
        if module.training:
            next(forwards)

    made.model.register_forward_pre_hook(note)
    made.optimizer.register_step_post_hook(lambda *_: next(steps) and None)
    result = train(made, tmp_path, schedule)
    assert result["steps"] == 2 * 5, "batches, each a step of the learning rate's schedule"
    assert next(steps) == next(forwards) == result["num_backward"] == 2 * 5 * schedule.num_passes
    epochs = [record for record in records(tmp_path) if record["kind"] == "epoch"]
    assert all(0 < loss < 3 for record in epochs for loss in record["train_loss"].values())


def test_the_cosines_of_all_tasks_are_measured_whatever_the_group(make, tmp_path):
    found = {}
    for name, balancer in (
        ("joint", "equal"),
        ("alternating", "equal"),
        ("alternating", "pcgrad"),
        ("joint", "pcgrad"),
    ):
        train(make(balancer, monitor_every=2, epochs=1, dropout=0.0), tmp_path / f"{name}-{balancer}", create(name, {}))
        lines = [record for record in records(tmp_path / f"{name}-{balancer}") if record["kind"] == "conflict"]
        assert [record["step"] for record in lines] == [1, 3, 5]
        found[name, balancer] = [record["cosine"]["a|b"] for record in lines]
    assert found["alternating", "equal"] == found["alternating", "pcgrad"]
    assert len({round(cosines[0], 5) for cosines in found.values()}) == 1, "before the first step all are alike"


def test_a_task_in_no_group_has_a_loss_of_null(make, tmp_path):
    made = make(epochs=1)
    before = made.model.heads["a"].layers.weight.clone()
    train(made, tmp_path, create("fixed_groups", {"groups": [["b"]], "partial": True}))
    assert torch.equal(made.model.heads["a"].layers.weight, before)
    (record,) = [record for record in records(tmp_path) if record["kind"] == "epoch"]
    assert record["train_loss"]["a"] is None
    assert record["train_loss"]["b"] > 0


@every
def test_absent_labels(make, tmp_path, toy, name, options):
    data = toy(masked=True)
    result = train(make("pcgrad", data=data, monitor_every=1, batch_size=2), tmp_path, create(name, options))
    assert result["epochs"] == 3


class Served(balancers.LossBalancer):
    """Asks for everything, and writes down what it gets."""

    equation = source = provenance = scale = "test"
    needs = frozenset({"losses_after_step", "look_ahead"})

    def __init__(self, num_tasks=None, *, tasks=None):
        super().__init__(num_tasks, tasks)
        self.seen = []

    def look_ahead(self, ahead):
        self.seen.append(["ahead", {task: float(loss.detach()) for task, loss in ahead.train_losses().items()}])

    def objective(self, losses, *, present=None):
        if losses.requires_grad:
            self.seen.append(["step", losses.tolist()])
        return losses.sum()

    def after_step(self, losses):
        self.seen.append(["after", {task: None if loss is None else float(loss) for task, loss in losses.items()}])


def test_needs_are_served_for_every_group(make, tmp_path):
    made = make(epochs=1)
    made.balancer = Served(tasks=NAMES)
    train(made, tmp_path, create("alternating", {}))
    seen = [entry for entry in made.balancer.seen if entry[0] != "step" or len(entry[1]) == 1]
    assert len(seen) == 3 * 2 * 5
    for number in range(0, len(seen), 3):
        ahead, step, after = (content for _, content in seen[number : number + 3])
        task, other = NAMES if number % 2 == 0 else NAMES[::-1]
        assert step == [ahead[task]]
        assert after[other] is None
        assert after[task] != ahead[task]


def test_an_epoch_ends_with_the_outer_parameters(make, tmp_path):
    """Reptile with a trajectory longer than the run: one outer step, of a tenth of the way that plain steps go."""
    ours, plain = make(epochs=1, dropout=0.0), make(epochs=1, dropout=0.0)
    start = {name: value.clone() for name, value in plain.model.state_dict().items()}
    options = {"inner_steps": 1000, "reset_optimizer": False}
    train(ours, tmp_path / "ours", create("sequential_reptile", options))
    train(plain, tmp_path / "plain", create("sequential_reptile", {**options, "eta": 1.0}))
    moved = 0.0
    for name, value in ours.model.state_dict().items():
        if value.is_floating_point():
            end = plain.model.state_dict()[name]
            torch.testing.assert_close(value, start[name] + 0.1 * (end - start[name]), rtol=1e-5, atol=1e-6)
            moved += float((value - start[name]).abs().sum())
    assert moved > 0


def test_what_is_not_finite_is_named_with_its_step(make, tmp_path):
    made = make()
    with torch.no_grad():
        made.model.heads["b"].layers.weight.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match=r"epoch 1, step 1: .*'b'"):
        train(made, tmp_path, create("alternating", {}))
