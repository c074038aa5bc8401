"""Methods that work on coefficients of the gradients give what loops over the gradients themselves give."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from counterpoint.balancers import MSI, POMSI, GradVac, PCGrad
from counterpoint.balancers.gradvac import gradvac_weights
from counterpoint.balancers.pcgrad import pcgrad_weights
from counterpoint.linalg import combination_norms, gram, random_orders
from oracles.surgery import gradvac_vectors, pair_vectors, pcgrad_vectors, vaccine_vectors

TOLERANCE = 1e-9  # float64; orders of a few dozen operations on rows whose lengths differ by e^6


def problem(seed):
    rng = np.random.default_rng(seed)
    num_tasks, columns = int(rng.integers(2, 8)), int(rng.integers(8, 20))
    jacobian = rng.normal(size=(num_tasks, columns)) * np.exp(rng.uniform(-3, 3, size=(num_tasks, 1)))
    if rng.random() < 0.3:
        jacobian[rng.integers(num_tasks)] = 0
    return jacobian


def orders_of(balancer, num_tasks, count=1):
    """The orders that the next step of a balancer will draw."""
    copy = torch.Generator()
    copy.set_state(balancer.generator.get_state())
    return [random_orders(num_tasks, copy) for _ in range(count)]


def assert_close(found, expected, jacobian):
    assert np.abs(np.asarray(found) - expected).max() <= TOLERANCE * np.abs(jacobian).max()


seeds = st.integers(0, 10_000)


@given(seeds)
def test_pcgrad(seed):
    jacobian = problem(seed)
    orders = random_orders(len(jacobian), torch.Generator().manual_seed(seed))
    weights = pcgrad_weights(gram(torch.from_numpy(jacobian)), orders)
    assert_close(weights.numpy() @ jacobian, pcgrad_vectors(jacobian, orders.numpy()).sum(axis=0), jacobian)


@given(seeds, st.floats(0, 1))
def test_gradvac(seed, beta):
    jacobian = problem(seed)
    orders = random_orders(len(jacobian), torch.Generator().manual_seed(seed))
    rho = np.random.default_rng(seed).uniform(-1, 1, size=(len(jacobian), len(jacobian)))
    weights, new = gradvac_weights(gram(torch.from_numpy(jacobian)), torch.from_numpy(rho), orders, beta=beta)
    vectors, expected = gradvac_vectors(jacobian, orders.numpy(), rho, beta)
    scale = np.abs(vectors).max()
    assert np.abs(weights.numpy() @ jacobian - vectors.sum(axis=0)).max() <= TOLERANCE * scale
    assert np.abs(new.numpy() - expected).max() < 1e-7


@given(seeds)
def test_gradvac_with_target_zero_is_pcgrad(seed):
    products = gram(torch.from_numpy(problem(seed)))
    orders = random_orders(len(products), torch.Generator().manual_seed(seed))
    kept = products.diagonal() > 0
    found = gradvac_weights(products, torch.zeros_like(products), orders)[0]
    # rtol: the same formula written with cosines
    torch.testing.assert_close(found[kept], pcgrad_weights(products, orders)[kept], rtol=1e-9, atol=1e-9)


@given(seeds, st.floats(-0.95, 0.95))
def test_gradvac_meets_its_target(seed, target):
    rng = np.random.default_rng(seed)
    jacobian = rng.normal(size=(2, 6))
    rho = torch.full((2, 2), target, dtype=torch.float64)
    products = gram(torch.from_numpy(jacobian))
    before = float(products[0, 1] / (products[0, 0] * products[1, 1]).sqrt())
    rho[1, 0] = -0.999  # so that task 1 adds nothing of task 0, and its cosine is above the target
    weights = gradvac_weights(products, rho, torch.tensor([[1], [0]]), beta=0.0)[0]
    coefficient = float(weights[1]) - 1.0
    altered = jacobian[0] + coefficient * jacobian[1]
    after = altered @ jacobian[1] / np.linalg.norm(altered) / np.linalg.norm(jacobian[1])
    assert after == pytest.approx(max(before, target), abs=1e-9)


@given(seeds)
def test_msi_pair_over_several_steps(seed):
    balancer = MSI(len(problem(seed)), beta=0.5)
    state = np.zeros((balancer.num_tasks, balancer.num_tasks))
    for step in range(3):
        jacobian = problem(seed) * np.exp(np.random.default_rng(step).uniform(-1, 1, size=(balancer.num_tasks, 1)))
        weights = balancer.weights(gram(torch.from_numpy(jacobian)))
        vectors, state = pair_vectors(jacobian, state, 0.5)
        assert_close(weights.numpy() @ jacobian, vectors.sum(axis=0), jacobian)
        assert np.abs(balancer.similarity.numpy() - state).max() < 1e-12


@given(seeds, st.sampled_from([None, 0.6, 0.9, 1.0]), st.sampled_from([None, 2.0]))
def test_pomsi_pair(seed, constant, s_max):
    jacobian = problem(seed)
    balancer = POMSI(len(jacobian), static_target=constant, s_max=s_max, beta=0.3)
    balancer.similarity.fill_(0.8)
    orders = orders_of(balancer, len(jacobian))[0]
    weights = balancer.weights(gram(torch.from_numpy(jacobian)))
    projected = pcgrad_vectors(jacobian, orders.numpy())
    vectors, state = pair_vectors(projected, np.full((len(jacobian),) * 2, 0.8), 0.3, constant, s_max)
    assert np.abs(weights.numpy() @ jacobian - vectors.sum(axis=0)).max() <= 1e-8 * np.abs(vectors).max()
    off = ~np.eye(len(jacobian), dtype=bool)
    assert np.abs(balancer.similarity.numpy() - state)[off].max() < 1e-9


@given(seeds)
def test_pomsi_vaccine(seed):
    jacobian = problem(seed)
    balancer = POMSI(len(jacobian), rule="vaccine", beta=0.3)
    balancer.similarity.fill_(0.7)
    first, second = orders_of(balancer, len(jacobian), 2)
    weights = balancer.weights(gram(torch.from_numpy(jacobian)))
    projected = pcgrad_vectors(jacobian, first.numpy())
    vectors, state = vaccine_vectors(projected, second.numpy(), np.full((len(jacobian),) * 2, 0.7), 0.3)
    assert np.abs(weights.numpy() @ jacobian - vectors.sum(axis=0)).max() <= 1e-8 * np.abs(vectors).max()
    off = ~np.eye(len(jacobian), dtype=bool)
    assert np.abs(balancer.similarity.numpy() - state)[off].max() < 1e-9


@given(seeds, st.floats(0.1, 10))
def test_projection_scales_with_each_gradient(seed, factor):
    jacobian = problem(seed)
    orders = random_orders(len(jacobian), torch.Generator().manual_seed(seed)).numpy()
    scales = np.exp(np.random.default_rng(seed).uniform(-2, 2, size=(len(jacobian), 1))) * factor
    plain, scaled = pcgrad_vectors(jacobian, orders), pcgrad_vectors(jacobian * scales, orders)
    assert np.abs(scaled - scales * plain).max() < 1e-12 * np.abs(scales * jacobian).max()


def test_pcgrad_depends_on_the_order_and_is_random():
    products = torch.tensor([[6.0, -5, 2.5], [-5, 14, -2], [2.5, -2, 2.25]], dtype=torch.float64)
    balancer = PCGrad(3, generator=torch.Generator().manual_seed(0))
    found = {tuple(balancer.weights(products).tolist()) for _ in range(50)}
    assert len(found) > 1


def test_opposed_gradients_do_not_divide_by_zero():
    products = gram(torch.tensor([[1.0, 0, 0], [-3.0, 0, 0], [0, 1.0, 0]], dtype=torch.float64))
    for balancer in (GradVac(3), POMSI(3, static_target=1.0)):
        for _ in range(3):
            weights = balancer.weights(products)
            assert bool(torch.isfinite(weights).all())
            direction = weights @ torch.tensor([[1.0, 0, 0], [-3.0, 0, 0], [0, 1.0, 0]], dtype=torch.float64)
            assert float(direction[1]) > 0


def test_a_gradient_that_is_projected_away_stays_away():
    """What is left of two opposed gradients is rounding; equal lengths must not blow it up."""
    first = torch.tensor([0.1, 0.7, 0.3], dtype=torch.float64)
    jacobian = torch.stack([first, -3.3 * first, torch.tensor([0.3, 0.0, -0.1], dtype=torch.float64)])
    products = gram(jacobian)
    away = torch.tensor([[1.0, 1 / 3.3, 0.0], [3.3, 1.0, 0.0]], dtype=torch.float64)
    assert combination_norms(products, away).tolist() == [0.0, 0.0]
    direction = POMSI(3, static_target=1.0).weights(products) @ jacobian
    torch.testing.assert_close(direction, jacobian[2], rtol=1e-9, atol=1e-12)
