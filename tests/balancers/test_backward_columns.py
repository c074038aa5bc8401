"""Methods with a state for each task and coordinate: columns that mean the same parameters at every step."""

import copy
import gc
import io

import pytest
import torch
from torch import nn

from balancers.cases import BY_KEY, CASES
from counterpoint.balancers import Chain, Equal, JacobianBalancer, Uncertainty
from counterpoint.errors import NonFiniteError, OptionError
from counterpoint.gradients import Leaves, in_columns, task_gradients

COLUMNS = [case for case in CASES if case.build(2).keeps_columns]
METHODS = pytest.mark.parametrize("case", COLUMNS, ids=lambda case: case.key)


class Mean(JacobianBalancer):
    """The running sum of each task's gradients, and their sum: what comes out shows the columns."""

    keeps_columns = True
    total: torch.Tensor

    def __init__(self, num_tasks=None, *, tasks=None):
        super().__init__(num_tasks, tasks)
        self.add_lazy_state("total")

    def aggregate(self, jacobian, losses, present):
        old = self.total if self.total.numel() else jacobian.new_zeros(self.num_tasks, jacobian.shape[1])
        self.total = old.index_add(0, torch.tensor(present), jacobian)
        return self.total.sum(dim=0)


class Net(nn.Module):
    """A trunk of two layers, three heads, and a second trunk layer that can be left out."""

    def __init__(self, seed=0, dtype=torch.float64):
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.second = nn.Linear(4, 5, dtype=dtype), nn.Linear(5, 5, dtype=dtype)
        self.heads = nn.ModuleList([nn.Linear(5, 1, dtype=dtype) for _ in range(3)])

    def shared(self):
        return [*self.first.parameters(), *self.second.parameters()]

    def losses(self, seed, *, absent=(), short=False, order=(0, 1, 2)):
        """Losses in an order of evaluation, so that a walk over the graph meets the leaves in another one."""
        torch.manual_seed(seed)
        x, y = torch.randn(8, 4).to(self.first.weight), torch.randn(8, 3).to(self.first.weight)
        z = torch.tanh(self.first(x))
        z = z if short else torch.tanh(self.second(z))
        found = {k: (self.heads[k](z)[:, 0] - y[:, k]).square().mean() for k in order}
        return [None if k in absent else found[k] for k in range(3)]


def gradient(net):
    return torch.cat([torch.zeros(p.numel()).to(p) if p.grad is None else p.grad.flatten() for p in net.shared()])


def step(balancer, net, seed, **options):
    shared = options.pop("shared", None)
    net.zero_grad()
    balancer.backward(net.losses(seed, **options), shared=shared)
    return gradient(net)


def lazy(balancer):
    return {name: getattr(balancer, name) for name in balancer._lazy}


def by_task(balancer):
    """Return the large states with a row for each task; what belongs to all of them has one row."""
    return {name: value for name, value in lazy(balancer).items() if len(value) == balancer.num_tasks}


