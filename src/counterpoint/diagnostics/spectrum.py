"""How many directions the task gradients span."""

import torch
from jaxtyping import Float
from torch import Tensor


def effective_rank(gram: Float[Tensor, "K K"]) -> float:
    """Return the effective rank ``exp(-sum p_i log p_i)`` of the matrix of task gradients, ``p_i = s_i / sum s``.

    The s_i are the singular values of the K x P matrix of gradients, the roots of the eigenvalues of ``gram``. 1 if
    all gradients lie on one line, K if they are orthogonal and equally long. It depends on the lengths: one gradient
    that is far longer than the others brings it close to 1.

    Args:
        gram: Inner products of the task gradients; absent tasks are left out. NaN if all gradients are zero.

    Example:
        >>> round(effective_rank(torch.eye(3)), 12)
        3.0

    References:
        Roy, Vetterli, "The Effective Rank: A Measure of Effective Dimensionality", EUSIPCO 2007. Provenance: our
        reading of the standard definition, with singular values (not their squares).
    """
    products = gram.double()
    here = ~products.diagonal().isnan()
    if not bool(here.any()):
        return float("nan")
    values = torch.linalg.eigvalsh(products[here][:, here]).clamp(min=0).sqrt()
    total = values.sum()
    if not bool(total > 0):
        return float("nan")
    shares = values / total
    return float(torch.exp(-torch.special.xlogy(shares, shares).sum()))
