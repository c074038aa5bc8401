"""State: saved, loaded, copied, moved, reset; and nothing kept alive."""

import copy
import gc
import io
import pickle
import weakref

import pytest
import torch
from torch import nn

from counterpoint.balancers import Equal, GramBalancer, JacobianBalancer, LossBalancer, PCGrad
from counterpoint.errors import OptionError


class Remembering(GramBalancer):
    """Averages the diagonal, and draws random weights."""

    key = "remembering"
    mean: torch.Tensor

    def __init__(self, num_tasks=None, *, tasks=None, rate=0.5, generator=None):
        super().__init__(num_tasks, tasks, generator, random=True)
        self.rate = rate
        self.add_state("mean", torch.zeros(self.num_tasks))
        self.add_state("steps", torch.zeros((), dtype=torch.long))

    def solve(self, gram, losses, present):
        index = list(present)
        self.mean[index] += self.rate * (gram.diagonal().to(self.mean) - self.mean[index])
        self.steps += 1
        return torch.rand(len(gram), generator=self.generator, dtype=gram.dtype) + self.mean[index].to(gram)


class Learned(LossBalancer):
    key = "learned"

    def __init__(self, num_tasks=None, *, tasks=None):
        super().__init__(num_tasks, tasks)
        self.add_parameter("scale", [1.0] * self.num_tasks)

    def objective(self, losses, *, present=None):
        present = self._positions(len(losses), present)
        return torch.stack([self.scale[t] * loss for t, loss in zip(present, losses, strict=True)]).sum()


def losses(seed):
    torch.manual_seed(seed)
    p = torch.randn(4, requires_grad=True)
    return {"a": p.sum(), "b": (p**2).sum(), "c": (p * torch.randn(4)).sum()}


def run(balancer, steps):
    return [balancer.backward(losses(step)).weights for step in steps]


