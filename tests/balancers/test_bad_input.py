"""Bad input, for every method: a clear error that changes nothing, or a finite update.

The rows are those of cases.py. What differs between methods follows from what their classes declare: what they read and
need, the form of the losses, how many batches, whether losses may be negative.
"""

import copy
import time

import pytest
import torch
from torch import nn

from balancers.cases import CASES
from balancers.test_backward_errors import zero_times_infinity
from counterpoint.balancers import BALANCERS, LookAhead
from counterpoint.errors import NonFiniteError, OptionError
from counterpoint.testing.balancers import in_form


def methods(chosen=lambda facts: True):
    """Parametrize a test over the methods whose classes declare what is asked for."""
    cases = [case for case in CASES if chosen(BALANCERS.get(case.key))]
    assert cases
    return pytest.mark.parametrize("case", cases, ids=[case.key for case in cases])


every_method = methods()
NAN, INF = float("nan"), float("inf")
NAMES = ("seg", "depth", "normals")


class Problem:
    """A trunk with a head for each task, and a step that serves whatever the method asks for."""

    def __init__(self, case, num_tasks=3, dtype=torch.float64, trunk=None):
        torch.manual_seed(0)
        self.names = [NAMES[task] if task < 3 else str(task) for task in range(num_tasks)]
        self.balancer = case.build(num_tasks, tasks=self.names)
        self.trunk = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5)).to(dtype) if trunk is None else trunk
        self.heads = nn.ModuleList([nn.Linear(5, 1) for _ in range(num_tasks)]).to(dtype)
        self.x, self.y = torch.randn(8, 4, dtype=dtype), torch.randn(8, num_tasks, dtype=dtype)
        self.optimizer = torch.optim.SGD([*self.parameters(), *self.balancer.parameters()], lr=1e-3)

    def parameters(self):
        return [*self.trunk.parameters(), *self.heads.parameters()]

    def forward(self, change=None):
        """Return the features and the losses; ``change`` may replace some."""
        z = self.trunk(self.x)
        read = [self.balancer.transform(z, task) for task in range(len(self.heads))]
        pairs = zip(self.heads, read, strict=True)
        losses = [(head(h)[:, 0] - self.y[:, task]).square().mean() for task, (head, h) in enumerate(pairs)]
        return z, losses if change is None else change(self, z, losses)

    def given(self, losses):
        """Return the losses as the method takes them."""
        form = self.balancer.loss_form
        return dict(zip(self.names, losses if form == "task" else in_form(self.balancer, losses), strict=True))

    def backward(self, change=None, *, batch=0, **options):
        """Give the losses; ``change`` spoils those of one batch."""
        count = self.balancer.num_batches
        z, losses = self.forward(change if batch == 0 else None)
        more = [self.given(self.forward(change if batch == at else None)[1]) for at in range(1, count)]
        cut = {"features": z, "level": "features"} if "transform" in self.balancer.needs else {}
        return self.balancer.backward(self.given(losses), more=more, **cut, **options)

    def look_ahead(self, train=None, validation=None):
        parts = [lambda change=change: self.given(self.forward(change)[1]) for change in (train, validation)]
        self.balancer.look_ahead(LookAhead(*parts, self.parameters(), self.optimizer))

    def step(self):
        """Take a whole step on good input, and end an epoch."""
        self.look_ahead()
        self.optimizer.zero_grad()
        self.backward()
        self.optimizer.step()
        self.balancer.after_step(self.given(self.forward()[1]))
        self.balancer.end_epoch()

    def plain(self, task, change=None):
        """Return the gradient of the trunk for one loss, as one vector."""
        leaves = list(self.trunk.parameters())
        found = torch.autograd.grad(self.forward(change)[1][task], leaves, allow_unused=True, materialize_grads=True)
        return torch.cat([part.flatten() for part in found])

    def update(self):
        """Return what was written for the trunk, as one vector."""
        leaves = self.trunk.parameters()
        return torch.cat([(torch.zeros_like(leaf) if leaf.grad is None else leaf.grad).flatten() for leaf in leaves])

    def expect_finite(self):
        """Fail if a gradient, or a number of the state that was one before, is none now."""
        for parameter in [*self.parameters(), *self.balancer.parameters()]:
            assert parameter.grad is None or bool(torch.isfinite(parameter.grad).all())
            assert bool(torch.isfinite(parameter).all())
        known = self.__dict__.setdefault("known", {})
        for name, value in self.balancer.named_buffers():
            now = torch.isfinite(value)
            if name in known and known[name].shape == now.shape:
                assert bool((now | ~known[name]).all()), f"{name} is {value.tolist()}"
            known[name] = now

    def kept(self):
        """Return all that a refused call must leave as it is."""
        self.balancer.zero_grad(set_to_none=True)
        for parameter in self.parameters():
            parameter.grad = torch.full_like(parameter, 0.5)
        return copy.deepcopy(
            (
                [parameter.detach() for parameter in self.parameters()],
                [parameter.grad for parameter in self.parameters()],
                self.balancer.state_dict(),
            )
        )

    def expect_kept(self, kept):
        values, gradients, state = kept
        for parameter, value, gradient in zip(self.parameters(), values, gradients, strict=True):
            assert torch.equal(parameter, value)
            assert torch.equal(parameter.grad, gradient)
        assert all(parameter.grad is None for parameter in self.balancer.parameters())
        now = self.balancer.state_dict()
        assert now.keys() == state.keys()
        for name, value in state.items():
            if isinstance(value, torch.Tensor):
                torch.testing.assert_close(now[name], value, rtol=0, atol=0, equal_nan=True)
            else:
                assert str(now[name]) == str(value)


