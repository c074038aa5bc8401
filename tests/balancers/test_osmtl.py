"""OSMTL: which labels each head learns from."""

import pytest
import torch
from torch import nn

from counterpoint import balancers, losses, metrics
from counterpoint.architectures import HardSharing
from counterpoint.balancers import OSMTL, Chain, PCGrad
from counterpoint.errors import OptionError, ShapeError
from counterpoint.tasks import Task
from counterpoint.training.step import conflict_gram, forward, task_losses

CROSS = torch.tensor([[0.2, 1.0, 0.5], [0.7, 0.1, 0.9], [0.4, 0.3, 0.6]], dtype=torch.float64)


def weights(balancer, cross=CROSS, present=None):
    """Return mu: the derivative of the objective by each loss."""
    leaf = cross.clone().requires_grad_()
    kept = range(len(cross)) if present is None else present
    given = [leaf[task] if task in kept else None for task in range(len(cross))]
    found = [loss for loss in balancer.scalars(given) if loss is not None]
    return torch.autograd.grad(balancer.objective(torch.stack(found), present=tuple(kept)), leaf)[0]


def slow_mu(eta, alpha):
    count = len(eta)
    return [[alpha * (k == m) + (1 - alpha) * eta[k][m] for m in range(count)] for k in range(count)]


def test_online_steps_use_the_relation_of_before_and_then_move_it():
    balancer = OSMTL(3, temperature=0.5, alpha=0.6)
    eta = torch.full((3, 3), 1 / 3, dtype=torch.float64)
    for step in range(4):
        cross = CROSS * (1 + step)
        expected = torch.tensor(slow_mu(eta.tolist(), 0.6), dtype=torch.float64)
        torch.testing.assert_close(weights(balancer, cross), expected, rtol=1e-12, atol=0)
        eta = eta * torch.exp(-cross / 0.5)
        eta = eta / eta.sum(dim=1, keepdim=True)
        torch.testing.assert_close(balancer.log_eta.exp(), eta, rtol=1e-12, atol=1e-300)


def test_batch_is_the_closed_form_and_has_no_memory():
    balancer = OSMTL(3, update="batch", temperature=0.5, alpha=0.0)
    first = weights(balancer)
    expected = torch.exp(-CROSS / 0.5)
    torch.testing.assert_close(first, expected / expected.sum(dim=1, keepdim=True), rtol=1e-12, atol=0)
    weights(balancer, 3 * CROSS)
    assert torch.equal(weights(balancer), first)


def test_extremes_of_the_temperature_and_of_alpha():
    torch.testing.assert_close(weights(OSMTL(3, alpha=1.0)), torch.eye(3, dtype=torch.float64))
    cold = weights(OSMTL(3, update="batch", temperature=1e-3, alpha=0.0))
    torch.testing.assert_close(cold, torch.eye(3, dtype=torch.float64)[[0, 1, 1]], rtol=0, atol=1e-12)
    hot = weights(OSMTL(3, update="batch", temperature=1e12, alpha=0.0))
    torch.testing.assert_close(hot, torch.full((3, 3), 1 / 3, dtype=torch.float64), rtol=1e-9, atol=0)


def test_without_the_own_task_in_the_relation():
    balancer = OSMTL(3, include_self=False, alpha=0.25)
    for _ in range(3):
        found = weights(balancer)
        torch.testing.assert_close(found.diagonal(), torch.full((3,), 0.25, dtype=torch.float64))
        torch.testing.assert_close(found.sum(dim=1), torch.ones(3, dtype=torch.float64))
    assert torch.equal(weights(balancer, present=(1,)), torch.diag(torch.tensor([0.0, 1.0, 0.0])).double())


def test_an_absent_task_moves_no_mass_and_its_entries_are_not_read():
    balancer = OSMTL(3, temperature=0.5, alpha=0.4)
    weights(balancer)
    before = balancer.log_eta.exp()
    poisoned = CROSS.clone()
    poisoned[:, 1] = float("nan")
    found = weights(balancer, poisoned, present=(0, 2))
    assert torch.equal(found[:, 1], torch.zeros(3, dtype=torch.float64))
    torch.testing.assert_close(found[[0, 2]].sum(dim=1), torch.ones(2, dtype=torch.float64))
    after = balancer.log_eta.exp()
    assert torch.equal(after[1], before[1])
    assert torch.equal(after[:, 1], before[:, 1])
    torch.testing.assert_close(after.sum(dim=1), torch.ones(3, dtype=torch.float64))
    assert not torch.equal(after[0], before[0])


def test_wrong_losses_are_refused_with_the_cure():
    with pytest.raises(ShapeError, match=r"the loss of task '1' must be \(2,\), .* got \(3,\)"):
        OSMTL(2).scalars([torch.ones(2), torch.ones(3)])
    with pytest.raises(ShapeError, match=r"got \(\)"):
        OSMTL(2).scalars([torch.ones(()), torch.ones(())])
    with pytest.raises(OptionError, match="OSMTL reads more than one loss per task"):
        Chain(OSMTL(2), PCGrad(2))


def make(widths=(3, 3)):
    torch.manual_seed(0)
    accuracy = {"accuracy": metrics.accuracy(3)}
    tasks = [Task(name, losses.cross_entropy, accuracy, width) for name, width in zip("ab", widths, strict=True)]
    model = HardSharing(nn.Linear(4, 6), {"a": nn.Linear(6, widths[0]), "b": nn.Linear(6, widths[1])})
    batch = {"image": torch.randn(8, 4), "a": torch.randint(3, (8,)), "b": torch.randint(3, (8,))}
    return model, tasks, batch


def test_the_loop_gives_each_prediction_against_all_labels():
    model, tasks, batch = make()
    found, output = forward(model, tasks, batch, "cross")
    for k, name in enumerate("ab"):
        for m, other in enumerate("ab"):
            expected = nn.functional.cross_entropy(output.preds[name], batch[other])
            torch.testing.assert_close(found[name][m], expected)
        assert found[name].shape == (2,), k
    own = task_losses(output, tasks, batch)
    torch.testing.assert_close(conflict_gram(found, "ab", output, "cross"), conflict_gram(own, "ab", output))
    report = OSMTL(tasks=["a", "b"], alpha=1.0).backward(found)
    torch.testing.assert_close(report.losses, torch.stack([loss.detach() for loss in own.values()]))
    del batch["b"]
    masked = task_losses(model(batch["image"]), tasks, batch, "cross")
    assert masked["b"] is None
    assert float(masked["a"][1].detach()) == 0.0


def test_tasks_without_a_common_label_space_are_refused():
    model, tasks, batch = make(widths=(3, 5))
    with pytest.raises(OptionError, match=r"no common label space: outputs \{'a': 3, 'b': 5\}"):
        forward(model, tasks, batch, balancers.OSMTL.loss_form)
