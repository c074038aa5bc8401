"""The 2-D toy problem: reference values, and a second implementation with derivatives written out by hand."""

import pytest
import torch

from counterpoint.testing import TOY_LOWER_BOUND, TOY_SETUPS, toy_losses, toy_pareto_distance
from oracles.toy import values_and_jacobian

REFERENCE = {  # computed once, independently; given to four decimals
    (-8.5, 7.5): (6.5524, 7.9008),
    (-8.5, -5.0): (4.0599, -19.4215),
    (9.0, 9.0): (7.9439, 6.6915),
    (0.0, 0.0): (0.0, 0.0),
    (-7.5, -0.5): (0.3888, -4.7545),
    (9.0, -1.0): (-8.8311, 2.8143),
    (0.0, -8.3552): (-15.0916, -15.0916),
    (7.0, -8.3552): (-19.9893, -0.3986),
    (-7.0, -8.3552): (-0.3986, -19.9893),
}
POINTS = [*REFERENCE, (-5.001, 4.0), (5.0003, 4.0), (-7 + 2 * 0.5, 0.5493061443340549), (3.0, 1e-3), (-3.0, -1e-3)]


def at(point):
    return torch.tensor(point, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize(("point", "losses"), REFERENCE.items())
def test_reference_values(point, losses):
    torch.testing.assert_close(toy_losses(at(point)).detach(), at(losses).detach(), rtol=0, atol=5e-5)


@pytest.mark.parametrize("scales", [(1.0, 1.0), (0.1, 1.0), (0.5, 0.25)])
@pytest.mark.parametrize("point", POINTS)
def test_values_and_derivatives_agree_with_the_second_implementation(point, scales):
    """Also in the valleys, on their floor, and at the kink."""
    x = at(point)
    found = toy_losses(x, scales)
    rows = torch.stack([torch.autograd.grad(loss, x, retain_graph=True)[0] for loss in found])
    values, jacobian = values_and_jacobian(*point, scales)
    torch.testing.assert_close(found.detach(), at(values).detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(rows, at(jacobian).detach(), rtol=1e-9, atol=1e-12)


def test_from_the_kink_both_losses_fall_downwards():
    x = at((0.0, 0.0))
    rows = [torch.autograd.grad(loss, x, retain_graph=True)[0] for loss in toy_losses(x)]
    for row in rows:
        assert float(row[0]) == 0
        assert float(row[1]) > 10


def test_many_points_at_once_and_the_lower_bound():
    grid = torch.cartesian_prod(torch.linspace(-12, 12, 61), torch.linspace(-12, 12, 61)).double().reshape(61, 61, 2)
    losses = toy_losses(grid, (0.1, 1.0))
    assert losses.shape == (61, 61, 2)
    torch.testing.assert_close(losses[3, 50], toy_losses(grid[3, 50], (0.1, 1.0)), rtol=0, atol=0)
    assert (losses / torch.tensor([0.1, 1.0]) > TOY_LOWER_BOUND).all()


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.9, 1.0])
def test_the_pareto_set_is_where_it_is_said_to_be(share):
    """The minimum of every weighted sum, found by Newton's method, lies within 0.08 of the segment."""
    x = torch.tensor([14 * share - 7, -8.0], dtype=torch.float64)
    weights = torch.tensor([share, 1 - share], dtype=torch.float64)

    def total(point):
        return (weights * toy_losses(point)).sum()

    for _ in range(30):
        slope = torch.autograd.functional.jacobian(total, x)
        x = x - torch.linalg.solve(torch.autograd.functional.hessian(total, x), slope)
    assert float(torch.autograd.functional.jacobian(total, x).norm()) < 1e-12
    torch.testing.assert_close(float(x[0]), 14 * share - 7, rtol=0, atol=1e-9)
    assert float(toy_pareto_distance(x)) < 0.08
    if share == 0.5:
        assert float(toy_pareto_distance(x)) < 2e-4


def test_distance_to_the_pareto_set():
    points = torch.tensor([[7.0, -8.3552], [0.0, -7.3552], [-10.0, -12.3552]])
    torch.testing.assert_close(toy_pareto_distance(points), torch.tensor([0.0, 1.0, 5.0]))


def test_the_setups_of_the_papers():
    assert {name: (setup.scales, len(setup.starts), setup.steps) for name, setup in TOY_SETUPS.items()} == {
        "cagrad": ((1.0, 1.0), 3, 100_000),
        "nash_mtl": ((0.1, 1.0), 5, 35_000),
        "famo": ((0.1, 1.0), 5, 50_000),
        "aligned_mtl": ((0.5, 0.5), 5, 35_000),
    }
    for setup in TOY_SETUPS.values():
        assert set(setup.starts) <= set(REFERENCE)
        assert setup.rate == 1e-3
