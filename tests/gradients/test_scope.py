"""Which leaves are shared, private, below the features; and that the walk is cheap and leaves nothing behind."""

import gc
import weakref

import pytest
import torch
from torch import nn

from counterpoint.errors import GraphError
from counterpoint.gradients import find_scope


def leaf(*shape):
    return torch.randn(shape, requires_grad=True)


def same(found, *expected):
    return {id(tensor) for tensor in found} == {id(tensor) for tensor in expected} and len(found) == len(expected)


def test_two_or_more_losses_make_a_leaf_shared():
    a, b, c, d = leaf(2), leaf(2), leaf(2), leaf(2)
    scope = find_scope([(a * b).sum(), (a * c).sum(), (c * d).sum()])
    assert same(scope.shared, a, c)
    assert same(scope.private[0], b)
    assert same(scope.private[1])
    assert same(scope.private[2], d)


def test_one_loss_shares_nothing_and_the_same_loss_twice_shares_all():
    a = leaf(2)
    loss = a.sum()
    assert same(find_scope([loss]).private[0], a)
    assert same(find_scope([loss, loss]).shared, a)


def test_a_loss_that_is_part_of_another_and_a_loss_that_is_a_leaf():
    a, b = leaf(2), leaf()
    first = (a * b).sum()
    scope = find_scope([first, first * 2 + b, b])
    assert same(scope.shared, a, b)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_masks_do_not_depend_on_the_order_of_the_losses(order):
    a, b, c = leaf(2), leaf(2), leaf(2)
    hidden = a * b
    losses = [hidden.sum(), (hidden * c).sum(), (hidden * c).exp().sum() + b.sum()]
    scope = find_scope([losses[i] for i in order])
    assert same(scope.shared, a, b, c)


def test_random_graphs_against_reachability_by_differentiation():
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        leaves = [leaf(1) for _ in range(4)]
        nodes = list(leaves)
        for _ in range(12):
            i, j = torch.randint(len(nodes), (2,), generator=generator).tolist()
            nodes.append(nodes[i] * nodes[j])
        losses = [nodes[int(k)].sum() for k in torch.randint(4, len(nodes), (3,), generator=generator)]
        reached = [
            [g is not None for g in torch.autograd.grad(loss, leaves, retain_graph=True, allow_unused=True)]
            for loss in losses
        ]
        scope = find_scope(losses)
        assert same(scope.shared, *(x for k, x in enumerate(leaves) if sum(r[k] for r in reached) >= 2))
        for task in range(3):
            own = [x for k, x in enumerate(leaves) if reached[task][k] and sum(r[k] for r in reached) == 1]
            assert same(scope.private[task], *own)


def test_given_shared_leaves_keep_their_order_and_lose_strangers_and_doubles():
    a, b, c = leaf(2), leaf(2), leaf(2)
    frozen = torch.randn(2)
    losses = [(a * b * frozen).sum(), (a * b).sum()]
    scope = find_scope(losses, shared=(x for x in (b, frozen, c, b)))
    assert same(scope.shared, b)
    assert same(scope.private[0], a)
    assert same(scope.private[1], a)


def test_below_and_through_the_features():
    a, b, c, d = leaf(2), leaf(2), leaf(2), leaf(2)
    feature = a * b
    scope = find_scope([(feature * c).sum(), (feature * d * b).sum()], features=[feature])
    assert same(scope.shared, a, b)
    assert scope.through == {a}  # b is also reached past the feature
    assert scope.below == {a, b}
    assert same(scope.private[0], c)
    assert same(scope.private[1], d)


def test_features_from_one_operation_with_several_outputs():
    a, c = leaf(4), leaf(2)
    first, second = (a * 2).chunk(2)
    scope = find_scope([(first * c).sum(), second.sum()], features=[first, second])
    assert scope.through == {a}
    assert same(scope.private[0], c)


def test_other_outputs_of_the_feature_operation_are_past_the_features():
    a = leaf(4)
    first, second = (a * 2).chunk(2)
    scope = find_scope([first.sum(), second.sum()], features=[first])
    assert same(scope.shared, a)
    assert not scope.through


def test_a_feature_without_a_graph():
    a = leaf(2)
    with pytest.raises(GraphError, match="not a detached copy"):
        find_scope([a.sum(), (2 * a).sum()], features=[(a * 2).detach()])


def test_stacked_losses_reach_only_their_own_leaves():
    a, b, c = leaf(2), leaf(2), leaf(2)
    stacked = torch.stack([(a * b).sum(), (a * c).sum()])
    scope = find_scope([loss.reshape(()) for loss in stacked.unbind()])
    assert same(scope.shared, a)
    assert same(scope.private[0], b)
    assert same(scope.private[1], c)


def test_a_deep_chain_does_not_reach_the_recursion_limit():
    a = leaf(1)
    x = a
    for _ in range(5000):
        x = x * 1.0
    assert same(find_scope([x.sum(), (x * 2).sum()]).shared, a)


def test_each_node_is_expanded_once_though_the_paths_are_exponentially_many():
    a = leaf(1)
    x = a
    for _ in range(200):
        x = x + x  # two edges to the same node: 2**200 paths
    assert same(find_scope([x.sum(), (x * 2).sum()]).shared, a)


def test_a_custom_function_with_an_attribute_called_variable_is_no_leaf():
    class Source(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.variable = "mine"
            ctx.set_materialize_grads(False)
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            return g

    a = leaf(2)
    y = Source.apply(a)
    assert same(find_scope([y.sum(), (y * 2).sum()]).shared, a)


def test_the_walk_keeps_nothing_alive():
    net = nn.Sequential(nn.Linear(2, 3), nn.Tanh())
    y = net(torch.randn(2, 2))
    losses = [y.sum(), (y**2).sum()]
    alive = [weakref.ref(y), weakref.ref(losses[0])]
    gc.disable()
    try:
        scope = find_scope(losses, features=[y])
        del y, losses
        assert [ref() for ref in alive] == [None, None]  # without the garbage collector: no cycles
    finally:
        gc.enable()
    assert len(scope.shared) == 2
