"""The Gram matrix made in stretches: equal to that of the rows in float64, and in how much memory."""

import weakref

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from counterpoint.balancers import MGDA, PCGrad
from counterpoint.blocks import MLP, ResNet18
from counterpoint.errors import OptionError
from counterpoint.gradients import group_grams, low_memory, low_memory_gradients, task_gradients


def dense(*shape):
    return torch.randn(*shape, dtype=torch.float64)


class Block(nn.Module):
    """Two paths that meet again."""

    def __init__(self, width):
        super().__init__()
        self.one, self.two, self.norm = nn.Linear(width, width), nn.Linear(width, width), nn.LayerNorm(width)

    def forward(self, x):
        return x + self.two(self.one(self.norm(x)).relu())


class Tied(nn.Module):
    """One weight at the begin and at the end: nothing between them may be cut."""

    def __init__(self):
        super().__init__()
        self.first, self.between = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x):
        return self.first(self.between(self.first(x).tanh()).tanh())


class Convolutions(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(True), nn.Conv2d(4, 3, 2), nn.Flatten()
        )

    def forward(self, x):
        return self.body(x[:, None, :, None] * x[:, None, None, :])


TRUNKS = {
    "mlp": (lambda: nn.Sequential(*[m for _ in range(4) for m in (nn.Linear(6, 6), nn.Tanh())]), 4),
    "wide mlp": (lambda: nn.Sequential(nn.Linear(6, 90), nn.Tanh(), nn.Linear(90, 90), nn.ReLU(), nn.Linear(90, 4)), 3),
    "residual": (lambda: nn.Sequential(Block(6), Block(6), Block(6)), 3),
    "tied": (Tied, 1),
    "convolutions": (Convolutions, 1),
    "attention": (lambda: nn.Sequential(nn.Unflatten(0, (-1, 1)), nn.TransformerEncoderLayer(6, 2, 9, 0.0)), 1),
}


def losses_of(z, num_tasks=4):
    torch.manual_seed(7)
    heads = [nn.Linear(z.flatten(1).shape[1], 1).to(z) for _ in range(num_tasks)]
    return [(head(z.flatten(1)) - k).square().mean() for k, head in enumerate(heads)]


def check_gram(losses, scale=1.0):
    found = low_memory_gradients(losses, retain_graph=True, scale=scale)
    assert found is not None
    plain = task_gradients(losses, shared=found.leaves, retain_graph=True)
    torch.testing.assert_close(found.gram(), plain.jacobian @ plain.jacobian.T, rtol=1e-10, atol=1e-13)
    return found, plain