def stored(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@pytest.mark.parametrize("how", ["state_dict", "deepcopy", "pickle", "inside a model"])
def test_a_copy_goes_on_with_the_same_numbers(how):
    original = Remembering(3, rate=0.3)
    run(original, range(4))
    torch.manual_seed(99)
    if how == "deepcopy":
        other = copy.deepcopy(original)
    elif how == "pickle":
        other = pickle.loads(pickle.dumps(original))
    elif how == "inside a model":
        model = nn.ModuleDict({"balancer": Remembering(3, rate=0.3)})
        model.load_state_dict(stored(nn.ModuleDict({"balancer": original}).state_dict()))
        other = model["balancer"]
    else:
        other = Remembering(3, rate=0.3)
        other.load_state_dict(stored(original.state_dict()))
    assert other.get_extra_state()["tasks"] == ["a", "b", "c"]
    for one, two in zip(run(original, range(4, 8)), run(other, range(4, 8)), strict=True):
        assert torch.equal(one, two)


def test_a_copy_has_its_own_state():
    original = Remembering(3)
    other = copy.deepcopy(original)
    run(other, range(2))
    assert original.steps == 0
    assert original.generator.get_state().equal(copy.deepcopy(original).generator.get_state())
    assert not original.generator.get_state().equal(other.generator.get_state())


def test_two_balancers_of_one_seed_draw_the_same_and_follow_torch():
    made = []
    for _ in range(2):
        torch.manual_seed(3)
        made.append(Remembering(3))
    assert all(torch.equal(x, y) for x, y in zip(run(made[0], range(3)), run(made[1], range(3)), strict=True))
    torch.manual_seed(4)
    assert not torch.equal(run(Remembering(3), [0])[0], run(made[0].reset() or made[0], [0])[0])


def test_reset_starts_over():
    balancer = Remembering(3)
    first = run(balancer, range(3))
    balancer.reset()
    assert balancer.get_extra_state()["tasks"] is None
    assert balancer.mean.tolist() == [0.0] * 3
    assert all(torch.equal(one, two) for one, two in zip(first, run(balancer, range(3)), strict=True))


def test_reset_of_learned_parameters_and_of_given_names():
    balancer = Learned(tasks=["a", "b", "c"])
    with torch.no_grad():
        balancer.scale[1].fill_(7.0)
    balancer.reset()
    assert [p.item() for p in balancer.parameters()] == [1.0] * 3
    assert balancer.get_extra_state()["tasks"] == ["a", "b", "c"]


def test_conversion_of_the_dtype():
    balancer = Remembering(3).double()
    run(balancer, range(2))
    assert balancer.mean.dtype == torch.float64
    assert balancer.steps.dtype == torch.long
    balancer.reset()
    assert balancer.mean.dtype == torch.float64
    balancer.to(torch.float32)
    run(balancer, range(2))


def test_learned_parameters_get_their_gradient_only_for_tasks_present():
    balancer = Learned(3)
    p = torch.ones(2, requires_grad=True)
    balancer.backward([p.sum(), None, (2 * p).sum()])
    assert [None if q.grad is None else float(q.grad) for q in balancer.scale] == [2.0, None, 4.0]
    balancer.backward([p.sum(), None, None])
    assert [None if q.grad is None else float(q.grad) for q in balancer.scale] == [4.0, None, 4.0]


def test_state_of_other_tasks_is_refused():
    state = Remembering(tasks=["a", "b", "c"]).state_dict()
    with pytest.raises(OptionError, match=r"of tasks \['a', 'b', 'c'\], this balancer of \['a', 'b', 'x'\]"):
        Remembering(tasks=["a", "b", "x"]).load_state_dict(state)
    with pytest.raises(OptionError, match="num_tasks=3"):
        Equal(2).load_state_dict(Equal(tasks=["a", "b", "c"]).state_dict())
    other = Remembering(3)
    other.load_state_dict(state)
    assert other.get_extra_state()["tasks"] == ["a", "b", "c"]


def test_given_names_stay_when_the_state_has_none():
    balancer = Remembering(tasks=["a", "b", "c"])
    balancer.load_state_dict(Remembering(3).state_dict())
    assert balancer.get_extra_state()["tasks"] == ["a", "b", "c"]


@pytest.mark.parametrize("balancer", [Remembering(3, rate=0.25), Remembering(tasks=["a", "b"]), PCGrad(2), Equal(4)])
def test_repr_and_options_rebuild(balancer):
    assert "generator" not in balancer.options()
    twin = type(balancer)(**balancer.options())
    assert twin.options() == balancer.options()
    assert repr(eval(repr(balancer), {type(balancer).__name__: type(balancer)})) == repr(balancer)


class Rows(JacobianBalancer):
    key = "rows"

    def aggregate(self, jacobian, losses, present):
        return jacobian.sum(dim=0)


@pytest.mark.parametrize("balancer", [Equal(2), PCGrad(2), Rows(2), Remembering(2)])
@pytest.mark.parametrize("way", ["plain", "features", "level"])
def test_backward_keeps_neither_graph_nor_activations_alive(balancer, way):
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh())
    hidden = net(torch.ones(2, 3))
    both = [hidden.sum(), (hidden**2).sum()]
    watched = [weakref.ref(hidden), *map(weakref.ref, both)]
    options = {"plain": {}, "features": {"features": hidden}, "level": {"features": [hidden], "level": "features"}}
    gc.collect()
    gc.disable()
    try:
        report = balancer.backward(both, **options[way])
        del hidden, both, options
        assert [ref() for ref in watched] == [None] * 3
    finally:
        gc.enable()
    for value in (report.losses, report.weights, report.gram):
        assert value is None or value.grad_fn is None


@pytest.mark.parametrize("balancer", [Equal(2), PCGrad(2), Rows(2)])
def test_a_refused_call_keeps_nothing_alive_once_the_error_is_gone(balancer):
    p = torch.ones(2, requires_grad=True)
    hidden = p * 2
    both = [hidden.sum(), (hidden * 0).sum().sqrt()]
    watched = weakref.ref(hidden)
    with pytest.raises(ArithmeticError):
        balancer.backward(both)
    del hidden, both
    gc.collect()
    assert watched() is None
