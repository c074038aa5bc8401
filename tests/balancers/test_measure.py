"""Weights from the gradients of some parameters, applied to all; GradNorm, which does so unless told otherwise."""

import copy

import pytest
import torch
from torch import nn

from counterpoint.balancers import MGDA, Chain, GradNorm, GramBalancer, NashMTL, PCGrad, Uncertainty, Wrapped
from counterpoint.errors import GraphError, NonFiniteError, OptionError

X = torch.randn(6, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


class Net(nn.Module):
    def __init__(self, num_tasks=3):
        super().__init__()
        self.one, self.two = nn.Linear(3, 5), nn.Linear(5, 4)
        self.heads = nn.ModuleList([nn.Linear(4, 2) for _ in range(num_tasks)])
        self.double()

    def forward(self, x=X):
        h = torch.tanh(self.two(torch.tanh(self.one(x))))
        return h, [((head(h) - k) ** 2).mean() * 10.0**k for k, head in enumerate(self.heads)]


def expected(net, leaves, balancer, *, weighted):
    """The weights from the Gram matrix of the leaves, and the gradients that they give, by plain autograd."""
    _, losses = net()
    flat = [torch.autograd.grad(loss, leaves, retain_graph=True) for loss in losses]
    rows = torch.stack([torch.cat([g.flatten() for g in found]) for found in flat])
    weights = balancer.weights(rows @ rows.T, torch.stack(losses).detach())
    total = sum(w * loss for w, loss in zip(weights.tolist(), losses, strict=True))
    shared = [*net.one.parameters(), *net.two.parameters()]
    own = list(net.heads.parameters())
    found = torch.autograd.grad(total, shared, retain_graph=True)
    return weights, [*found, *torch.autograd.grad(total if weighted else sum(losses), own)]


@pytest.mark.parametrize("kind", [MGDA, NashMTL, GradNorm, PCGrad])
@pytest.mark.parametrize("measure", ["last", "list"])
@pytest.mark.parametrize("wrap", [False, True])
def test_weights_of_some_parameters_are_applied_to_all(kind, measure, wrap):
    net = Net()
    leaves = list((net.two if measure == "last" else net.one).parameters())
    balancer, other = kind(3), kind(3)
    if balancer.generator is not None:
        other.generator.set_state(balancer.generator.get_state())
    for _ in range(3):
        weights, gradients = expected(net, leaves, other, weighted=balancer.task_gradients == "weighted")
        caller = Wrapped(balancer) if wrap else balancer
        report = caller.backward(net()[1], measure=leaves if measure == "list" else "last")
        torch.testing.assert_close(report.weights, weights, rtol=1e-9, atol=1e-12)
        assert report.num_backward == 1
        for parameter, gradient in zip(net.parameters(), gradients, strict=True):
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-9, atol=1e-12)
            parameter.grad = None


def test_measure_of_all_is_the_usual_way():
    net = Net()
    first, second = MGDA(3).backward(net()[1], measure="shared"), MGDA(3).backward(net()[1])
    assert torch.equal(first.gram, second.gram)
    assert first.num_backward == 3


def test_a_chain_measures_as_its_second_part_does():
    net = Net()
    chained = Chain(Uncertainty(3, initial=-0.5), GradNorm(3))
    report = chained.backward(net()[1])
    assert report.num_backward == 1
    alone = GradNorm(3).backward(net()[1])
    factor = report.weights / alone.weights
    torch.testing.assert_close(factor, factor[:1].expand(3))


class Fails(GramBalancer):
    key = "fails"

    def solve(self, gram, losses, present):
        raise OptionError("Fails: no")


@pytest.mark.parametrize(
    ("balancer", "options", "error", "message"),
    [
        (Fails(3), {"measure": "last"}, OptionError, "no"),
        (GradNorm(3), {"measure": "first"}, OptionError, "measure must be one of"),
        (GradNorm(3), {"measure": []}, OptionError, "empty"),
        (GradNorm(3), {"measure": [torch.ones(2, requires_grad=True)]}, GraphError, "no loss reaches"),
        (Uncertainty(3), {"measure": "last"}, OptionError, "methods that read the Gram matrix"),
    ],
)
def test_nothing_is_written_before_the_checks_pass(balancer, options, error, message):
    net = Net()
    before = copy.deepcopy(balancer.state_dict())
    with pytest.raises(error, match=message):
        balancer.backward(net()[1], **options)
    assert all(p.grad is None for p in net.parameters())
    for name, value in balancer.state_dict().items():
        assert not isinstance(value, torch.Tensor) or torch.equal(value.nan_to_num(), before[name].nan_to_num())


@pytest.mark.parametrize("where", ["last", "head", "below"])
def test_a_gradient_that_is_not_finite(where):
    net = Net()
    h, losses = net()
    bad = {"last": h, "head": net.heads[1](h.detach()), "below": net.one.weight}[where]
    losses[1] = losses[1] + (bad * 0).sum().sqrt()
    balancer = GradNorm(3)
    with pytest.raises(NonFiniteError, match="'1'"):
        balancer.backward(losses)
    assert all(p.grad is None for p in net.parameters())
    assert bool(balancer.reference.isnan().all())  # the step did not take place