def check(losses, scale=1.0):
    found, plain = check_gram(losses, scale)
    weights = torch.linspace(-1.0, 2.0, len(losses), dtype=torch.float64)
    pieces = torch.cat([piece.flatten() for piece in found.combine(weights)])
    torch.testing.assert_close(pieces, weights @ plain.jacobian, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("scale", [1.0, 1024.0])
@pytest.mark.parametrize("name", TRUNKS)
def test_equal_to_the_rows(name, scale, monkeypatch):
    torch.manual_seed(0)
    parts = []
    inside = low_memory.find_stretches
    monkeypatch.setattr(low_memory, "find_stretches", lambda *args: parts.append(inside(*args)) or parts[0])
    build, least = TRUNKS[name]
    check(losses_of(build().double()(dense(5, 6))), scale)
    assert sum(bool(part.layers or part.rest) for part in parts[0]) >= least


@pytest.mark.parametrize("every", [False, True])
@pytest.mark.parametrize("num_tasks", [2, 3])
def test_heads_that_begin_at_several_places(num_tasks, every, monkeypatch):
    if every:  # cut also where it saves nothing: at the place where the second head begins
        monkeypatch.setattr(low_memory, "_worthwhile", lambda places, position, sizes: places)
    torch.manual_seed(0)
    first, second = Block(6).double(), Block(6).double()
    one = first(dense(5, 6)).tanh()
    two = second(one)
    losses = [two.square().sum(), one.sum() + two.exp().mean(), one.pow(3).sum()][:num_tasks]
    check(losses)


def test_a_hook_acts_once():
    """At the output of a layer, between layers, and where the heads begin."""
    torch.manual_seed(0)
    z = dense(5, 6)
    for _ in range(3):
        z = nn.Linear(6, 6).double()(z)
        z.register_hook(lambda gradient: gradient * 3)
        z = z.tanh()
        z.register_hook(lambda gradient: gradient.clamp(min=-1e-3) * 0.5)
    check_gram(losses_of(z))


class Scaled(nn.Module):
    """Two layers in a module whose full backward hook doubles what leaves it."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64))
        self.body[2].register_full_backward_hook(lambda module, sent, arrived: (2 * sent[0],))

    def forward(self, x):
        return self.body(x)


@pytest.mark.parametrize("kept", [True, False])
def test_a_full_backward_hook_meets_the_gradient_of_its_own_task(kept, monkeypatch):
    """The hook keeps what arrives at the output of the module; other tasks must not come in between."""
    monkeypatch.setattr(low_memory, "_LITTLE", 1.0 if kept else 0.0)
    torch.manual_seed(0)
    trunk = Scaled().double()
    losses = losses_of(trunk(dense(5, 64)), 2)
    rows = []
    for loss in losses:
        alone = torch.autograd.grad(loss, list(trunk.parameters()), retain_graph=True)
        rows.append(torch.cat([gradient.flatten() for gradient in alone]))
    wanted = torch.stack(rows) @ torch.stack(rows).T
    parts = group_grams(losses, {"trunk": list(trunk.parameters())})
    torch.testing.assert_close(parts["trunk"], wanted, rtol=1e-10, atol=1e-14)
    balancer = MGDA(2)
    balancer.engine = "low_memory"
    if kept:
        report = balancer.backward(losses)
    else:
        with pytest.warns(RuntimeWarning, match="is not possible for this network"):
            report = balancer.backward(losses)
    torch.testing.assert_close(report.gram, wanted, rtol=1e-10, atol=1e-14)


class SendsNothing(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        return None


@pytest.mark.parametrize("engine", ["rows", "auto", "low_memory"])
@pytest.mark.parametrize("width", [6, 200])
def test_a_layer_that_nothing_arrives_at_has_zeros(engine, width):
    torch.manual_seed(0)
    used, unused = nn.Linear(width, width), nn.Linear(width, width)
    x = torch.randn(5, width)
    balancer = MGDA(3)
    balancer.engine = engine
    balancer.backward(losses_of(used(x).tanh() + SendsNothing.apply(unused(x)), 3))
    assert all(bool(parameter.grad.any()) for parameter in used.parameters())
    assert all(torch.equal(parameter.grad, torch.zeros_like(parameter)) for parameter in unused.parameters())


def test_a_head_with_a_shared_weight_of_its_own_takes_another_way():
    layer = nn.Linear(6, 6).double()
    z = layer(dense(5, 6))
    assert low_memory_gradients([z.sum() + layer.weight.sum(), z.exp().sum() + layer.weight.square().sum()]) is None


def test_backward_writes_what_the_rows_write():
    written = []
    for engine in ("rows", "low_memory"):
        torch.manual_seed(0)
        trunk = nn.Sequential(Block(6), Block(6)).double()
        heads = nn.ModuleList([nn.Linear(6, 1).double() for _ in range(3)])
        z = trunk(dense(5, 6))
        balancer = PCGrad(3, generator=torch.Generator().manual_seed(0))
        balancer.engine = engine
        report = balancer.backward([(head(z) - k).square().mean() for k, head in enumerate(heads)])
        written.append([p.grad for p in [*trunk.parameters(), *heads.parameters()]])
        assert report.num_backward == 3 + (engine == "low_memory")
    for mine, theirs in zip(*written, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


def test_an_unknown_engine_is_refused():
    balancer = PCGrad(2)
    balancer.engine = "fast"  # pyright: ignore[reportAttributeAccessIssue]
    z = nn.Linear(3, 3)(torch.randn(2, 3))
    with pytest.raises(OptionError, match="engine"):
        balancer.backward([z.sum(), z.square().sum()])


class Peak(TorchDispatchMode):
    """Counts the bytes of the tensors made inside that are alive at once."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.known = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        old = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                key = storage._cdata
                if key not in self.known and key not in old:
                    self.known.add(key)
                    self.now += storage.nbytes()
                    self.peak = max(self.peak, self.now)
                    weakref.finalize(storage, self._free, key, storage.nbytes())
        return result

    def _free(self, key, size):
        self.known.discard(key)
        self.now -= size


def peak_of(function):
    with Peak() as peak:
        function()
    return peak.peak


@pytest.mark.parametrize(("num_tasks", "in_stretches"), [(2, False), (3, False), (12, True)])
def test_wide_layers_on_few_rows_are_kept_until_they_are_more_than_a_quarter(num_tasks, in_stretches, monkeypatch):
    parts = []
    inside = low_memory.find_stretches
    monkeypatch.setattr(low_memory, "find_stretches", lambda *args: parts.append(inside(*args)) or parts[0])
    torch.manual_seed(0)
    trunk = nn.Sequential(*[m for _ in range(3) for m in (nn.Linear(90, 90), nn.Tanh())]).double()
    check(losses_of(trunk(dense(5, 90)), num_tasks), scale=4.0)
    assert bool(parts) == in_stretches


def test_what_is_wide_between_narrow_layers_is_passed_task_by_task():
    """The gradients of an outer product, of all tasks at once, would be twice the rows."""
    first, last = nn.Linear(128, 128), nn.Linear(128 * 128, 128)
    heads = [nn.Linear(128, 1) for _ in range(16)]
    peaks = {}
    for engine in ("rows", "low_memory"):
        h = first(torch.randn(128, 128)).tanh()
        z = last((h.unsqueeze(2) * h.unsqueeze(1)).flatten(1))
        balancer = MGDA(16)
        balancer.engine = engine
        losses = [head(z).square().mean() for head in heads]
        peaks[engine] = peak_of(lambda balancer=balancer, losses=losses: balancer.backward(losses))
    assert peaks["low_memory"] < 0.8 * peaks["rows"]


def network(name):
    torch.manual_seed(0)
    if name == "mlp":
        return MLP((512,), widths=(512,) * 5), torch.randn(32, 512)
    return ResNet18((3, 64, 64)), torch.randn(16, 3, 64, 64)


@pytest.mark.parametrize(
    ("name", "num_tasks"), [("mlp", 3), ("mlp", 8), ("mlp", 40), ("resnet18", 3), ("resnet18", 8), ("resnet18", 40)]
)
def test_memory_is_near_that_of_one_backward_pass(name, num_tasks):
    """At most 1.5 times as much, where the rows need K times and the layers up to 3.5 times as much."""
    trunk, x = network(name)
    heads = nn.ModuleList([nn.Linear(trunk.channels[-1], 10) for _ in range(num_tasks)])

    def losses():
        z = trunk(x)
        z = z.flatten(2).mean(dim=2) if z.ndim > 2 else z
        trunk.zero_grad()
        heads.zero_grad()
        return [nn.functional.cross_entropy(head(z), torch.arange(len(x)) % 10) for head in heads]

    summed = torch.stack(losses()).sum()
    least = peak_of(summed.backward)
    given = losses()
    balancer = PCGrad(num_tasks)
    balancer.engine = "low_memory"
    assert peak_of(lambda: balancer.backward(given)) <= 1.5 * least
    if (name, num_tasks) == ("resnet18", 40):
        return  # the rows would take 1.8 GB
    rows, given = PCGrad(num_tasks), losses()
    rows.engine = "rows"
    assert peak_of(lambda: rows.backward(given)) > 0.9 * num_tasks * least  # what is counted is counted


def test_gradients_of_large_heads_are_added_one_after_another():
    """Where a ``.grad`` is there already, no copies of all of them are held."""
    trunk = nn.Linear(8, 8)
    heads = [nn.Linear(8, 20_000) for _ in range(8)]
    for parameter in [p for head in heads for p in head.parameters()]:
        parameter.grad = torch.zeros_like(parameter)
    z = trunk(torch.randn(2, 8)).tanh()
    losses = [head(z).square().mean() for head in heads]
    one = sum(p.numel() for p in heads[0].parameters()) * 4
    assert peak_of(lambda: PCGrad(8).backward(losses)) < (8 + 3) * one  # the gradients themselves, and one copy


def test_a_network_that_cannot_be_divided_is_told():
    """A leaf that is balanced though one task alone reaches it: there is no place where all paths meet."""
    weight, own = nn.Parameter(dense(3)), nn.Parameter(dense(3))
    balancer = MGDA(2)
    balancer.engine = "low_memory"
    with pytest.warns(RuntimeWarning, match="engine='low_memory' is not possible for this network; all 2 gradients"):
        balancer.backward([(weight * own).square().sum(), weight.exp().sum()], shared=[weight, own])
