"""The rows of every task against plain loops in float64, for all the networks that people bring."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from counterpoint import linalg
from counterpoint.errors import GraphError
from counterpoint.gradients import Workspace, measure_gram, task_gradients

X = torch.randn(6, 5, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def dense_rows(losses, leaves):
    """One row per task over the leaves, by the obvious loop."""
    if not leaves:
        return torch.zeros(len(losses), 0)
    rows = []
    for loss in losses:
        found = torch.autograd.grad(loss, leaves, retain_graph=True, allow_unused=True)
        pieces = [torch.zeros_like(p) if g is None else g.to_dense() for g, p in zip(found, leaves, strict=True)]
        rows.append(torch.cat([piece.flatten().double() for piece in pieces]))
    return torch.stack(rows)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(5, 7), nn.Linear(7, 4)
        self.heads = nn.ModuleList([nn.Linear(4, 1) for _ in range(3)])
        self.scale = nn.Parameter(torch.ones(()))
        self.double()

    def stages(self, x):
        one = torch.tanh(self.first(x))
        return one, torch.tanh(self.second(one))


def case_plain(net):
    f = net.stages(X)[1]
    return [(head(f) ** 2).mean() for head in net.heads], [f]


def case_nested_features(net):
    one, two = net.stages(X)  # two depends on one, as the stages of a backbone do
    return [(h(two) ** 2).mean() + (k * one).pow(3).sum() for k, h in enumerate(net.heads)], [one, two]


def case_nested_in_reverse_order_and_doubled(net):
    losses, (one, two) = case_nested_features(net)
    return losses, [two, one, two, one]


def case_some_tasks_use_one_feature(net):
    one, two = net.stages(X)
    return [(net.heads[0](two) ** 2).mean(), one.sum(), (net.heads[2](two)).exp().mean() * one.mean()], [one, two]


def case_chunks(net):
    a, b = net.stages(X)[1].chunk(2, dim=1)
    return [(a**2).sum(), (b**3).sum(), (a * b).sum()], [a, b]


def case_one_chunk_is_missing(net):
    a, b = net.stages(X)[1].unbind()[:2]
    return [(a**2).sum(), (b**3).sum(), (a * b).sum()], [a]


def case_bypass(net):
    f = net.stages(X)[1]
    return [(h(f) ** 2).mean() * (net.scale if k else 1.0) for k, h in enumerate(net.heads)], [f]


def case_trunk_weight_in_a_head(net):
    f = net.stages(X)[1]
    return [(h(f) ** 2).mean() + (net.first.weight * k).pow(2).sum() for k, h in enumerate(net.heads)], [f]


def case_shared_neck(net):
    f = net.stages(X)[0]
    neck = torch.tanh(net.second(f))
    return [(h(neck) ** 2).mean() for h in net.heads], [f]


def case_partly_shared(net):
    one, two = net.stages(X)
    return [one.sum(), (one**2).sum(), (net.heads[2](two) ** 2).mean() + (net.heads[0](two)).sum()], [one]


def case_unused_feature(net):
    one, two = net.stages(X)
    return [(h(two) ** 2).mean() for h in net.heads], [two, net.second(one)]


CASES = [value for name, value in list(globals().items()) if name.startswith("case_")]


def check_rows(found, losses, net):
    """Compare rows and private gradients with the loop."""
    torch.testing.assert_close(found.jacobian, dense_rows(losses, found.scope.shared), rtol=1e-10, atol=1e-12)
    for task, loss in enumerate(losses):
        leaves = found.scope.private[task]
        pieces = [torch.zeros_like(p) if g is None else g for g, p in zip(found.private[task], leaves, strict=True)]
        flat = torch.cat([torch.zeros(0, dtype=torch.float64), *(p.flatten() for p in pieces)])
        torch.testing.assert_close(flat, dense_rows([loss], leaves)[0] if leaves else flat, rtol=1e-10, atol=1e-12)
    reached = [p for p in net.parameters() if any(g is not None for g in grads_of(losses, p))]
    listed = {id(p) for p in [*found.scope.shared, *(p for own in found.scope.private for p in own)]}
    assert listed == {id(p) for p in reached}


def grads_of(losses, p):
    return [torch.autograd.grad(loss, [p], retain_graph=True, allow_unused=True)[0] for loss in losses]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
@pytest.mark.parametrize("with_features", [False, True])
@pytest.mark.parametrize("shared", ["default", "all", "first", "heads"])
def test_rows_equal_the_loop(case, with_features, shared):
    net = Net()
    losses, features = case(net)
    given = {
        "default": None,
        "all": net.parameters(),
        "first": net.first.parameters(),
        "heads": net.heads.parameters(),
    }[shared]
    found = task_gradients(losses, shared=given, features=features if with_features else (), retain_graph=True)
    check_rows(found, losses, net)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_scaled_rows_are_unscaled_again(case):
    net = Net()
    losses, features = case(net)
    for chosen in ((), features):
        check_rows(task_gradients(losses, features=chosen, scale=1024.0, retain_graph=True), losses, net)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_feature_rows_are_partial_derivatives(case):
    """Each task's row, sent through the trunk once, gives that task's gradient of the trunk."""
    net = Net()
    losses, features = case(net)
    found = task_gradients(losses, features=features, level="features", retain_graph=True)
    unique = list({id(f): f for f in features}.values())
    through = [p for p in found.scope.shared if p in found.scope.through]
    for row, loss in zip(found.jacobian, losses, strict=True):
        seeds = [piece.view_as(f) for piece, f in zip(row.split([f.numel() for f in unique]), unique, strict=True)]
        if through:
            sent = torch.autograd.grad(unique, through, seeds, retain_graph=True, allow_unused=True)
            sent = torch.cat(
                [
                    torch.zeros_like(p).flatten() if g is None else g.flatten()
                    for g, p in zip(sent, through, strict=True)
                ]
            )
            torch.testing.assert_close(sent, dense_rows([loss], through)[0], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("features", [False, True])
def test_measure_gram_writes_nothing_and_keeps_the_graph(features):
    net = Net()
    losses, cut = case_plain(net)
    trunk = [*net.first.parameters(), *net.second.parameters()]
    expected = dense_rows(losses, trunk)
    for _ in range(2):
        found = measure_gram(losses, features=cut if features else ())
        torch.testing.assert_close(found, expected @ expected.T, rtol=1e-10, atol=1e-12)
    assert all(p.grad is None for p in net.parameters())


def test_heads_are_walked_once_each_with_features_and_with_stacked_losses():
    net = Net()
    calls = []
    for k, head in enumerate(net.heads):
        head.weight.register_hook(lambda _, k=k: calls.append(k))
    losses, features = case_plain(net)
    task_gradients(losses, features=features, retain_graph=True)
    assert sorted(calls) == [0, 1, 2]
    calls.clear()
    stacked = [loss.reshape(()) for loss in torch.stack(losses).unbind()]
    task_gradients(stacked)
    assert calls == [0, 1, 2]  # LibMTL walks nine heads here


def test_number_of_trunk_passes():
    net = Net()
    passes = []
    net.first.weight.register_hook(lambda _: passes.append(1))
    for level, expected in (("parameters", 3), ("features", 0)):
        passes.clear()
        losses, features = case_plain(net)
        found = task_gradients(losses, features=features, level=level)
        assert len(passes) == expected
        assert found.num_backward == (3 if level == "parameters" else 1)


@pytest.mark.parametrize("wrong", ["detached", "elsewhere", "input"])
def test_wrong_features(wrong):
    net = Net()
    losses, (f,) = case_plain(net)
    other = {"detached": f.detach(), "elsewhere": net.first(X), "input": X}[wrong]
    with pytest.raises(GraphError, match="features"):
        task_gradients(losses, features=[other])
    assert all(p.grad is None for p in net.parameters())


def test_mixed_dtypes_and_complex_parameters():
    a = torch.randn(3, dtype=torch.bfloat16, requires_grad=True)
    b = torch.randn(3, dtype=torch.float64, requires_grad=True)
    c = torch.randn(3, dtype=torch.complex64, requires_grad=True)
    hidden = a.double() * b * c.abs() + (c * (1 + 2j)).real
    found = task_gradients([hidden.sum(), (hidden**2).sum()], shared=[a, b, c], retain_graph=True)
    rows = []
    for loss in (hidden.sum(), (hidden**2).sum()):
        g = torch.autograd.grad(loss, [a, b, c], retain_graph=True)
        rows.append(torch.cat([g[0].double(), g[1], torch.view_as_real(g[2].resolve_conj()).flatten().double()]))
    assert found.jacobian.dtype == torch.float64
    torch.testing.assert_close(found.jacobian, torch.stack(rows))
    weights = torch.tensor([2.0, 3.0])
    found.write(found.combine(weights), [1.0, 1.0], lambda _: None, weights=weights)
    grads = [p.grad for p in (a, b, c)]
    for p in (a, b, c):
        p.grad = None
    (2 * hidden.sum() + 3 * (hidden**2).sum()).backward()
    assert [g.dtype for g in grads] == [torch.bfloat16, torch.float64, torch.complex64]
    torch.testing.assert_close(grads, [p.grad for p in (a, b, c)], rtol=2e-2, atol=1e-2)
    torch.testing.assert_close(grads[1:], [p.grad for p in (b, c)], rtol=1e-5, atol=1e-5)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(5, 4, batch_first=True)

    def forward(self, x):
        return self.lstm(x[None])[0][0]


class Checkpointed(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(5, 6), nn.Linear(6, 4)

    def forward(self, x):
        hidden = checkpoint(lambda v: torch.tanh(self.one(v)), x, use_reentrant=False)
        return checkpoint(self.two, hidden, use_reentrant=False)


class InPlace(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(5, 4), nn.Linear(5, 4)

    def forward(self, x):
        y = self.one(x)
        y += self.two(x)
        y[:, 0].mul_(2.0)
        return nn.functional.relu_(y)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = nn.Linear(5, 5)
        self.out = nn.Linear(5, 4)

    def forward(self, x):
        return self.out(self.one(torch.tanh(self.one(x))))


@pytest.mark.parametrize("trunk", [Recurrent, Checkpointed, InPlace, Tied])
@pytest.mark.parametrize("level", [None, "parameters", "features"])
def test_rows_of_unusual_trunks(trunk, level):
    net = trunk().double()
    f = net(X)
    losses = [(f[:, k] ** 2).sum() + f.sum() for k in range(3)]
    found = task_gradients(losses, features=[f] if level else (), level=level or "parameters", retain_graph=True)
    leaves = list(found.scope.shared)
    assert {id(p) for p in leaves} == {id(p) for p in net.parameters()}
    expected = dense_rows(losses, [f] if level == "features" else leaves)
    torch.testing.assert_close(found.gram(), expected @ expected.T, rtol=1e-10, atol=1e-12)


def test_bfloat16_autocast():
    net = Net().float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        f = net.stages(X.float())[1]
        losses = [(head(f).float() ** 2).mean() for head in net.heads]
    found = task_gradients(losses, features=[f], retain_graph=True)
    expected = dense_rows(losses, found.scope.shared)
    torch.testing.assert_close(found.gram(), expected @ expected.T, rtol=1e-5, atol=1e-9)


@pytest.mark.filterwarnings("ignore")  # of torch's compiler
def test_compiled_trunk():
    net = Net().float()
    compiled = torch.compile(nn.Sequential(net.first, nn.Tanh(), net.second), backend="aot_eager")
    f = compiled(X.float())
    losses = [(head(f) ** 2).mean() for head in net.heads]
    for chosen in ((), (f,)):
        found = task_gradients(losses, features=chosen, retain_graph=True)
        expected = dense_rows(losses, found.scope.shared)
        assert len(found.scope.shared) == 4
        torch.testing.assert_close(found.gram(), linalg.gram(expected), rtol=1e-5, atol=1e-8)


def test_sparse_embedding_rows():
    table = nn.Embedding(7, 3, sparse=True).double()
    f = table(torch.tensor([1, 1, 4]))
    losses = [f.sum(), (f**2).sum()]
    found = task_gradients(losses, retain_graph=True)
    torch.testing.assert_close(found.jacobian, dense_rows(losses, [table.weight]))


def test_nothing_shared():
    a, b = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    found = task_gradients([a.sum(), (b * 2).sum()])
    assert found.jacobian.shape == (2, 0)
    assert torch.equal(found.gram(), torch.zeros(2, 2, dtype=torch.float64))
    found.write(found.combine(torch.ones(2)), [1.0, 3.0], lambda _: None)
    assert a.grad.tolist() == [1.0, 1.0]
    assert b.grad.tolist() == [6.0, 6.0]


def test_a_direction_that_is_a_row_does_not_alias_the_workspace():
    """A method may return a row as it is; the next step must not change the gradient that was written."""
    workspace = Workspace()
    first, second = (torch.nn.Parameter(torch.tensor([1.0, 2.0])) for _ in range(2))
    for leaf, factor in ((first, 3.0), (second, 7.0)):
        losses = [(factor * leaf).sum(), (2 * factor * leaf).sum()]
        found = task_gradients(losses, workspace=workspace)
        found.write(found.jacobian[1], [1.0, 1.0], lambda _: None)
    assert first.grad.tolist() == [6.0, 6.0]
    assert second.grad.tolist() == [14.0, 14.0]


def test_the_workspace_is_reused_and_never_copied():
    import copy

    workspace = Workspace()
    large = workspace.matrix(3, 10, torch.float32, torch.device("cpu"))
    small = workspace.matrix(2, 10, torch.float32, torch.device("cpu"))
    assert small.data_ptr() == large.data_ptr()
    assert workspace.matrix(2, 10, torch.float64, torch.device("cpu")).dtype == torch.float64
    other = copy.deepcopy(workspace).matrix(2, 10, torch.float64, torch.device("cpu"))
    assert other.data_ptr() != workspace.matrix(2, 10, torch.float64, torch.device("cpu")).data_ptr()