def stored(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_there_are_such_methods():
    assert {"db_mtl", "moco", "sam_gs", "excess_mtl", "gcond"} <= {case.key for case in COLUMNS}
    assert not BY_KEY["db_mtl"].build(2, beta=0.0).keeps_columns


# --- which column is which ---------------------------------------------------------------------------------------


def test_the_columns_are_those_of_the_first_step():
    net, balancer, expected = Net(), Mean(3), 0.0
    for seed, options in enumerate([{}, {"order": (2, 0, 1)}, {"absent": (1,)}, {"absent": (0, 2)}, {"short": True}]):
        plain = Net()
        plain.zero_grad()
        Equal(3).backward(plain.losses(seed, **options))
        expected = expected + gradient(plain)
        torch.testing.assert_close(step(balancer, net, seed, **options), expected, rtol=1e-12, atol=1e-14)


def test_the_order_of_shared_decides_only_at_the_first_step():
    net, other = Net(), Net()
    first, second = Mean(3), Mean(3)
    for seed in range(3):
        shuffled = net.shared() if seed == 0 else [*reversed(net.shared()), net.shared()[0]]
        found = step(first, net, seed, shared=shuffled)
        assert torch.equal(found, step(second, other, seed, shared=other.shared()))
    assert torch.equal(first.total, second.total)
    backwards = Mean(3)
    step(backwards, net, 0, shared=list(reversed(net.shared())))
    sizes = [p.numel() for p in net.shared()]
    once = Mean(3)
    step(once, net, 0, shared=(p for p in [*net.shared(), net.shared()[0]]))
    expected = torch.cat(list(reversed(once.total.split(sizes, dim=1))), dim=1)
    torch.testing.assert_close(backwards.total, expected)


@METHODS
def test_a_first_batch_without_a_task_needs_shared(case):
    net, balancer = Net(), case.build(3)
    with pytest.raises(OptionError, match="without 1 of the tasks does not show which those are; pass shared="):
        step(balancer, net, 0, absent=(1,))
    assert all(p.grad is None for p in net.parameters())
    step(balancer, net, 0, absent=(1,), shared=net.shared())
    step(balancer, net, 1, absent=(0, 2))  # known now


@METHODS
def test_other_parameters_are_refused_until_reset(case):
    net, other, balancer = Net(), Net(1), case.build(3)
    step(balancer, net, 0)
    with pytest.raises(OptionError, match=r"4 parameters that are not the 4 of the steps before.*reset\(\)"):
        step(balancer, other, 0, shared=other.shared())
    with pytest.raises(OptionError, match="2 parameters that are not the 4"):
        step(balancer, net, 0, shared=net.shared()[:2])
    step(balancer, net, 1, shared=net.shared())
    balancer.reset()
    step(balancer, other, 0, shared=other.shared()[:2])


@METHODS
def test_a_state_of_another_size_is_refused_and_what_was_given_is_forgotten(case):
    net, balancer = Net(), case.build(3)
    step(balancer, net, 0, shared=net.shared())
    other = case.build(3)
    other.load_state_dict(balancer.state_dict())
    with pytest.raises(
        OptionError, match="the state is of 55 shared coordinates, the gradients have 25; pass the same"
    ):
        step(other, net, 1, shared=net.shared()[:2])
    assert torch.equal(step(other, net, 1, shared=net.shared()), step(balancer, net, 1))


def test_features_are_refused():
    net = Net()
    x = net.first(torch.ones(2, 4, dtype=torch.float64))
    for case in COLUMNS:
        with pytest.raises(OptionError, match="use level='parameters'"):
            case.build(2).backward([x.sum(), (x**2).sum()], features=x, level="features")


@METHODS
def test_features_at_the_level_of_parameters_change_nothing(case):
    net, other = Net(), Net()
    first, second = case.build(3), case.build(3)
    for seed in range(3):
        torch.manual_seed(seed)
        x = torch.randn(8, 4, dtype=torch.float64)
        for one, balancer, give in ((net, first, False), (other, second, seed > 0)):
            one.zero_grad()
            z = torch.tanh(one.second(torch.tanh(one.first(x))))
            balancer.backward([head(z).square().mean() for head in one.heads], features=z if give else None)
        torch.testing.assert_close(gradient(net), gradient(other), rtol=1e-12, atol=1e-14)


# --- parameters not reached, frozen, or gone ---------------------------------------------------------------------


@METHODS
def test_parameters_not_reached_count_as_zero(case):
    net, balancer = Net(), case.build(3)
    step(balancer, net, 0)
    step(balancer, net, 1, short=True)
    found = [p.grad for p in net.second.parameters()]
    kept = case.key in ("db_mtl", "moco", "gcond")  # their update is the running mean, the others' the gradient of now
    assert all(bool((gradient != 0).any()) == kept for gradient in found)


@METHODS
def test_a_layer_frozen_later_is_left_alone(case):
    net, balancer = Net(), case.build(3)
    step(balancer, net, 0)
    net.first.requires_grad_(False)
    step(balancer, net, 1)
    assert all(p.grad is None for p in net.first.parameters())
    assert all(bool(p.grad.any()) for p in net.second.parameters())


def test_columns_have_one_dtype_whatever_is_reached():
    narrow, wide = torch.ones(2, requires_grad=True), torch.ones(3, dtype=torch.float64, requires_grad=True)
    unreached = torch.ones(2, requires_grad=True)
    for leaves, losses in (
        ([narrow, wide], [narrow.sum(), (narrow * 2).sum()]),
        ([wide, unreached], [narrow.sum(), narrow.sum()]),
    ):
        found = in_columns(task_gradients(losses, shared=leaves), leaves)
        assert found.jacobian.dtype == torch.float64
        assert found.jacobian.shape == (2, sum(leaf.numel() for leaf in leaves))
    complex_leaf = torch.ones(2, dtype=torch.complex64, requires_grad=True)
    found = in_columns(task_gradients([narrow.sum()], shared=[narrow]), [complex_leaf, narrow])
    assert found.jacobian.tolist() == [[0, 0, 0, 0, 1, 1]]


def test_leaves_hold_nothing_alive_and_copies_are_empty():
    leaf = torch.ones(2, requires_grad=True)
    kept = Leaves([leaf])
    assert kept.get()[0] is leaf
    assert copy.deepcopy(kept).get() == []
    del leaf
    gc.collect()
    assert kept.get() == []


# --- absent tasks ------------------------------------------------------------------------------------------------


@METHODS
def test_the_rows_of_an_absent_task_do_not_move_and_the_others_do(case):
    net, balancer = Net(), case.build(3)
    step(balancer, net, 0)
    for seed, absent in enumerate([(1,), (0, 2), (2,)], 1):
        before = {name: value.clone() for name, value in balancer.named_buffers()}
        step(balancer, net, seed, absent=absent)
        for name, value in balancer.named_buffers():
            if value.ndim and len(value) == 3:  # a row for each task
                for task in absent:
                    assert torch.equal(value[task].nan_to_num(), before[name][task].nan_to_num()), (name, task)
        for name, value in by_task(balancer).items():
            for task in {0, 1, 2} - set(absent):
                assert not torch.equal(value[task], before[name][task]), (name, task)


@METHODS
def test_a_task_seen_late_starts_as_at_its_own_first_step(case):
    net, balancer, alone = Net(), case.build(3), case.build(3)
    for seed in range(3):
        step(balancer, net, seed, absent=(1,), shared=net.shared())
    step(balancer, net, 3)
    step(alone, net, 3, shared=net.shared())
    for name, value in by_task(balancer).items():
        torch.testing.assert_close(value[1], getattr(alone, name)[1])


# --- state -------------------------------------------------------------------------------------------------------


@METHODS
@pytest.mark.parametrize("how", ["state_dict", "into a used one", "deepcopy", "inside a model"])
def test_a_copy_goes_on_with_the_same_numbers(case, how):
    net, balancer = Net(dtype=torch.float32), case.build(3)
    for seed in range(3):
        step(balancer, net, seed, absent=(1,) if seed == 1 else ())
    if how == "deepcopy":
        other = copy.deepcopy(balancer)
    elif how == "inside a model":
        model = nn.ModuleDict({"balancer": case.build(3)})
        model.load_state_dict(stored(nn.ModuleDict({"balancer": balancer}).state_dict()))
        other = model["balancer"]
    else:
        other = case.build(3)
        if how == "into a used one":
            step(other, Net(5), 0)
        other.load_state_dict(stored(balancer.state_dict()))
    twin = copy.deepcopy(net)
    for seed in range(3, 6):
        absent = (0,) if seed == 4 else ()
        shared = twin.shared() if how == "into a used one" and seed > 3 else None
        if how == "into a used one" and seed == 3:
            other._layout = Leaves()  # a new process knows none
        assert torch.equal(
            step(balancer, net, seed, absent=absent), step(other, twin, seed, absent=absent, shared=shared)
        )
    assert all(torch.equal(value, getattr(other, name)) for name, value in lazy(balancer).items())


@METHODS
def test_a_saved_state_that_is_empty_empties(case):
    net, balancer = Net(), case.build(3)
    empty = stored(balancer.state_dict())
    first = step(balancer, net, 0)
    step(balancer, net, 1)
    balancer.load_state_dict(empty)
    assert torch.equal(step(balancer, net, 0), first)


@METHODS
def test_reset_and_conversion(case):
    net, balancer = Net(), case.build(3)
    first = [step(balancer, net, seed) for seed in range(3)]
    balancer.reset()
    assert all(value.numel() == 0 for value in lazy(balancer).values())
    assert all(torch.equal(one, step(balancer, net, seed)) for seed, one in enumerate(first))
    balancer.to(torch.float32)
    assert bool(torch.isfinite(step(balancer, net, 3)).all())
    assert all(value.dtype == torch.float64 for value in lazy(balancer).values())


@METHODS
@pytest.mark.parametrize("bad", ["loss", "gradient", "combined"])
def test_a_refused_step_leaves_the_state_without_copying_it(case, bad, monkeypatch):
    net, balancer, twin = Net(), case.build(3), case.build(3)
    for one in (balancer, twin):
        step(one, net, 0)
    before = lazy(balancer)
    contents = {name: value.clone() for name, value in before.items()}
    losses = net.losses(1)
    if bad == "loss":
        losses[1] = losses[1] * float("inf")
    elif bad == "gradient":
        losses[1] = losses[1] + (net.first.weight.sum() * 0).sqrt()
    else:
        aggregate = type(balancer).aggregate

        def broken(self, jacobian, values, present):
            found = aggregate(self, jacobian, values, present)
            direction = found if isinstance(found, torch.Tensor) else found[0]
            return direction * float("nan")

        monkeypatch.setattr(type(balancer), "aggregate", broken)
    net.zero_grad()
    with pytest.raises(NonFiniteError):
        balancer.backward(losses)
    monkeypatch.undo()
    assert all(p.grad is None for p in net.parameters())
    for name, value in before.items():
        assert getattr(balancer, name) is value  # the very tensor: nothing was copied to put it back
        assert torch.equal(value, contents[name])
    assert torch.equal(step(balancer, net, 1), step(twin, net, 1))


@METHODS
def test_a_step_never_writes_into_the_state_of_before(case):
    net, balancer = Net(), case.build(3)
    for seed in range(3):
        step(balancer, net, seed)
        kept, contents = lazy(balancer), {name: value.clone() for name, value in lazy(balancer).items()}
        step(balancer, net, seed, absent=(seed,))
        assert all(torch.equal(value, contents[name]) for name, value in kept.items())


@METHODS
def test_a_skipped_step_of_a_scaler_leaves_the_state(case):
    net, balancer = Net(), case.build(3)
    step(balancer, net, 0)
    before = lazy(balancer)
    losses = net.losses(1)
    losses[0] = losses[0] + (net.first.weight.sum() * 0).sqrt()
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    assert balancer.backward(losses, scaler=scaler).skipped
    assert all(getattr(balancer, name) is value for name, value in before.items())


# --- with other balancers ----------------------------------------------------------------------------------------


@METHODS
def test_a_chain_keeps_the_columns_too(case):
    net, balancer = Net(), Chain(Uncertainty(3), case.build(3))
    assert balancer.keeps_columns
    step(balancer, net, 0)
    step(balancer, net, 1, order=(2, 1, 0), absent=(1,))
    with pytest.raises(OptionError, match="the 4 of the steps before"):
        step(balancer, net, 2, shared=net.shared()[:1])
    other = Chain(Uncertainty(3), case.build(3))
    with pytest.raises(OptionError, match="pass shared="):
        step(other, net, 0, absent=(1,))
    other.load_state_dict(stored(balancer.state_dict()))
    assert torch.equal(step(other, net, 3), step(balancer, net, 3))


def test_weights_of_the_state_reach_the_report_and_the_heads():
    net, balancer = Net(), BY_KEY["excess_mtl"].build(3, eta=1.0)
    step(balancer, net, 0)
    net.zero_grad()
    report = balancer.backward(net.losses(1))
    plain = Net()
    Equal(3).backward(plain.losses(1))
    assert float(report.weights.sum()) == pytest.approx(3.0)
    assert float((report.weights - 1).abs().max()) > 0.01
    for weight, head, other in zip(report.weights, net.heads, plain.heads, strict=True):
        torch.testing.assert_close(head.weight.grad, weight.to(other.weight) * other.weight.grad)