def test_a_scaler_changes_nothing_or_skips():
    net, other = Net().float(), Net()
    other.load_state_dict(net.state_dict())
    other.float()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    GradNorm(3).backward(net(X.float())[1], scaler=scaler)
    GradNorm(3).backward(other(X.float())[1])
    for one, two in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad * 2.0**10)
    balancer = GradNorm(3)
    report = balancer.backward(net(X.float())[1], scaler=torch.amp.GradScaler("cpu", init_scale=1e38))
    assert report.skipped
    assert report.weights is None
    assert bool(balancer.reference.isnan().all())


# --- GradNorm ---------------------------------------------------------------------------------------------------------


def test_gradnorm_at_the_level_of_features():
    net = Net()
    h, losses = net()
    with pytest.raises(OptionError, match="measure='shared'"):
        GradNorm(3).backward(losses, features=h, level="features")
    balancer = GradNorm(3, measure="shared", update="sgd", learning_rate=1e-3)
    for _ in range(2):
        h, losses = net()
        lengths = torch.stack([torch.autograd.grad(loss, h, retain_graph=True)[0].norm() for loss in losses])
        before = balancer.task_weights.clone()
        report = balancer.backward(losses, features=h, level="features")
        torch.testing.assert_close(report.weights, before)
        torch.testing.assert_close(report.gram.diagonal().sqrt(), lengths)
    assert not torch.equal(balancer.task_weights, before)


@pytest.mark.parametrize("update", ["adam", "sgd"])
def test_gradnorm_equalizes_frozen_gradients(update):
    """With alpha = 0 and gradients that do not change, all weighted lengths become equal."""
    lengths = torch.tensor([1.0, 4.0, 0.5], dtype=torch.float64)
    balancer = GradNorm(3, alpha=0.0, update=update, learning_rate=5e-3)
    for _ in range(1500):
        weights = balancer.weights(torch.diag(lengths**2), torch.ones(3))
    scaled = weights * lengths
    assert float(scaled.max() / scaled.min()) < 1.1  # steps of constant length swing around the point
    assert float(balancer.task_weights.sum()) == pytest.approx(3.0, rel=1e-12)


def test_gradnorm_gives_more_to_a_task_that_trains_more_slowly():
    balancer = GradNorm(2, update="sgd")
    gram = torch.eye(2, dtype=torch.float64)
    balancer.weights(gram, torch.tensor([1.0, 5.0]))
    assert balancer.task_weights.tolist() == [1.0, 1.0]  # all lengths are at their targets
    balancer.weights(gram, torch.tensor([1.0, 1.0]))  # the second fell to a fifth
    assert balancer.task_weights.tolist() == pytest.approx([1.025, 0.975])


def test_gradnorm_adam_is_adam():
    generator = torch.Generator().manual_seed(4)
    balancer = GradNorm(2, alpha=0.5, learning_rate=0.01)
    theirs = torch.ones(2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([theirs], lr=0.01, eps=0.0)
    first = None
    for _ in range(30):
        lengths = 0.1 + torch.rand(2, generator=generator, dtype=torch.float64)
        losses = 0.1 + torch.rand(2, generator=generator, dtype=torch.float64)
        first = losses if first is None else first
        found = balancer.weights(torch.diag(lengths**2), losses)
        torch.testing.assert_close(found, theirs.detach(), rtol=1e-10, atol=0)
        ratios = losses / first
        target = (theirs * lengths).mean() * (ratios / ratios.mean()) ** 0.5
        optimizer.zero_grad()
        (theirs * lengths - target.detach()).abs().sum().backward()
        optimizer.step()
        with torch.no_grad():
            theirs.mul_(2 / theirs.sum())


def test_gradnorm_leaves_absent_tasks_and_zero_gradients_as_they_are():
    balancer = GradNorm(3, update="sgd")
    losses = torch.ones(2, dtype=torch.float64)
    gram = torch.diag(torch.tensor([1.0, 9.0], dtype=torch.float64))
    balancer.weights(gram, losses, present=[0, 2])
    assert float(balancer.task_weights[1]) == 1.0
    assert bool(balancer.reference[1].isnan())
    assert float(balancer.task_weights[[0, 2]].sum()) == pytest.approx(2.0, rel=1e-12)
    before = balancer.task_weights.clone()
    found = balancer.weights(torch.diag(torch.tensor([1.0, 0.0, 9.0], dtype=torch.float64)), torch.ones(3))
    assert torch.equal(found, before)  # not 0: a head that starts at zero must be able to leave it
    assert float(balancer.task_weights[1]) == 1.0
    assert not torch.equal(balancer.task_weights, before)


def test_gradnorm_trains_a_head_that_starts_at_zero():
    net = Net()
    nn.init.zeros_(net.heads[2].weight)
    GradNorm(3).backward(net()[1])
    assert float(net.heads[2].weight.grad.norm()) > 0


def test_gradnorm_edges():
    gram = torch.eye(2, dtype=torch.float64)
    for losses in (None, torch.tensor([1.0, -1.0])):
        with pytest.raises(OptionError, match="losses of at least 0"):
            GradNorm(2).weights(gram, losses)
    balancer = GradNorm(2)
    for _ in range(3):
        assert bool(torch.isfinite(balancer.weights(gram, torch.zeros(2))).all())
    given = GradNorm(tasks=["a", "b"], initial_losses={"b": 2.0, "a": 1.0})
    assert given.reference.tolist() == [1.0, 2.0]
    x = torch.ones(2, requires_grad=True)
    assert GradNorm(1).backward([x.sum()]).weights.tolist() == [1.0]  # one task shares nothing
    assert x.grad.tolist() == [1.0, 1.0]
