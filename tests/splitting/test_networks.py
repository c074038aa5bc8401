"""Every listed network, unchanged: outputs and gradients of the split network against explicit networks, in float64."""

import copy
import random
import re

import pytest
import torch
from torch.utils import _pytree as pytree

from counterpoint.splitting import find_layers, split, streams
from splitting.networks import CASES

EXACT = {"rtol": 1e-12, "atol": 1e-12}
COPY = re.compile(r"parametrizations\.([^.]+)\.original(\d+)$")


@pytest.fixture(params=CASES, ids=lambda case: case.name, scope="module")
def case(request):
    if request.param.needs:
        pytest.importorskip(request.param.needs, reason=f"{request.param.needs} is not installed (extra: vision)")
    return request.param


@pytest.fixture(scope="module")
def built(case):
    return case.network()


@pytest.fixture
def reference(built):
    return copy.deepcopy(built)


def explicit(reference, network, task):
    """Return a plain network with the shared values of a split one and the copies of one task."""
    plain = copy.deepcopy(reference)
    state = {}
    for key, value in network.state_dict().items():
        found = COPY.search(key)
        if found is None:
            state[key] = value
        elif int(found[2]) == task:
            state[COPY.sub(r"\1", key)] = value
    plain.load_state_dict(state)
    return plain


def set_apart(network):
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if COPY.search(name):
                parameter.add_(torch.randn_like(parameter), alpha=0.05)


def loss_of(output):
    return sum(leaf.square().mean() + leaf.sin().mean() for leaf in pytree.tree_leaves(output))


def assert_outputs_equal(ones, others):
    for one, other in zip(pytree.tree_leaves(ones), pytree.tree_leaves(others), strict=True):
        assert type(one) is torch.Tensor
        torch.testing.assert_close(one, other, **EXACT)


def assert_like_explicit_networks(network, plains, x):
    """Outputs, and gradients of the sum of all losses, of a split network are those of explicit networks."""
    outputs = streams(network(x), num_tasks=len(plains))
    sum(loss_of(output) for output in outputs).backward()
    for output, plain in zip(outputs, plains, strict=True):
        expected = plain(x)
        assert_outputs_equal(output, expected)
        loss_of(expected).backward()
    gradients = [{name: p.grad for name, p in plain.named_parameters()} for plain in plains]
    for name, parameter in network.named_parameters():
        found = COPY.search(name)
        plain_name = COPY.sub(r"\1", name)
        wanted = [gradients[int(found[2])][plain_name]] if found else [own[plain_name] for own in gradients]
        if wanted[0] is None:
            assert parameter.grad is None
        else:
            torch.testing.assert_close(
                parameter.grad, sum(wanted), rtol=1e-10, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}"
            )


def some_layers(network):
    names = list(find_layers(network))
    return random.Random(3).sample(names, max(2, len(names) // 4))


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_no_output_changes_before_training(case, reference, training):
    reference.train(training)
    network = split(copy.deepcopy(reference), some_layers(reference), 3)
    x = case.input()
    with torch.no_grad():
        expected = reference(x)
        for output in streams(network(x)):
            assert_outputs_equal(output, expected)


def test_copies_apart_equal_explicit_networks(case, reference):
    network = split(copy.deepcopy(reference), some_layers(reference), 2)
    set_apart(network)
    plains = [explicit(reference, network, task) for task in range(2)]
    assert_like_explicit_networks(network, plains, case.input())


def test_all_layers_split_is_single_task_networks(case, reference):
    network = split(copy.deepcopy(reference), list(find_layers(reference)), 2)
    set_apart(network)
    plains = [explicit(reference, network, task) for task in range(2)]
    assert_like_explicit_networks(network, plains, case.input())
    count = sum(parameter.numel() for parameter in network.parameters())
    assert count == 2 * sum(parameter.numel() for parameter in reference.parameters())
    for plain, task in zip(plains, range(2), strict=True):  # running statistics too are those of the single networks
        state = explicit(reference, network, task).state_dict()
        for key, value in plain.state_dict().items():
            torch.testing.assert_close(state[key], value, rtol=1e-10, atol=1e-12)


def test_no_layer_split_changes_nothing(case, reference):
    reference.eval()
    network = split(copy.deepcopy(reference), [], 2)
    assert network.state_dict().keys() == reference.state_dict().keys()
    assert [type(module) for module in network.modules()] == [type(module) for module in reference.modules()]
    with torch.no_grad():
        expected = reference(case.input())
        for output in streams(network(case.input()), num_tasks=2):
            for one, other in zip(pytree.tree_leaves(output), pytree.tree_leaves(expected), strict=True):
                assert torch.equal(one, other)
