"""What ``backward`` refuses: the message names the task and the cure, and nothing at all has changed afterwards."""

import copy

import pytest
import torch
from torch import nn

from counterpoint.balancers import GramBalancer, JacobianBalancer, LossBalancer
from counterpoint.errors import GraphError, NonFiniteError, OptionError, ShapeError, SolverError, UnknownNameError

NAN, INF = float("nan"), float("inf")


class Counting:
    """A state that moves at every call, and a random number drawn at every call."""

    generator: torch.Generator

    def declare(self, num_tasks):
        self.add_state("calls", torch.zeros(()))
        self.add_state("seen", torch.zeros(num_tasks))

    def move(self, present):
        self.calls += 1
        self.seen[list(present)] += torch.rand(len(present), generator=self.generator)


class Losses(Counting, LossBalancer):
    key = "losses"
    nonnegative_losses = True

    def __init__(self, num_tasks=None, *, tasks=None, generator=None):
        super().__init__(num_tasks, tasks, generator, random=True)
        self.declare(self.num_tasks)
        self.add_parameter("scale", [1.0] * self.num_tasks)

    def objective(self, losses, *, present=None):
        self.move(self._positions(len(losses), present))
        return sum(self.scale[task] * loss for task, loss in zip(present, losses, strict=True))


class Gram(Counting, GramBalancer):
    key = "gram"
    nonnegative_losses = True

    def __init__(self, num_tasks=None, *, tasks=None, generator=None):
        super().__init__(num_tasks, tasks, generator, random=True)
        self.declare(self.num_tasks)

    def solve(self, gram, losses, present):
        self.move(present)
        return torch.ones(len(gram), dtype=gram.dtype)


class Rows(Counting, JacobianBalancer):
    key = "rows"
    nonnegative_losses = True

    def __init__(self, num_tasks=None, *, tasks=None, generator=None):
        super().__init__(num_tasks, tasks, generator, random=True)
        self.declare(self.num_tasks)

    def aggregate(self, jacobian, losses, present):
        self.move(present)
        return jacobian.sum(dim=0)


KINDS = [Losses, Gram, Rows]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Linear(2, 3)
        self.heads = nn.ModuleDict({name: nn.Linear(3, 1) for name in ("seg", "depth", "normals")})
        for p in self.parameters():
            p.grad = torch.full_like(p, 0.5)

    def forward(self):
        h = self.trunk(torch.ones(2, 2))
        return h, {name: head(h).pow(2).mean() for name, head in self.heads.items()}


class Refused:
    """Asserts that an error is raised and that no gradient and no state moved."""

    def __init__(self, net, balancer, error, match):
        self.net, self.balancer, self.match = net, balancer, match
        self.raises = pytest.raises(error, match=match)

    def __enter__(self):
        self.pointers = [p.grad for p in self.net.parameters()]
        self.gradients = [None if p.grad is None else p.grad.clone() for p in self.net.parameters()]
        self.state = copy.deepcopy(self.balancer.state_dict())
        return self.raises.__enter__()

    def __exit__(self, *caught):
        handled = self.raises.__exit__(*caught)
        for p, pointer, value in zip(self.net.parameters(), self.pointers, self.gradients, strict=True):
            assert p.grad is pointer
            assert value is None or torch.equal(p.grad, value)
        assert all(p.grad is None for p in self.balancer.parameters())
        same_state(self.balancer.state_dict(), self.state)
        return handled


def same_state(one, two):
    assert one.keys() == two.keys()
    for name, value in one.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, two[name]), name
        else:
            assert value["tasks"] == two[name]["tasks"]
            assert torch.equal(value["generator"], two[name]["generator"])


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def balancer(request):
    return request.param(3)


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_non_finite_loss(balancer, value):
    net = Net()
    losses = net()[1]
    losses["depth"] = losses["depth"] * 0 + value
    with Refused(net, balancer, NonFiniteError, "loss of task 'depth' is not finite.*pass None") as caught:
        balancer.backward(losses)
    assert caught.value.tasks == ("depth",)


def test_the_message_shows_each_value_beside_its_task_though_some_are_absent(balancer):
    net = Net()
    losses = net()[1]
    losses = {"seg": None, "depth": losses["depth"] * 0 + 2.0, "normals": losses["normals"] * NAN}
    with Refused(net, balancer, NonFiniteError, r"'normals' is not finite \({'depth': 2.0, 'normals': nan}\)"):
        balancer.backward(losses)


def test_several_bad_tasks_are_all_named(balancer):
    net = Net()
    losses = net()[1]
    losses["seg"], losses["normals"] = losses["seg"] * NAN, losses["normals"] * INF
    with Refused(net, balancer, NonFiniteError, "'seg', 'normals'") as caught:
        balancer.backward(losses)
    assert caught.value.tasks == ("seg", "normals")