def replaced(task, function):
    """Return a change of the loss of one task; ``function(z, loss)``."""

    def change(problem, z, losses):
        return [function(z, loss) if at == task else loss for at, loss in enumerate(losses)]

    return change


SPOILED = {
    "nan": replaced(1, lambda z, loss: loss * NAN),
    "infinite": replaced(1, lambda z, loss: loss + INF),
    "minus infinite": replaced(1, lambda z, loss: loss - INF),
    "gradient": replaced(1, lambda z, loss: zero_times_infinity(z, loss)),
    "gradient of the head": lambda problem, z, losses: replaced(
        1, lambda z, loss: loss + (problem.heads[1].weight * 0).sum().sqrt()
    )(problem, z, losses),
}


@every_method
@pytest.mark.parametrize("spoil", SPOILED)
@pytest.mark.parametrize("steps", [0, 2])
def test_what_is_not_finite_names_the_task_and_changes_nothing(case, spoil, steps):
    problem = Problem(case)
    for _ in range(steps):
        problem.step()
    for batch in range(problem.balancer.num_batches):
        if batch > 0 and spoil == "gradient of the head":
            continue  # of the further batches only the gradients of what is shared are read
        kept = problem.kept()
        with pytest.raises(NonFiniteError, match="'depth'") as caught:
            problem.backward(SPOILED[spoil], batch=batch)
        # one backward pass of the weighted losses does not tell whose gradient of the trunk is bad: all are named then
        one_pass = case.kind in ("losses", "cross_gram") and batch == 0
        assert caught.value.tasks == (() if spoil == "gradient" and one_pass else ("depth",))
        problem.expect_kept(kept)
    problem.optimizer.zero_grad()
    problem.backward()
    problem.expect_finite()


@methods(lambda facts: "losses_after_step" in facts.needs)
@pytest.mark.parametrize("spoil", ["nan", "infinite"])
def test_losses_after_a_step_that_are_not_finite(case, spoil):
    problem = Problem(case)
    problem.step()
    problem.backward()
    kept = problem.kept()
    with pytest.raises(NonFiniteError, match="'depth'") as caught:
        problem.balancer.after_step(problem.given(problem.forward(SPOILED[spoil])[1]))
    assert caught.value.tasks == ("depth",)
    problem.expect_kept(kept)


@methods(lambda facts: "look_ahead" in facts.needs)
@pytest.mark.parametrize("spoil", SPOILED)
@pytest.mark.parametrize("batch", ["train", "validation"])
def test_a_look_ahead_that_is_not_finite(case, spoil, batch):
    problem = Problem(case)
    problem.step()
    kept = problem.kept()
    with pytest.raises(NonFiniteError, match="'depth'") as caught:
        problem.look_ahead(**{batch: SPOILED[spoil]})
    assert "depth" in caught.value.tasks
    problem.expect_kept(kept)


