"""What is peculiar to Auto-Lambda: the step that is tried, the finite difference, and that nothing stays changed."""

import copy

import pytest
import torch
from torch import nn

from counterpoint.balancers import AutoLambda, LookAhead
from counterpoint.balancers._virtual import virtual_step
from counterpoint.balancers.auto_lambda import directional_derivatives
from counterpoint.errors import NonFiniteError, OptionError, UnknownNameError

GENERATOR = torch.Generator().manual_seed(0)
CURVES = torch.rand(2, 3, generator=GENERATOR, dtype=torch.float64) + 0.2
CENTERS = torch.randn(2, 3, generator=GENERATOR, dtype=torch.float64)


class Toy:
    """Two losses in three coordinates, with a cubic term so that the finite difference has an error."""

    def __init__(self, optimizer=lambda x: torch.optim.SGD([x], lr=0.1), cubic=0.0):
        start = torch.tensor([0.3, -0.7, 1.1], dtype=torch.float64)
        self.x = nn.Parameter(start)
        self.cubic = cubic
        self.optimizer = optimizer(self.x)

    def losses(self, shift=0.0):
        away = self.x - CENTERS - shift
        return list((CURVES * away**2 / 2 + self.cubic * away**3).sum(dim=1))

    def gradients(self, shift=0.0):
        return [torch.autograd.grad(loss, self.x, retain_graph=True)[0] for loss in self.losses(shift)]

    def ahead(self):
        return LookAhead(self.losses, lambda: self.losses(0.2), [self.x], self.optimizer)


