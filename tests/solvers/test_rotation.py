"""Rotations and their loss: orthogonal, and derivatives against differences."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from counterpoint.solvers.rotation import rotation_gradient, rotation_loss, rotation_matrix

seeds = st.integers(0, 10_000)


def problem(seed, size=4, samples=5):
    generator = torch.Generator().manual_seed(seed)
    angles = torch.randn(size * (size - 1) // 2, generator=generator, dtype=torch.float64)
    rotated, reference = (torch.randn(samples, size, generator=generator, dtype=torch.float64) for _ in range(2))
    return angles, rotated, reference


@given(seeds, st.floats(-2, 2))
def test_rotations_are_orthogonal_and_of_determinant_one(seed, exponent):
    angles, _, _ = problem(seed)
    found = rotation_matrix(angles * 10**exponent, 4)
    # the exponential of a matrix of length 100 is squared seven times, and rounding grows with it
    torch.testing.assert_close(found @ found.T, torch.eye(4).double(), rtol=0, atol=1e-11)
    assert float(torch.linalg.det(found)) == pytest.approx(1.0, abs=1e-11)


def test_known_rotations():
    assert torch.equal(rotation_matrix(torch.zeros(3), 3), torch.eye(3))
    assert torch.equal(rotation_matrix(torch.zeros(0), 1), torch.eye(1))
    angle = torch.tensor([0.3], dtype=torch.float64)
    c, s = angle.cos().item(), angle.sin().item()
    torch.testing.assert_close(rotation_matrix(angle, 2), torch.tensor([[c, s], [-s, c]], dtype=torch.float64))


@given(seeds, st.sampled_from(["paper", "released"]))
def test_the_gradient_is_that_of_differences(seed, variant):
    angles, rotated, reference = problem(seed)

    def loss(at):
        return float(rotation_loss(rotation_matrix(at, 4), rotated, reference, variant=variant))

    step = 1e-5
    shifts = torch.eye(len(angles), dtype=torch.float64) * step
    expected = torch.tensor([(loss(angles + d) - loss(angles - d)) / (2 * step) for d in shifts], dtype=torch.float64)
    found = rotation_gradient(angles, rotated, reference, variant=variant)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-8 * float(rotated.norm() * reference.norm()))


@given(seeds)
def test_the_losses_of_paper_and_released_code_differ_by_a_factor_and_a_constant(seed):
    angles, rotated, reference = problem(seed)
    paper, released = (rotation_gradient(angles, rotated, reference, variant=v) for v in ("paper", "released"))
    torch.testing.assert_close(released, paper * 2 / len(rotated), rtol=1e-9, atol=1e-10)
    matrix = rotation_matrix(angles, 4)
    expected = 2 * rotation_loss(matrix, rotated, reference) + rotated.square().sum() + reference.square().sum()
    found = rotation_loss(matrix, rotated, reference, variant="released")
    torch.testing.assert_close(found, expected / len(rotated))
