"""The shortest vector in the convex hull of a few rows."""

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor, from_numpy

from counterpoint.linalg import norms
from counterpoint.solvers.simplex import STATIONARY, active_set, quadratic_residual, unit_rows

_SAME = 1e-14  # difference of cosines, or relative difference of lengths, that is rounding


def min_norm(gram: Float[Tensor, "K K"]) -> tuple[Float[Tensor, " K"], float]:
    """Return the simplex weights whose weighted sum of the rows is shortest: ``min_w w A w``, exact to rounding.

    The sum v is unique, the weights may not be; rows that are equal share their weight evenly.

    Args:
        gram: Inner products A of the rows, float64, symmetric positive semi-definite. May be singular; a zero row is
            itself the shortest vector.

    Returns:
        The weights, and the largest violation of ``<v, g_i> >= |v|^2`` (equality where the weight is positive),
        measured on rows of unit length and relative to the largest term ``w_j |g_j|`` of the sum.

    Example:
        >>> import torch
        >>> min_norm(torch.tensor([[1.0, 0.2], [0.2, 4.0]], dtype=torch.float64))[0]
        tensor([0.8261, 0.1739], dtype=torch.float64)

    References:
        Wolfe, "Finding the nearest point in a polytope", Mathematical Programming 11, 1976.
    """
    matrix = gram.numpy()
    lengths = norms(gram).numpy()
    zero = lengths == 0
    if zero.any():
        return from_numpy(zero / zero.sum()), 0.0
    cosine = unit_rows(matrix, lengths)
    inverse = lengths.min() / lengths
    nothing = np.zeros(len(matrix))
    weights = active_set(cosine, nothing, inverse)[0] * inverse
    same = (1 - cosine < _SAME) & (np.abs(inverse[:, None] - inverse[None, :]) <= _SAME * inverse[:, None])
    if same.sum() > len(matrix):  # equal rows also have equal products with all others
        same &= np.abs(cosine[:, None, :] - cosine[None, :, :]).max(axis=2) < _SAME
        weights = same @ (weights / same.sum(axis=1))
    weights = weights / weights.sum()
    terms = weights * lengths / float((weights * lengths) @ inverse)
    return from_numpy(weights), quadratic_residual(cosine, nothing, inverse, terms)


def is_stationary(cosine: Float[ndarray, "K K"], *, tolerance: float = STATIONARY) -> bool:
    """Tell whether zero is a convex combination of unit rows. Rows of other lengths make no difference to it.

    Args:
        cosine: Inner products of the unit rows.
        tolerance: Square of a combination, relative to that of the sum of its terms, below which it counts as zero.
    """
    y = active_set(cosine, np.zeros(len(cosine)), np.ones(len(cosine)))[0]
    return float(y @ cosine @ y) <= tolerance * float(y.sum()) ** 2