@pytest.mark.parametrize(("cubic", "low", "high"), [(0.0, 0.0, 1e-12), (0.5, 1e-9, 1e-4)])
def test_finite_differences_are_products_with_the_gradient(cubic, low, high):
    """Exact for quadratics; else the error is e^2 |u|^3 times the third derivative / 6."""
    toy = Toy(cubic=cubic)
    u = torch.tensor([2.0, -1.0, 0.5], dtype=torch.float64)
    with torch.no_grad():
        found = directional_derivatives(lambda: torch.stack(toy.losses()), [toy.x], [u])
    expected = torch.stack(toy.gradients()) @ u
    error = (found - expected).abs()
    assert low <= float(error.max()) <= high
    step = 0.01 / float(u.norm())
    torch.testing.assert_close(found - expected, (cubic * step**2 * u**3).sum().expand(2), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize(
    "make",
    [
        lambda x: torch.optim.SGD([x], lr=0.1),
        lambda x: torch.optim.SGD([x], lr=0.1, momentum=0.9, weight_decay=0.3),
        lambda x: torch.optim.SGD([x], lr=0.1, momentum=0.9, dampening=0.4),
        lambda x: torch.optim.SGD([x], lr=0.1, momentum=0.9, weight_decay=0.3, nesterov=True),
        lambda x: torch.optim.SGD([x], lr=0.1, momentum=0.9, maximize=True),
    ],
)
def test_the_tried_step_is_the_optimizers(make):
    toy = Toy(make)
    for _ in range(3):  # the first has no momentum yet
        toy.x.grad = sum(toy.gradients())
        before, gradient = toy.x.detach().clone(), toy.x.grad.clone()
        move, factor = virtual_step(toy.optimizer, toy.x, gradient)
        other, _ = virtual_step(toy.optimizer, toy.x, gradient + 1)
        toy.optimizer.step()
        torch.testing.assert_close(before + move, toy.x.detach(), rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(other - move, torch.full_like(move, -factor))


def test_other_optimizers_are_tried_as_a_plain_step():
    toy = Toy(lambda x: torch.optim.Adam([x], lr=0.2))
    assert virtual_step(toy.optimizer, toy.x, torch.ones(3).double())[0].tolist() == [-0.2] * 3
    assert virtual_step(toy.optimizer, nn.Parameter(torch.ones(3)), torch.ones(3))[1] == 0.0


@pytest.mark.parametrize("parametrization", ["free", "softmax"])
@pytest.mark.parametrize("primary", [None, [1]])
def test_the_gradient_is_the_derivative_of_the_losses_after_the_tried_step(parametrization, primary):
    toy = Toy(lambda x: torch.optim.SGD([x], lr=0.1, momentum=0.9, weight_decay=0.1, nesterov=True))
    toy.x.grad = sum(toy.gradients())
    toy.optimizer.step()
    balancer = AutoLambda(2, parametrization=parametrization, primary=primary)
    learned = balancer.learned.clone().requires_grad_()
    weights = learned.softmax(0) if parametrization == "softmax" else learned
    first, second = toy.gradients()
    group, buffer = toy.optimizer.param_groups[0], toy.optimizer.state[toy.x]["momentum_buffer"]
    update = weights[0] * first + weights[1] * second + group["weight_decay"] * toy.x.detach()
    moved = toy.x.detach() - 0.1 * (update + 0.9 * (0.9 * buffer + update))
    there = [(curve * (moved - center - 0.2) ** 2 / 2).sum() for curve, center in zip(CURVES, CENTERS, strict=True)]
    (expected,) = torch.autograd.grad(sum(there) if primary is None else there[1], learned)
    balancer.look_ahead(toy.ahead())
    torch.testing.assert_close(balancer.first, 0.1 * expected, rtol=1e-9, atol=1e-14)  # Adam's first moment
    rate = 1e-3 if parametrization == "softmax" else 1e-4
    torch.testing.assert_close(balancer.learned, learned.detach() - rate * expected.sign(), rtol=0, atol=1e-8)


def test_parts_with_different_learning_rates():
    toy = Toy()
    y = nn.Parameter(torch.tensor([0.5, -0.2], dtype=torch.float64))
    optimizer = torch.optim.SGD([{"params": [toy.x], "lr": 0.1}, {"params": [y], "lr": 0.02}])

    def losses(shift=0.0):
        return [loss + (k + 1) * (y - shift).square().sum() for k, loss in enumerate(toy.losses(shift))]

    balancer = AutoLambda(2)
    balancer.look_ahead(LookAhead(losses, lambda: losses(0.3), [toy.x, y], optimizer))
    learned = torch.full((2,), 0.1, dtype=torch.float64, requires_grad=True)
    total = sum(w * loss for w, loss in zip(learned, losses(), strict=True))
    by_x, by_y = torch.autograd.grad(total, [toy.x, y], create_graph=True)
    x2, y2 = toy.x - 0.1 * by_x, y - 0.02 * by_y
    there = sum((c * (x2 - m - 0.3) ** 2 / 2).sum() for c, m in zip(CURVES, CENTERS, strict=True))
    (expected,) = torch.autograd.grad(there + 3 * (y2 - 0.3).square().sum(), learned)
    torch.testing.assert_close(balancer.first, 0.1 * expected, rtol=1e-9, atol=1e-14)


def test_nothing_stays_changed():
    toy = Toy(lambda x: torch.optim.SGD([x], lr=0.1, momentum=0.9))
    toy.x.grad = sum(toy.gradients())
    toy.optimizer.step()
    toy.x.grad = None
    before, state = toy.x.detach().clone(), copy.deepcopy(toy.optimizer.state_dict())
    AutoLambda(2).look_ahead(toy.ahead())
    assert torch.equal(toy.x.detach(), before)
    assert toy.x.grad is None
    after = toy.optimizer.state_dict()
    assert torch.equal(after["state"][0]["momentum_buffer"], state["state"][0]["momentum_buffer"])


@pytest.mark.parametrize("bad", [2, 3, 4])  # the other batch, then the two sides of the finite difference
def test_an_error_puts_the_parameters_back(bad):
    toy, calls = Toy(), []
    before = toy.x.detach().clone()

    def losses():
        calls.append(1)
        found = toy.losses()
        if len(calls) == bad:
            assert not torch.equal(toy.x.detach(), before)
            found[1] = found[1] * float("nan")
        return found

    balancer = AutoLambda(2)
    with pytest.raises(NonFiniteError, match="loss of task '1' is not finite"):
        balancer.look_ahead(LookAhead(losses, losses, [toy.x], toy.optimizer))
    assert torch.equal(toy.x.detach(), before)
    assert balancer.learned.tolist() == [0.1, 0.1]


def test_absent_tasks_do_not_move():
    toy = Toy()
    balancer = AutoLambda(2, primary=[0])
    balancer.look_ahead(LookAhead(lambda: [toy.losses()[0], None], lambda: toy.losses(0.2), [toy.x], toy.optimizer))
    assert balancer.count.tolist() == [1, 0]
    nothing = LookAhead(toy.losses, lambda: [None, toy.losses()[1]], [toy.x], toy.optimizer)  # no primary task there
    balancer.look_ahead(nothing)
    balancer.look_ahead(LookAhead(lambda: [None, None], toy.losses, [toy.x], toy.optimizer))
    assert balancer.count.tolist() == [1, 0]


def test_bad_options():
    for options, message in (
        ({"parametrization": "sigmoid"}, "softmax"),
        ({"primary": []}, "at least one"),
        ({"primary": "a"}, "sequence"),
        ({"primary": [2]}, "below 2"),
        ({"initial": float("nan")}, "initial"),
        ({"learning_rate": 0.0}, "learning_rate"),
    ):
        with pytest.raises(OptionError, match=message):
            AutoLambda(2, **options)
    with pytest.raises(UnknownNameError, match="did you mean depth"):
        AutoLambda(tasks=["depth", "seg"], primary=["dept"])
    assert AutoLambda(tasks=["depth", "seg"], primary=["seg"])._primary == {1}
