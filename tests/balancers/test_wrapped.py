"""Wrapped: every n steps, a subset of the parameters, an average Gram matrix, another length."""

import math

import pytest
import torch
from torch import nn

import counterpoint as cp
from balancers.test_chain import gradients, network
from counterpoint import testing
from counterpoint.balancers import (
    MGDA,
    Chain,
    DualProj,
    Equal,
    ExcessMTL,
    GradDrop,
    NashMTL,
    PCGrad,
    Uncertainty,
    Wrapped,
)
from counterpoint.errors import OptionError, ShapeError

ROWS = torch.tensor([[1.0, 0, 2, -1], [-2, 1, 0, 3], [0.5, -1, 1, 0]], dtype=torch.float64)
A = ROWS @ ROWS.T
L = torch.tensor([0.7, 2.5, 0.04], dtype=torch.float64)


def flat(parameters):
    return torch.cat([p.grad.flatten() for p in parameters])


def clear(*modules):
    for module in modules:
        module.zero_grad()


def test_rescales():
    plain = MGDA(3).weights(A, L)
    for rescale, expected in {
        "native": plain,
        "sum1": plain / plain.sum(),
        "mean_m": 3 * plain / plain.sum(),
        "unit": plain / (plain @ ROWS).norm(),
        "like_sum": plain * ROWS.sum(dim=0).norm() / (plain @ ROWS).norm(),
    }.items():
        torch.testing.assert_close(Wrapped(MGDA(3), rescale=rescale).weights(A, L), expected, rtol=1e-12, atol=0)
    shortened = Wrapped(MGDA(3), max_norm=0.5).weights(A, L)
    assert math.isclose(float((shortened @ ROWS).norm()), 0.5, rel_tol=1e-12)
    torch.testing.assert_close(Wrapped(MGDA(3), max_norm=5.0).weights(A, L), plain)
    both = Wrapped(MGDA(3), rescale="like_sum", max_norm=2.0).weights(A, L)
    assert math.isclose(float((both @ ROWS).norm()), 2.0, rel_tol=1e-12)
    with pytest.raises(OptionError, match="sum to zero"):
        Wrapped(Opposite(2), rescale="sum1").weights(torch.eye(2), torch.ones(2))


class Opposite(cp.balancers.GramBalancer):
    """Weights 1 and -1."""

    equation = source = provenance = scale = "test"

    def solve(self, gram, losses, present):
        return torch.tensor([1.0, -1.0], dtype=gram.dtype)


def test_lengths_of_elementwise_methods():
    for rescale, length in (("unit", 1.0), ("like_sum", float(ROWS.sum(dim=0).norm()))):
        found = Wrapped(GradDrop(3), rescale=rescale).combine(ROWS, L)
        assert math.isclose(float(found.norm()), length, rel_tol=1e-12)
    x = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    Wrapped(GradDrop(3), max_norm=0.1).backward(ROWS @ x + L)
    assert math.isclose(float(x.grad.norm()), 0.1, rel_tol=1e-9)


def test_average_gram_is_that_of_adam_and_kept_per_pair():
    seen = []

    class Spy(cp.balancers.GramBalancer):
        equation = source = provenance = scale = "spy"

        def solve(self, gram, losses, present):
            seen.append(gram.clone())
            return torch.ones(len(present), dtype=gram.dtype)

    balancer = Wrapped(Spy(3), gram_decay=0.8)
    second, third = 3 * A, A[:2, :2] + torch.eye(2)
    balancer.weights(A, L)
    balancer.weights(second, L)
    balancer.weights(third, L[:2], present=(0, 1))
    balancer.weights(A, L)
    torch.testing.assert_close(seen[0], A)
    torch.testing.assert_close(seen[1], (0.8 * 0.2 * A + 0.2 * second) / (1 - 0.8**2))
    mean = 0.8 * (0.8 * 0.2 * A + 0.2 * second)[:2, :2] + 0.2 * third
    torch.testing.assert_close(seen[2], mean / (1 - 0.8**3))
    torch.testing.assert_close(seen[3][:2, :2], (0.8 * mean + 0.2 * A[:2, :2]) / (1 - 0.8**4))
    alone = 0.8 * (0.8 * 0.2 * A + 0.2 * second) + 0.2 * A  # of the third task, absent once
    torch.testing.assert_close(seen[3][2], alone[2] / (1 - 0.8**3))


