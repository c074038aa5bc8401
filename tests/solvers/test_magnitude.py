"""The rules for lengths: the numbers of the specification, and what must hold for any lengths."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from counterpoint.balancers import MSI, POMSI
from counterpoint.linalg import projected_rows
from counterpoint.solvers.magnitude import (
    MagnitudeRule,
    MagnitudeState,
    learned_log_scales,
    pair_lengths,
    pair_scales,
    ratio_for,
    rescaled_weights,
    similarity,
    vaccine_scales,
)

DIGITS = 6e-7  # six digits after the point
lengths_strategy = st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=6).map(
    lambda values: torch.tensor(values, dtype=torch.float64)
)


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def usable(lengths):
    return lengths > 0


def constant(lengths, target):
    return torch.full((len(lengths), len(lengths)), target, dtype=torch.float64)


def orders(count):
    return torch.tensor([[j for j in range(count) if j != i] for i in range(count)]).reshape(count, count - 1)


def near(found, expected, tolerance=DIGITS):
    assert torch.allclose(found, torch.as_tensor(expected, dtype=torch.float64), rtol=0, atol=tolerance), found


def test_similarity():  # check 1
    first, second = tensor(1, 1, 1, 3, 1, 1, 7), tensor(1, 2, 3, 4, 4, 10, 0)
    near(similarity(first, second), [1, 0.8, 0.6, 0.96, 0.470588, 0.198020, 0])
    assert float(similarity(tensor(0), tensor(0))) == 0.0


def test_ratio():  # check 2
    near(ratio_for(tensor(0.6, 0.8, 0.96, 0.5, 1, 0)), [1 / 3, 0.5, 0.75, 0.267949, 1, 0])


@given(st.floats(0.001, 1.0))
def test_ratio_inverts_similarity(target):
    assert float(similarity(tensor(1.0), ratio_for(tensor(target)))) == pytest.approx(target, abs=1e-12)


def test_pair_of_lengths():  # check 3
    low, high = pair_lengths(tensor(1), tensor(4), tensor(0.8))
    near(torch.cat([low, high]), [1.843909, 3.687818])
    near(torch.cat([low / 1, high / 4]), [1.843909, 0.921954])
    near(low**2 + high**2, [17.0], 1e-12)
    near(similarity(low, high), [0.8], 1e-12)
    near(torch.cat(pair_lengths(tensor(1), tensor(4), tensor(1.0))), [2.915476, 2.915476])
    near(torch.cat(pair_lengths(tensor(3), tensor(4), tensor(0.98))), [3.164258, 3.871365])
    unchanged = pair_scales(tensor(3, 4), constant(tensor(3, 4), 0.9), torch.tensor([True, True]))
    assert unchanged.tolist() == [1.0, 1.0]


def test_pair_scales_of_two():  # check 4
    lengths = tensor(1, 5)
    near(pair_scales(lengths, constant(lengths, 0.8), usable(lengths)), [2.280351, 0.912140])
    near(pair_scales(lengths, constant(lengths, 1.0), usable(lengths)), [3.605551, 0.721110])


def test_pair_scales_of_three():  # check 5
    lengths = tensor(1, 2, 6)
    scales = pair_scales(lengths, constant(lengths, 0.9), usable(lengths))
    near(scales, [2.039341, 1.313299, 0.911989])
    new = scales * lengths
    near(new, [2.039341, 2.626598, 5.471935])
    near((new * new).sum(), 41.0, 1e-12)
    near(similarity(new[[0, 0, 1]], new[[1, 2, 2]]), [0.968812, 0.654476, 0.780247])


@given(lengths_strategy, st.floats(0.01, 1.0))
def test_pair_rule_keeps_energy_and_order_and_narrows_the_range(lengths, target):  # check 6
    new = lengths * pair_scales(lengths, constant(lengths, target), usable(lengths))
    assert float((new * new).sum()) == pytest.approx(float((lengths * lengths).sum()), rel=1e-12)
    assert float(new.max() / new.min()) <= float(lengths.max() / lengths.min()) * (1 + 1e-12)
    by_length = new[lengths.argsort()]
    assert bool((by_length.diff() >= -1e-12 * new.max()).all())


def test_projection_then_rescaling():  # check 7
    g = torch.tensor([[1.0, 0.0], [-4.0, 3.0]], dtype=torch.float64)
    projected = projected_rows(g @ g.T, orders(2)) @ g
    near(projected, [[0.36, 0.48], [0, 3]], 1e-12)
    lengths, before = projected.norm(dim=1), g.norm(dim=1)
    near(lengths, [0.6, 3.0], 1e-12)
    near(similarity(lengths[:1], lengths[1:]), [0.384615])
    near(similarity(before[:1], before[1:]), [0.384615])
    balancer = POMSI(2, static_target=0.8)
    near(balancer.weights(g @ g.T) @ g, [0.820926, 3.830989])
    near((pair_scales(lengths, constant(lengths, 0.8), usable(lengths))[:, None] * projected)[0], [0.820926, 1.094568])


def test_running_mean():  # check 8
    state, found = MagnitudeState.initial(2), []
    for value in (0.5, 0.8, 0.2):
        ratio = float(ratio_for(tensor(value)))
        weights, state = rescaled_weights(
            torch.diag(tensor(1.0, ratio**2)),
            torch.eye(2, dtype=torch.float64),
            state,
            orders(2),
            MagnitudeRule(beta=0.1),
        )
        assert weights.tolist() == [1.0, 1.0]
        found.append(float(state.similarity[0, 1]))
    assert found == pytest.approx([0.05, 0.125, 0.1325], abs=1e-12)
    assert torch.equal(state.similarity, state.similarity.T)


@given(st.integers(0, 10_000))
def test_projection_is_equivariant(seed):  # check 9
    draws = torch.Generator().manual_seed(seed)
    count = int(torch.randint(2, 6, (), generator=draws))
    g = torch.randn(count, 12, dtype=torch.float64, generator=draws)
    g[1] -= 0.8 * g[0]  # so that there is a conflict
    scales = torch.randn(count, 1, dtype=torch.float64, generator=draws).exp()
    order = torch.stack([torch.randperm(count, generator=draws) for _ in range(count)])
    order = order[order != torch.arange(count)[:, None]].reshape(count, count - 1)
    scaled = scales * g
    plain, found = projected_rows(g @ g.T, order) @ g, projected_rows(scaled @ scaled.T, order) @ scaled
    assert not torch.equal(plain, g)
    assert float(((found - scales * plain) / scales).abs().max()) < 1e-12 * float(g.abs().max())


def test_learned_rule():  # check 10
    lengths, a, seen = tensor(1, 5), tensor(0, 0), []
    for step in range(5):
        a = learned_log_scales(lengths, a, usable(lengths), 0.5)
        if step == 0:
            near(a.exp(), [1.194246, 0.837349])
        scaled = a.exp() * lengths
        seen.append(float(similarity(scaled[:1], scaled[1:])))
    near(torch.tensor(seen, dtype=torch.float64), [0.527564, 0.744603, 0.954029, 0.999729, 1.0])
    for _ in range(200):
        a = learned_log_scales(lengths, a, usable(lengths), 0.5)
    near(a.exp(), [math.sqrt(5), 1 / math.sqrt(5)], 1e-9)


@given(lengths_strategy)
def test_learned_rule_is_the_derivative_of_its_objective(lengths):
    a = torch.linspace(-1, 1, len(lengths), dtype=torch.float64).requires_grad_()
    scaled = a.exp() * lengths
    pairs = torch.triu_indices(len(lengths), len(lengths), 1)
    objective = (1 - similarity(scaled[pairs[0]], scaled[pairs[1]])).sum()
    (slope,) = torch.autograd.grad(objective, a)
    near(learned_log_scales(lengths, a.detach(), usable(lengths), 0.3), (a - 0.3 * slope).detach(), 1e-12)


def test_learned_static_factors_are_set_once_and_late_tasks_join():
    balancer = MSI(3, rule="learned", static_target=1.0)
    near(balancer.weights(torch.diag(tensor(1, 25)), present=[0, 1]), [math.sqrt(5), 1 / math.sqrt(5)], 1e-12)
    # the first two now have scaled lengths 2 sqrt(5) and sqrt(5), the third joins at their geometric mean sqrt(10)
    near(balancer.weights(torch.diag(tensor(4, 25, 9))), [math.sqrt(5), 1 / math.sqrt(5), math.sqrt(10) / 3], 1e-12)


@pytest.mark.parametrize("key", ["pair", "vaccine", "learned"])
def test_equal_lengths_are_left_alone(key):  # check 11
    gram = torch.tensor([[4.0, 1, -1], [1, 4, 2], [-1, 2, 4]], dtype=torch.float64)
    balancer = MSI(3, rule=key, beta=0.5)
    for _ in range(3):
        near(balancer.weights(gram), [1, 1, 1], 1e-12)


@pytest.mark.parametrize("kind", [MSI, POMSI])
@pytest.mark.parametrize("rule", ["pair", "vaccine", "learned"])
def test_zero_gradient_changes_nothing(kind, rule):  # check 12
    balancer = kind(2, rule=rule, beta=0.5)
    balancer.similarity.fill_(0.9)
    found = balancer.weights(torch.tensor([[9.0, 0], [0, 0]], dtype=torch.float64))
    assert found.tolist() == [1.0, 0.0]
    assert bool((balancer.similarity == 0.9).all())
    assert not bool(balancer.log_scale.any())


def test_vaccine_overshoots():
    lengths = tensor(1, 5)
    scales, met = vaccine_scales(lengths, constant(lengths, 0.8), usable(lengths), orders(2))
    near(scales * lengths, [2.5, 2.0], 1e-12)
    near(similarity(*(scales * lengths)), 0.975610, 1e-6)
    near(met[0, 1], 0.384615)


@given(lengths_strategy, st.floats(1.01, 5.0))
def test_bound_on_factors(lengths, s_max):
    rule = MagnitudeRule(static_target=1.0, s_max=s_max)
    count = len(lengths)
    weights, _ = rescaled_weights(
        torch.diag(lengths**2),
        torch.eye(count, dtype=torch.float64),
        MagnitudeState.initial(count),
        orders(count),
        rule,
    )
    assert float(weights.max()) <= s_max * (1 + 1e-12)
    assert float(weights.min()) >= 1 / s_max * (1 - 1e-12)