def refused_by_the_pure_call(case, jacobian, losses):
    balancer = case.build(3, tasks=NAMES)
    before = copy.deepcopy(balancer.state_dict())
    pure, rows = (balancer.combine, jacobian) if case.kind == "jacobian" else (balancer.weights, jacobian @ jacobian.T)
    with pytest.raises(NonFiniteError, match="'depth'") as caught:
        pure(rows, losses)
    assert caught.value.tasks == ("depth",)
    for name, value in balancer.named_buffers():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0, equal_nan=True)


@every_method
@pytest.mark.parametrize("value", [NAN, INF])
def test_the_pure_call_names_the_task_of_a_bad_loss(case, value):
    refused_by_the_pure_call(case, torch.eye(3, dtype=torch.float64), torch.tensor([1.0, value, 1.0]).double())


@methods(lambda facts: facts.reads != "losses")
@pytest.mark.parametrize("value", [NAN, INF])
def test_the_pure_call_names_the_task_of_a_bad_gradient(case, value):
    jacobian = torch.eye(3, dtype=torch.float64)
    jacobian[1, 2] = value
    refused_by_the_pure_call(case, jacobian, torch.ones(3, dtype=torch.float64))


@every_method
def test_all_gradients_zero(case):
    problem = Problem(case)
    weights = [head.weight.detach().clone() for head in problem.heads]
    for number in range(4):
        zero = number % 2 == 0
        with torch.no_grad():
            for head, weight in zip(problem.heads, weights, strict=True):
                head.weight.copy_(weight * 0 if zero else weight)
        problem.optimizer.zero_grad()
        problem.look_ahead()
        problem.backward()
        problem.expect_finite()
        if number == 0:
            assert not bool(problem.update().any())
        if not zero:
            assert bool(problem.update().any())
        problem.balancer.after_step(problem.given(problem.forward()[1]))
        problem.balancer.end_epoch()
        problem.expect_finite()


@every_method
def test_losses_of_zero_with_gradients_of_zero(case):
    """All tasks solved: nothing moves, and a later loss is trained again."""
    problem = Problem(case)
    problem.step()

    def solved(problem, z, losses):
        return [loss * 0 for loss in losses]

    problem.look_ahead(solved, solved)
    problem.optimizer.zero_grad()
    problem.backward(solved)
    problem.expect_finite()
    problem.balancer.after_step(problem.given(problem.forward(solved)[1]))
    problem.balancer.end_epoch()
    problem.step()
    problem.expect_finite()
    assert bool(problem.update().any())


def parallel(found, expected):
    """Assert that a vector is a positive multiple of another."""
    assert bool(found.any())
    torch.testing.assert_close(found / found.norm(), expected / expected.norm(), rtol=0, atol=1e-9)


def along(report, found, expected):
    """Assert that an update is that of one gradient: in its direction, or, without task weights, with its signs."""
    if report.weights is not None:
        parallel(found, expected)
    assert torch.equal(found.sign(), expected.sign())


@every_method
@pytest.mark.parametrize("listed", [False, True])
def test_one_task(case, listed):
    """The parameters of one task are shared only where the caller lists them."""
    problem = Problem(case, num_tasks=1)
    options = {"shared": list(problem.trunk.parameters())} if listed else {}
    problem.look_ahead()
    expected = problem.plain(0)
    along(problem.backward(**options), problem.update(), expected)
    assert bool(problem.heads[0].weight.grad.any())
    for _ in range(3):
        problem.step()
        problem.expect_finite()


@every_method
@pytest.mark.parametrize("num_tasks", [2, 3])
def test_the_same_task_twice(case, num_tasks):
    problem = Problem(case, num_tasks)
    problem.heads[1].load_state_dict(problem.heads[0].state_dict())
    problem.y[:, 1] = problem.y[:, 0]
    expected = problem.plain(0)
    problem.look_ahead()
    report = problem.backward()
    if num_tasks == 2:
        along(report, problem.update(), expected)
    for _ in range(3):
        problem.expect_finite()
        problem.step()


