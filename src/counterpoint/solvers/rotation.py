"""Rotations that turn the gradients of one task towards those of all, for RotoGrad."""

import torch
from jaxtyping import Float
from torch import Tensor


def rotation_matrix(angles: Float[Tensor, " M"], size: int) -> Float[Tensor, "p p"]:
    """Return the rotation ``exp(A)`` of the skew matrix A with the given entries above its diagonal.

    Args:
        angles: Entries of A above the diagonal, row by row: M = p (p - 1) / 2.
        size: Number of rows p.

    Example:
        >>> rotation_matrix(torch.tensor([torch.pi / 2]), 2).round()
        tensor([[ 0.,  1.],
                [-1.,  0.]])
    """
    row, column = torch.triu_indices(size, size, 1, device=angles.device)
    above = angles.new_zeros(size, size).index_put((row, column), angles)
    return torch.linalg.matrix_exp(above - above.mT)


def rotation_loss(
    rotation: Float[Tensor, "p p"],
    rotated: Float[Tensor, "N p"],
    reference: Float[Tensor, "N p"],
    *,
    variant: str = "paper",
) -> Float[Tensor, ""]:
    """Return what the rotation of one task minimizes: how far its gradient is from the rotated reference.

    ``-sum_n <R^T h~_n, v_n>`` in the paper, ``mean_n |R v_n - h~_n|^2`` in the released code. For rotations the two
    differ by a constant and the factor N / 2.

    Args:
        rotation: The matrix R.
        rotated: Gradients ``h~_n`` of the task's loss by the rotated features, a row for each sample (and position).
        reference: The vectors ``v_n``: what all tasks' gradients are to agree with.
        variant: ``"paper"`` or ``"released"``.

    Example:
        >>> rotation_loss(torch.eye(2), torch.tensor([[1.0, 0.0]]), torch.tensor([[0.6, 0.8]]))
        tensor(-0.6000)
    """
    aligned = reference @ rotation.mT
    if variant == "paper":
        return -(rotated * aligned).sum()
    return (aligned - rotated).square().sum(dim=1).mean()


def rotation_gradient(
    angles: Float[Tensor, " M"],
    rotated: Float[Tensor, "N p"],
    reference: Float[Tensor, "N p"],
    *,
    variant: str = "paper",
) -> Float[Tensor, " M"]:
    """Return the derivative of :func:`rotation_loss` by the angles of :func:`rotation_matrix`.

    Args:
        angles: Where it is taken.
        rotated: As for :func:`rotation_loss`; held fixed.
        reference: The same.
        variant: ``"paper"`` or ``"released"``.

    Example:
        >>> rotation_gradient(torch.zeros(1), torch.tensor([[1.0, 0.0]]), torch.tensor([[0.6, 0.8]]))
        tensor([-0.8000])
    """
    leaf = angles.detach().clone().requires_grad_()
    with torch.enable_grad():
        loss = rotation_loss(rotation_matrix(leaf, rotated.shape[1]), rotated, reference, variant=variant)
    return torch.autograd.grad(loss, leaf)[0]
