"""What is peculiar to FAMO: the update of the logits after a step, and which tasks move."""

import math

import pytest
import torch
from torch import nn

from counterpoint.balancers import FAMO, famo
from counterpoint.errors import NonFiniteError, OptionError, ShapeError

BEFORE = torch.tensor([0.7, 2.5, 0.04], dtype=torch.float64)
AFTER = torch.tensor([0.56, 2.375, 0.044], dtype=torch.float64)


def by_autograd(logits, before, after):
    """The released code's way: the derivative of softmax(logits) against the falls of the logarithms."""
    leaf = logits.clone().requires_grad_()
    fall = (before + 1e-8).log() - (after + 1e-8).log()
    return torch.autograd.grad(leaf.softmax(0), leaf, grad_outputs=fall)[0]


@pytest.mark.parametrize("update", ["adam", "sgd"])
def test_logits_follow_torchs_optimizer(update):
    balancer = FAMO(3, update=update, decay=0.1, learning_rate=0.3)
    leaf = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    kind = torch.optim.Adam if update == "adam" else torch.optim.SGD
    optimizer = kind([leaf], lr=0.3, weight_decay=0.1)
    for step in range(5):
        before, after = BEFORE * (1 + step), AFTER * (1 + step * step)
        balancer.weights(None, before)
        balancer.after_step(after)
        leaf.grad = by_autograd(leaf.detach(), before, after)
        optimizer.step()
        torch.testing.assert_close(balancer.logits, leaf.detach(), rtol=1e-12, atol=1e-15)


def test_sgd_takes_weight_from_the_task_that_improved_more():
    balancer = FAMO(2, update="sgd", decay=0.0)
    balancer.weights(None, torch.tensor([1.0, 1.0]))
    balancer.after_step([torch.tensor(0.5), torch.tensor(1.0)])
    assert balancer.logits.tolist() == pytest.approx([-0.025 * math.log(2) / 4, 0.025 * math.log(2) / 4], rel=1e-6)
    assert float(balancer.weights(None, torch.ones(2))[0]) < 0.5


def test_losses_are_read_above_their_minimum():
    balancer = FAMO(tasks=["a", "b"], minimum={"a": -1.0, "b": 0.5})
    found = balancer.weights(None, torch.tensor([1.0, 1.5], dtype=torch.float64))
    assert found.tolist() == pytest.approx([1 / 3, 2 / 3])
    with pytest.raises(OptionError, match=r"loss of task 'b' is 0.4.* below its minimum 0.5"):
        balancer.weights(None, torch.tensor([1.0, 0.4]))
    with pytest.raises(OptionError, match=r"loss of task 'a' after the step is -1.5"):
        balancer.after_step({"a": torch.tensor(-1.5), "b": torch.tensor(1.0)})
    assert balancer.logits.tolist() == [0.0, 0.0]


def test_only_tasks_of_the_last_step_move_and_only_once():
    balancer = FAMO(3)
    balancer.after_step(list(AFTER))  # no step was taken
    assert balancer.logits.tolist() == [0.0] * 3
    balancer.weights(None, BEFORE)
    balancer.weights(None, BEFORE[:2], present=[0, 1])
    balancer.after_step(list(AFTER))
    moved = balancer.logits.clone()
    assert float(moved[2]) == 0.0
    assert float(moved[:2].abs().min()) > 0
    assert balancer.count.tolist() == [1, 1, 0]
    balancer.after_step(list(AFTER))
    assert torch.equal(balancer.logits, moved)
    balancer.weights(None, BEFORE)
    balancer.after_step([AFTER[0], None, AFTER[2]])
    assert balancer.count.tolist() == [2, 1, 1]


@pytest.mark.parametrize(
    ("losses", "error", "message"),
    [
        ([torch.tensor(float("nan")), None, None], NonFiniteError, "loss of task '0' is not finite"),
        ([torch.ones(2), None, None], ShapeError, "real scalar"),
        ([1.0, None, None], ShapeError, "float"),
        ([None], ShapeError, "3"),
    ],
)
def test_bad_losses_after_a_step(losses, error, message):
    balancer = FAMO(3)
    balancer.weights(None, BEFORE)
    with pytest.raises(error, match=message):
        balancer.after_step(losses)
    assert balancer.count.tolist() == [0, 0, 0]


def test_a_loop_that_never_answers_is_warned_of(monkeypatch):
    monkeypatch.setattr(famo, "_PATIENCE", 3)
    balancer = FAMO(3)
    for _ in range(3):
        balancer.weights(None, BEFORE)
    with pytest.warns(UserWarning, match=r"call after_step\(losses\)"):
        balancer.weights(None, BEFORE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"minimum": [0.0]}, "2 values"),
        ({"minimum": float("-inf")}, "minimum"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"decay": -1.0}, "decay"),
        ({"update": "adamw"}, "did you mean adam"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(OptionError, match=message):
        FAMO(2, **options)