def test_every_n_steps_reuses_the_weights_in_one_backward_pass():
    trunk, heads, losses = network()
    balancer = Wrapped(DualProj(3), every=3)
    passes, found = [], []
    for step in range(4):
        clear(trunk, *heads)
        with torch.no_grad():
            trunk[0].weight.add_(0.05 * step)
        report = balancer.backward(losses())
        passes.append(report.num_backward)
        found.append(report.weights)
        rows = gradients(losses(), trunk.parameters())
        by_hand = [sum(w * row[i] for w, row in zip(report.weights, rows, strict=True)) for i in range(4)]
        torch.testing.assert_close(flat(trunk.parameters()), torch.cat([g.flatten() for g in by_hand]))
        for head, loss in zip(heads, losses(), strict=True):  # raw: the gradient of its own loss
            torch.testing.assert_close(head.weight.grad, torch.autograd.grad(loss, head.weight)[0])
    assert passes == [3, 1, 1, 3]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    assert not torch.equal(found[0], found[3])


def test_in_between_the_plain_sum_also_for_elementwise_methods():
    trunk, heads, losses = network()
    balancer = Wrapped(GradDrop(3), every=2, between="sum")
    for step in range(4):
        clear(trunk, *heads)
        report = balancer.backward(losses())
        if step % 2:
            expected = torch.autograd.grad(sum(losses()), list(trunk.parameters()))
            torch.testing.assert_close(flat(trunk.parameters()), torch.cat([g.flatten() for g in expected]))
        assert report.num_backward == (1 if step % 2 else 3)


def test_a_task_that_comes_later_gets_weights_at_once():
    x = torch.ones(2, requires_grad=True)
    balancer = Wrapped(PCGrad(2), every=10)
    assert balancer.backward([x.square().sum(), None]).weights.tolist() == [1.0, 0.0]
    late = balancer.backward([x.square().sum(), -x.sum() * 2])
    assert late.num_backward == 2
    assert balancer.backward([x.square().sum(), -x.sum() * 2]).num_backward == 1


@pytest.mark.parametrize("task_gradients", [None, "raw", "weighted"])
def test_weights_from_the_last_shared_layer_apply_to_all(task_gradients):
    trunk, heads, losses = network()
    last = [trunk[2].weight, trunk[2].bias]
    rows = torch.stack([torch.cat([g.flatten() for g in row]) for row in gradients(losses(), last)])
    expected = NashMTL(3).weights(rows @ rows.T)
    balancer = Wrapped(NashMTL(3), measure="last", task_gradients=task_gradients)
    report = balancer.backward(losses())
    torch.testing.assert_close(report.weights, expected, rtol=1e-9, atol=0)
    torch.testing.assert_close(report.gram, rows @ rows.T)
    assert report.num_backward == 1
    assert not balancer.reports_gram
    whole = gradients(losses(), trunk.parameters())
    by_hand = torch.cat([sum(w * row[i] for w, row in zip(expected, whole, strict=True)).flatten() for i in range(4)])
    torch.testing.assert_close(flat(trunk.parameters()), by_hand)
    for head, loss, weight in zip(heads, losses(), expected, strict=True):
        own = torch.autograd.grad(loss, head.weight)[0]
        torch.testing.assert_close(head.weight.grad, own if task_gradients == "raw" else own * weight)


def test_any_parameters_can_be_measured_in_one_call():
    trunk, _, losses = network()
    first = [trunk[0].weight]
    rows = torch.stack([row[0].flatten() for row in gradients(losses(), first)])
    report = MGDA(3).backward(losses(), measure=first)
    torch.testing.assert_close(report.weights, MGDA(3).weights(rows @ rows.T), rtol=1e-9, atol=1e-12)
    with pytest.raises(OptionError, match="measure= is for methods that read the Gram matrix"):
        GradDrop(3).backward(losses(), measure="last")
    with pytest.raises(OptionError, match="must be one of shared, last, got 'lasst'"):
        MGDA(3).backward(losses(), measure="lasst")
    with pytest.raises(OptionError, match="measure= cannot be combined with max_norm"):
        Wrapped(MGDA(3), max_norm=1.0).backward(losses(), measure="last")


def test_nothing_is_written_if_a_gradient_is_not_finite_on_the_way():
    weight = torch.ones(2, requires_grad=True)
    head = torch.ones(2, requires_grad=True)
    bad = lambda: torch.sqrt((weight * head - 1).sum()) + 0 * weight.sum()  # noqa: E731
    for balancer in (Wrapped(PCGrad(2), every=2, between="sum"), Wrapped(PCGrad(2))):
        balancer.steps += 1
        with pytest.raises(cp.errors.NonFiniteError):
            balancer.backward([bad(), weight.square().sum()])
        assert weight.grad is None
        assert head.grad is None
        assert int(balancer.steps) == 1