@every_method
def test_the_same_loss_given_twice(case):
    """One tensor for two tasks, so that they share a head as well."""
    problem = Problem(case)

    def change(problem, z, losses):
        return [losses[0], losses[0], losses[2]]

    for _ in range(3):
        problem.optimizer.zero_grad()
        problem.backward(change)
        problem.expect_finite()


@every_method
@pytest.mark.parametrize("num_tasks", [2, 3])
def test_a_task_whose_loss_does_not_reach_the_trunk(case, num_tasks):
    problem = Problem(case, num_tasks)
    last = num_tasks - 1

    def change(problem, z, losses):
        own = problem.heads[last](z.detach())[:, 0] - problem.y[:, last]
        return [*losses[:last], own.square().mean()]

    expected = problem.plain(0)
    own = torch.autograd.grad(problem.forward(change)[1][last], problem.heads[last].weight)[0]
    for _ in range(3):
        problem.optimizer.zero_grad()
        problem.backward(change)
        problem.expect_finite()
        assert bool(problem.update().any())
        if num_tasks == 2:
            parallel(problem.update(), expected)
        parallel(problem.heads[last].weight.grad, own)


@every_method
def test_negative_losses(case):
    problem = Problem(case)
    problem.step()
    change = replaced(1, lambda z, loss: loss - 100.0)
    kept = problem.kept()
    refused = problem.balancer.nonnegative_losses or hasattr(problem.balancer, "minimum")  # an option: the lower bound
    if refused:
        with pytest.raises(OptionError, match="loss of task 'depth' is -"):
            problem.backward(change)
        problem.expect_kept(kept)
        return
    for _ in range(3):
        problem.optimizer.zero_grad()
        problem.look_ahead(change, change)
        problem.backward(change)
        problem.expect_finite()


class Casting(nn.Module):
    """A layer with parameters of another dtype than those before and after it."""

    def __init__(self, inner, dtype):
        super().__init__()
        self.inner = inner.to(dtype)

    def forward(self, x):
        return self.inner(x.to(self.inner.weight.dtype)).to(x.dtype)


@every_method
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_parameters_of_two_dtypes(case, dtype):
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Linear(4, 6), Casting(nn.Linear(6, 6), dtype), nn.Tanh(), nn.Linear(6, 5))
    problem = Problem(case, dtype=torch.float32, trunk=trunk)
    for _ in range(3):
        problem.step()
        problem.expect_finite()
    assert all(parameter.grad.dtype == parameter.dtype for parameter in problem.parameters())
    assert all(bool(parameter.grad.any()) for parameter in problem.trunk.parameters())
    assert {parameter.dtype for parameter in problem.parameters()} == {torch.float32, dtype}


# --- a thousand tasks -------------------------------------------------------------------------------------------------

MANY = 1000
FEWER = {
    "upgrad",
    "gradvac",
    "gradops",
    "gcond",
}  # their time grows with K^4, as their docs say: 26 s to 4 min for 1000


@every_method
def test_a_thousand_tasks(case):
    generator = torch.Generator().manual_seed(0)
    count = 100 if case.key in FEWER else MANY
    balancer = case.build(count)
    trunk = nn.Linear(4, 6).double()
    heads = torch.randn(count, 6, generator=generator, dtype=torch.float64)
    x = torch.randn(2, 4, generator=generator, dtype=torch.float64)

    def losses():
        z = trunk(x)
        read = [balancer.transform(z, task) for task in range(count)]
        found = [(h @ head).square().mean() for h, head in zip(read, heads, strict=True)]
        return z, found if balancer.loss_form == "task" else in_form(balancer, found)

    started = time.perf_counter()
    z, first = losses()
    cut = {"features": z, "level": "features"} if "transform" in balancer.needs else {}
    balancer.backward(first, more=[losses()[1] for _ in range(1, balancer.num_batches)], **cut)
    assert bool(torch.isfinite(trunk.weight.grad).all())  # GradOPS: zero, each gradient is in the span of the others
    assert time.perf_counter() - started < 30  # at most 3 s were measured
