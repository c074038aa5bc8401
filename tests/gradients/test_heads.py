"""All heads in one pass: as one pass a head, which is left to tasks that cannot be told apart."""

import pytest
import torch
from torch import nn

from counterpoint.gradients import find_scope, heads, layer_gradients, task_gradients
from counterpoint.gradients.scope import Walk


def trunk_and_heads(*, num_tasks=4, seed=0):
    torch.manual_seed(seed)
    trunk = nn.Sequential(nn.Linear(5, 7), nn.Tanh()).double()
    own = [nn.Sequential(nn.Linear(7, 3), nn.Tanh(), nn.Linear(3, 1)).double() for _ in range(num_tasks)]
    return trunk, own, torch.randn(6, 5, dtype=torch.float64)


def reference(losses, parameters):
    rows = [torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True) for loss in losses]
    return torch.stack(
        [
            torch.cat(
                [(torch.zeros_like(p) if g is None else g).flatten() for g, p in zip(row, parameters, strict=True)]
            )
            for row in rows
        ]
    )


def count_passes(monkeypatch):
    calls = []
    for name in ("_at_once", "_one_by_one"):
        original = getattr(heads, name)
        monkeypatch.setattr(heads, name, lambda *a, o=original, n=name, **k: (calls.append(n), o(*a, **k))[1])
    return calls


def check_features(losses, z, trunk, own):
    found = task_gradients(losses, features=[z], level="features", retain_graph=True)
    for task, loss in enumerate(losses):
        (expected,) = torch.autograd.grad(loss, z, retain_graph=True)
        torch.testing.assert_close(found.jacobian[task], expected.flatten())
        for leaf, gradient in zip(found.scope.private[task], found.private[task], strict=True):
            (expected,) = torch.autograd.grad(loss, leaf, retain_graph=True)
            torch.testing.assert_close(gradient, expected)


def test_features_of_separate_heads_in_one_pass(monkeypatch):
    calls = count_passes(monkeypatch)
    trunk, own, x = trunk_and_heads()
    z = trunk(x)
    check_features([head(z).square().mean() for head in own], z, trunk, own)
    assert calls == ["_at_once"]


def test_a_head_that_reads_the_features_twice():
    trunk, own, x = trunk_and_heads()
    z = trunk(x)
    losses = [(head(z) * z.sum(dim=1, keepdim=True) + head(2 * z)).square().mean() for head in own]
    check_features(losses, z, trunk, own)


def test_a_head_that_does_not_read_the_features():
    trunk, own, x = trunk_and_heads(num_tasks=2)
    z = trunk(x)
    other = torch.randn(6, 7, dtype=torch.float64)
    losses = [own[0](z).square().mean(), own[1](other).square().mean()]
    found = task_gradients(losses, features=[z], level="features")
    assert not found.jacobian[1].any()
    assert found.jacobian[0].any()


@pytest.mark.parametrize("kind", ["neck", "same loss", "hook"])
def test_tasks_that_cannot_be_told_apart_go_one_by_one(kind, monkeypatch):
    calls = count_passes(monkeypatch)
    trunk, own, x = trunk_and_heads()
    z = trunk(x)
    if kind == "hook":
        z.register_hook(lambda gradient: 2 * gradient)
    read = z.flip(1) if kind == "neck" else z
    losses = [head(read).square().mean() for head in own]
    if kind == "same loss":
        losses[1] = losses[0]
    found = task_gradients(losses, features=[z], level="features", retain_graph=True)
    assert "_at_once" not in calls
    for task, loss in enumerate(losses):
        (expected,) = torch.autograd.grad(loss, z, retain_graph=True)  # a hook acts on what is captured as well
        torch.testing.assert_close(found.jacobian[task], expected.flatten())


@pytest.mark.parametrize("shift", [False, True])
def test_layers_below_heads_in_one_pass(shift, monkeypatch):
    """With ``shift`` the heads lead into the trunk at two places, of which one is above the other."""
    calls = count_passes(monkeypatch)
    trunk, own, x = trunk_and_heads()
    below = trunk(x)
    upper = nn.Linear(7, 7).double()
    z = upper(below).tanh()
    losses = [(head(z) + (below.mean() if shift else 0.0)).square().mean() for head in own]
    parameters = [*trunk.parameters(), *upper.parameters()]
    found = layer_gradients(losses, retain_graph=True, always=True)
    assert found is not None
    rows = reference(losses, parameters)
    torch.testing.assert_close(found.gram(), rows @ rows.mT)
    assert calls == ["_at_once"]
    for task, loss in enumerate(losses):
        for leaf, gradient in zip(found.scope.private[task], found.private[task], strict=True):
            torch.testing.assert_close(gradient, torch.autograd.grad(loss, leaf, retain_graph=True)[0])


def test_a_leaf_left_out_of_shared_is_in_no_common_pass():
    trunk, own, x = trunk_and_heads(num_tasks=2)
    left_out = nn.Linear(7, 7).double()
    z = left_out(trunk(x)).tanh()
    losses = [head(z).square().mean() for head in own]
    found = layer_gradients(losses, shared=list(trunk.parameters()), retain_graph=True, always=True)
    assert found is not None
    for task, loss in enumerate(losses):
        for leaf, gradient in zip(found.scope.private[task], found.private[task], strict=True):
            torch.testing.assert_close(gradient, torch.autograd.grad(loss, leaf, retain_graph=True)[0])


def test_the_walk_knows_the_trunk():
    trunk, own, x = trunk_and_heads()
    z = trunk(x)
    losses = [head(z).mean() for head in own]
    walk = Walk()
    find_scope(losses, features=[z], walk=walk)
    assert z.grad_fn in walk.trunk
    assert losses[0].grad_fn not in walk.trunk
