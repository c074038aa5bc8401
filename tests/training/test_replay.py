"""Repeating a forward pass without a trace, and what the loop serves with it."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from counterpoint import balancers
from counterpoint.errors import OptionError
from counterpoint.training import Replay, fit
from counterpoint.training.run_folder import RunFolder
from counterpoint.training.step import sharing, transform_heads


def test_same_random_numbers_and_no_trace():
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5))
    x = torch.randn(16, 4)
    replay = Replay(net)
    first = net(x), random.random(), np.random.rand()
    buffers = [buffer.clone() for buffer in net.buffers()]
    torch.randn(3)
    before = torch.get_rng_state()
    with replay():
        again = net(x), random.random(), np.random.rand()
    assert torch.equal(first[0], again[0])
    assert first[1:] == again[1:]
    assert torch.equal(torch.get_rng_state(), before)
    for buffer, kept in zip(net.buffers(), buffers, strict=True):
        assert torch.equal(buffer, kept)
    with pytest.raises(RuntimeError, match="shape"), replay():
        net(x.T)
    assert torch.equal(net[1].running_mean, buffers[0])


class Watching(balancers.LossBalancer):
    """Asks for everything, and writes down what it gets."""

    equation = source = provenance = scale = "test"
    needs = frozenset({"losses_after_step", "look_ahead"})

    def __init__(self, num_tasks=None, *, tasks=None):
        super().__init__(num_tasks, tasks)
        self.seen = []

    def look_ahead(self, ahead):
        rates = [group["lr"] for group in ahead.optimizer.param_groups]
        train = {task: float(loss.detach()) for task, loss in ahead.train_losses().items()}
        other = {task: float(loss.detach()) for task, loss in ahead.validation_losses().items()}
        again = {task: float(loss.detach()) for task, loss in ahead.train_losses().items()}
        self.seen.append({"rates": rates, "ahead": train, "again": again, "other": other})

    def objective(self, losses, *, present=None):
        if losses.requires_grad and self.seen:
            self.seen[-1]["step"] = losses.tolist()
        return losses.sum()

    def after_step(self, losses):
        self.seen[-1]["after"] = {task: float(loss) for task, loss in losses.items()}
        assert not any(loss.requires_grad for loss in losses.values())


def test_the_loop_serves_losses_after_the_step_and_a_look_ahead(make, tmp_path):
    watching = Watching(tasks=["a", "b"])
    run = make("equal", epochs=1)
    with RunFolder(tmp_path / "w", {}) as folder:
        result = fit(run.model, run.data, watching, run.optimizer, folder, run.options, fabric=run.fabric)
    plain = make("equal", epochs=1)
    with RunFolder(tmp_path / "p", {}) as folder:
        expected = fit(
            plain.model, plain.data, plain.balancer, plain.optimizer, folder, plain.options, fabric=plain.fabric
        )
    # the network has dropout: had anything drawn a random number more, training would have gone another way
    assert result["test"] == expected["test"]
    for mine, theirs in zip(run.model.state_dict().values(), plain.model.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)
    assert len(watching.seen) == result["steps"]
    for seen in watching.seen:
        assert seen["ahead"] == seen["again"] == dict(zip(("a", "b"), seen["step"], strict=True))
        assert seen["other"] != seen["ahead"]  # another batch
        assert seen["after"] != seen["ahead"]  # after the step
        assert sum(seen["after"].values()) < sum(seen["ahead"].values()) + 0.5
        assert seen["rates"] == [0.05]


def test_parameters_are_shared_only_where_the_model_says_so(make):
    run = make("equal")
    found = list(sharing(run.model, run.balancer))
    assert {id(p) for p in found} == {id(p) for p in run.model.backbone.parameters()}
    with pytest.raises(OptionError, match="Linear does not say which those are; derive it from"):
        list(sharing(nn.Linear(1, 1), run.balancer))


def test_heads_read_what_the_balancer_makes_of_the_features(make):
    class Doubling(Watching):
        def transform(self, features, task):
            return features * {"a": 2.0, "b": -1.0}[task]

    run = make("equal", dropout=0.0)
    image = torch.randn(3, 1, 4, 4)
    features = run.model(image).features[0]
    transform_heads(run.model, Doubling(tasks=["a", "b"]), ["a", "b"])
    found = run.model(image).preds
    head = run.model.heads
    for task, factor in (("a", 2.0), ("b", -1.0)):
        hooks, head[task]._forward_pre_hooks = head[task]._forward_pre_hooks, {}
        torch.testing.assert_close(found[task], head[task](features * factor))
        head[task]._forward_pre_hooks = hooks
    with pytest.raises(OptionError, match="Linear has no ModuleDict 'heads' with one for each of"):
        transform_heads(nn.Linear(1, 1), Doubling(tasks=["a", "b"]), ["a", "b"])


def test_a_second_balancer_takes_the_place_of_the_first(make):
    class Scaling(Watching):
        factor = 2.0

        def transform(self, features, task):
            return features * self.factor

    run = make("equal", dropout=0.0)
    image = torch.randn(3, 1, 4, 4)
    transform_heads(run.model, Scaling(tasks=["a", "b"]), ["a", "b"])
    once = run.model(image).preds["a"]
    transform_heads(run.model, Scaling(tasks=["a", "b"]), ["a", "b"])
    assert torch.equal(run.model(image).preds["a"], once)  # not four times the features