def test_loss_balancers_every_n_steps_and_with_their_sum():
    balancer = Wrapped(Uncertainty(2, initial=[0.0, 1.0]), every=2, rescale="sum1")
    x = torch.ones(3, requires_grad=True)
    report = balancer.backward([x.square().sum(), x.sum()])
    assert math.isclose(float(report.weights.sum()), 1.0, rel_tol=1e-6)
    assert balancer.balancer.log_noise[0].grad is not None
    clear(balancer)
    again = balancer.backward([x.square().sum(), x.sum()])
    assert torch.equal(again.weights, report.weights)
    assert balancer.balancer.log_noise[0].grad is None  # its own step waits as well


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Wrapped(GradDrop(2), every=2), "use between='sum'.* GradDrop has no task weights"),
        (lambda: Wrapped(GradDrop(2), rescale="sum1"), "rescale='sum1' cannot be done: GradDrop has no task weights"),
        (lambda: Wrapped(GradDrop(2), gram_decay=0.5), "gram_decay cannot be done: GradDrop"),
        (lambda: Wrapped(Equal(2), max_norm=1.0), "max_norm cannot be done: Equal weights losses"),
        (lambda: Wrapped(Equal(2), measure="last"), "measure='last' cannot be done: Equal"),
        (lambda: Wrapped(PCGrad(2), measure="last", max_norm=1.0), "PCGrad would need the gradients of all shared"),
        (lambda: Wrapped(PCGrad(2), every=0), "every must be in"),
        (lambda: Wrapped(PCGrad(2), gram_decay=1.0), r"gram_decay must be in \[0, 1\), got 1.0"),
        (lambda: Wrapped(3), "is made of balancers, got int"),
    ],
)
def test_what_means_nothing_is_refused(build, message):
    with pytest.raises(OptionError, match=message):
        build()


@pytest.mark.parametrize(
    "options",
    [
        {"every": 3},
        {"every": 2, "between": "sum", "task_gradients": "weighted"},
        {"gram_decay": 0.9, "rescale": "unit"},
        {"rescale": "like_sum", "max_norm": 1.0},
        {"rescale": "mean_m"},
    ],
)
def test_wrapped_keeps_the_contract_of_a_balancer(options):
    testing.check_balancer(lambda k: Wrapped(MGDA(k), **options), num_tasks=[1, 2, 3])


def test_wrapped_resumes_between_two_decisions():
    first, second = Wrapped(NashMTL(3), every=3), Wrapped(NashMTL(3), every=3)
    first.weights(A, L)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.weights(2 * A, L), second.weights(5 * A, L))  # both reuse
    assert nn.Module.state_dict(second)["steps"] == 2


def test_heads_get_the_same_factor_between_decisions_as_in_them():
    trunk, heads, losses = network()
    balancer = Wrapped(Chain(Uncertainty(3, initial=[0.3, -0.7, 1.1]), PCGrad(3)), every=3)
    found = []
    for _ in range(2):
        clear(trunk, *heads, balancer)
        balancer.backward(losses())
        found.append([head.weight.grad.clone() for head in heads])
    for first, second in zip(*found, strict=True):
        torch.testing.assert_close(first, second)  # half of exp(-s) each time, and not 1 in between


@pytest.mark.parametrize("task_gradients", [None, "raw"])
def test_heads_of_elementwise_methods_with_weights(task_gradients):
    trunk, heads, losses = network()
    balancer = Wrapped(ExcessMTL(3, eta=0.5), rescale="unit", task_gradients=task_gradients)
    for _ in range(3):
        clear(trunk, *heads)
        report = balancer.backward(losses())
    assert math.isclose(float(flat(trunk.parameters()).norm()), 1.0, rel_tol=1e-9)
    for head, loss, weight in zip(heads, losses(), report.weights, strict=True):
        own = torch.autograd.grad(loss, head.weight)[0]
        torch.testing.assert_close(head.weight.grad, own if task_gradients == "raw" else own * weight)


def test_pure_calls_without_losses_where_nothing_reads_them():
    assert torch.equal(Wrapped(MGDA(3)).weights(A), Wrapped(MGDA(3)).weights(A, L))
    found = Wrapped(GradDrop(3), max_norm=0.1).combine(ROWS)
    assert math.isclose(float(found.norm()), 0.1, rel_tol=1e-9)
    waiting = Wrapped(MGDA(3), every=2)
    assert torch.equal(waiting.weights(A), waiting.weights(5 * A))
    with pytest.raises(ShapeError, match=r"reads the losses; call weights\(None, losses\)"):
        Wrapped(Uncertainty(2)).weights(None)