@pytest.mark.parametrize("spoil", ["detach", "item", "no_grad", "constant"])
def test_loss_without_a_graph(balancer, spoil):
    net = Net()
    losses = net()[1]
    with torch.no_grad():
        without = net()[1]["depth"]
    bad = {"detach": losses["depth"].detach(), "item": losses["depth"].item(), "no_grad": without}
    losses["depth"] = bad.get(spoil, torch.tensor(1.0))
    with Refused(net, balancer, (GraphError, ShapeError), r"loss of task 'depth' .*\.item\(\)"):
        balancer.backward(losses)


@pytest.mark.parametrize("shape", [(2,), (0,), (1, 2)])
def test_loss_that_is_no_scalar(balancer, shape):
    net = Net()
    losses = net()[1]
    losses["normals"] = losses["normals"] * torch.ones(shape)
    with Refused(net, balancer, ShapeError, r"'normals' must be a real scalar, got shape .*\.mean\(\)"):
        balancer.backward(losses)


def test_complex_loss(balancer):
    net = Net()
    losses = net()[1]
    losses["seg"] = losses["seg"] * 1j
    with Refused(net, balancer, ShapeError, "'seg' must be a real scalar"):
        balancer.backward(losses)


@pytest.mark.parametrize("count", [0, 1, 2, 4])
@pytest.mark.parametrize("form", ["mapping", "list", "tensor"])
def test_wrong_number_of_losses(balancer, count, form):
    net = Net()
    values = list(net()[1].values()) * 2
    losses = {f"t{k}": values[k] for k in range(count)} if form == "mapping" else values[:count]
    losses = torch.stack(losses) if form == "tensor" and losses else losses
    with Refused(net, balancer, ShapeError, rf"num_tasks = 3.*got {count}.*num_tasks={count}"):
        balancer.backward(losses)


@pytest.mark.parametrize("shape", ["scalar", "matrix"])
def test_tensor_of_losses_of_the_wrong_shape(balancer, shape):
    net = Net()
    h, _ = net()
    with Refused(net, balancer, ShapeError, "a tensor of losses must be 1-D"):
        balancer.backward(h if shape == "matrix" else h.sum())


def test_unknown_task(balancer):
    net = Net()
    balancer.backward(net()[1])  # learns the names
    balancer.zero_grad()
    losses = net()[1]
    losses["normal"] = losses.pop("normals")
    with Refused(net, balancer, UnknownNameError, "'normal'; did you mean normals"):
        balancer.backward(losses)


def test_negative_loss(balancer):
    net = Net()
    losses = net()[1]
    losses["depth"] = losses["depth"] - 100.0
    with Refused(net, balancer, OptionError, "loss of task 'depth' is -.*add a constant"):
        balancer.backward(losses)


def sqrt_of_zero(h, value):
    return value + (h * 0).sum().sqrt()


def zero_times_infinity(h, value):
    return value + torch.where(torch.ones_like(h) > 0, h * 0, 1 / (h * 0)).sum()


@pytest.mark.parametrize("spoil", [sqrt_of_zero, zero_times_infinity])
@pytest.mark.parametrize("where", ["head", "head over the features", "trunk"])
@pytest.mark.parametrize("options", [None, "parameters", "features"])
def test_non_finite_gradient_of_finite_losses(balancer, spoil, where, options):
    net = Net()
    h = net.trunk(torch.ones(2, 2))
    if where == "trunk":
        h = h + spoil(h, 0.0) * 0.0 + spoil(h, 0.0)
    losses = {name: head(h).pow(2).mean() for name, head in net.heads.items()}
    if where == "head":
        losses["depth"] = spoil(net.heads["depth"](h), losses["depth"])
    if where == "head over the features":
        losses["depth"] = spoil(h, losses["depth"])
    assert all(torch.isfinite(loss) for loss in losses.values())
    keywords = {} if options is None else {"features": h, "level": options}
    with Refused(net, balancer, NonFiniteError, "(gradient|weight) of .*is not finite.*nothing was written") as caught:
        balancer.backward(losses, **keywords)
    if where == "head" or (where != "trunk" and not isinstance(balancer, Losses)):
        assert caught.value.tasks == ("depth",)
        assert "'depth'" in str(caught.value)
    else:  # the one backward pass of a loss balancer shows only which task's own parameters are spoiled
        assert all(repr(name) in str(caught.value) for name in losses)


@pytest.mark.parametrize("level", ["parameters", "features"])
def test_a_bad_gradient_that_only_a_leaf_past_the_features_has(level):
    net = Net()
    side = nn.Parameter(torch.zeros(()))
    h, losses = net()
    losses = {name: loss + (side.sqrt() if name == "seg" else side) for name, loss in losses.items()}
    with Refused(net, Gram(3), NonFiniteError, "task 'seg'"):
        Gram(3).backward(losses, features=h, level=level)
    assert side.grad is None


@pytest.mark.parametrize("kind", [Gram, Rows])
def test_a_task_bad_in_the_trunk_and_another_bad_in_its_head_are_both_named(kind):
    net = Net()
    h, losses = net()
    losses["seg"] = sqrt_of_zero(h, losses["seg"])
    losses["normals"] = losses["normals"] + (net.heads["normals"].bias * 0).sum().sqrt()
    with Refused(net, kind(3), NonFiniteError, "'seg', 'normals'") as caught:
        kind(3).backward(losses)
    assert caught.value.tasks == ("seg", "normals")


class BadSolver(Gram):
    key = "bad_solver"

    def solve(self, gram, losses, present):
        self.move(present)
        return torch.full((len(gram),), NAN, dtype=gram.dtype)


class FailingSolver(Gram):
    key = "failing_solver"

    def solve(self, gram, losses, present):
        self.move(present)
        raise SolverError("no solution")


class BadRows(Rows):
    key = "bad_rows"

    def aggregate(self, jacobian, losses, present):
        self.move(present)
        return jacobian[0] * INF


class BadOwn(Losses):
    """The objective's derivative by the balancer's own parameter is not finite."""

    key = "bad_own"

    def objective(self, losses, *, present=None):
        self.move(present)
        return losses.sum() + (self.scale[0] * 0).sqrt()


@pytest.mark.parametrize(
    ("kind", "error"),
    [(BadSolver, NonFiniteError), (FailingSolver, SolverError), (BadRows, NonFiniteError), (BadOwn, NonFiniteError)],
)
@pytest.mark.parametrize("level", ["parameters", "features"])
def test_a_method_that_goes_wrong_writes_nothing(kind, error, level):
    net = Net()
    balancer = kind(3)
    h, losses = net()
    with Refused(net, balancer, error, "not finite|no solution"):
        balancer.backward(losses, features=h, level=level)


def test_names_are_not_learned_from_a_refused_call(balancer):
    net = Net()
    losses = net()[1]
    with Refused(net, balancer, NonFiniteError, "'other'"):
        balancer.backward({"seg": losses["seg"], "depth": losses["depth"], "other": losses["normals"] * NAN})
    balancer.backward(net()[1])
    assert balancer.get_extra_state()["tasks"] == ["seg", "depth", "normals"]


def test_a_freed_graph_is_torch_own_error_and_changes_nothing(balancer):
    net = Net()
    losses = net()[1]
    balancer.backward(losses)
    balancer.zero_grad()
    with Refused(net, balancer, RuntimeError, "second time"):
        balancer.backward(losses)


def test_zero_grad_and_step_are_never_called(balancer, monkeypatch):
    net = Net()
    for owner in (nn.Module, torch.optim.Optimizer):
        monkeypatch.setattr(owner, "zero_grad", lambda *_, **__: pytest.fail("zero_grad was called"))
    balancer.backward(net()[1])
    assert net.trunk.weight.grad is not None


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({}, "give num_tasks, or the names"),
        ({"num_tasks": 0}, "at least 1, got 0"),
        ({"num_tasks": True}, "got True"),
        ({"num_tasks": 2.0}, "got 2.0"),
        ({"num_tasks": 2, "tasks": ["a"]}, "num_tasks = 2 but 1 names"),
        ({"tasks": ["a", "a"]}, "different names"),
        ({"tasks": "ab"}, "single name 'ab'"),
        ({"tasks": []}, "at least 1"),
    ],
)
def test_wrong_construction(arguments, match):
    with pytest.raises(OptionError, match=match):
        Gram(**arguments)


def test_wrong_arguments_of_the_pure_calls():
    gram, rows = Gram(2), Rows(2)
    for bad in (torch.ones(2), torch.ones(2, 3), torch.ones(3, 3)):
        with pytest.raises(ShapeError, match=r"Gram: .*(num_tasks|K)"):
            gram.weights(bad)
    with pytest.raises(ShapeError, match="losses must be"):
        gram.weights(torch.eye(2), torch.ones(3))
    with pytest.raises(NonFiniteError, match="gram must be finite"):
        gram.weights(torch.eye(2) * NAN)
    with pytest.raises(NonFiniteError, match="jacobian must be finite"):
        rows.combine(torch.eye(2) * NAN)
    with pytest.raises(ShapeError, match="jacobian must be"):
        rows.combine(torch.ones(2))
    for present in ([0], [0, 2], [0, 0], [-1, 0]):
        with pytest.raises(ShapeError, match="present must be 2 different tasks below 2"):
            gram.weights(torch.eye(2), present=present)
    assert gram.calls == rows.calls == 0
