"""Weights at which every row gets its share, ``(A w)_i^alpha = p_i / w_i``; alpha = 1 is Nash's bargaining solution."""

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor, from_numpy

from counterpoint.linalg import norms
from counterpoint.solvers.min_norm import is_stationary
from counterpoint.solvers.simplex import STATIONARY, unit_rows

_MAX_STEPS = 500  # 4 to 10 are usual, some 40 with lengths 1e12 apart
_SUSPICIOUS = 30  # steps after which it is asked whether there is a solution at all
_SAME = 1e-14  # difference of cosines that is rounding
_PRODUCT = 1e-14  # error of C y, relative to the terms of its sum, that is rounding
_SHARE = 1e-13  # error of the logarithm of a share that is rounding
_SHRINK, _GROW = 5.0, 1e3  # bounds of one relative step: the smallest entries follow the others, they do not lead
_FAILED = 1e-6  # a residual that is no rounding
_TINY, _HUGE = 1e-140, 1e140  # keeps logarithms and squares finite; a weight this small is zero


def bargain(
    gram: Float[Tensor, "K K"], *, alpha: float = 1.0, demands: Float[Tensor, " K"] | None = None
) -> tuple[Float[Tensor, " K"], float]:
    """Return the weights w > 0 with ``(A w)_i^alpha = p_i / w_i``, exact to rounding at any lengths of the rows.

    They minimize the strictly convex ``w A w / 2 - sum_i p_i^q w_i^(1 - q) / (1 - q)`` with q = 1 / alpha (a logarithm
    for q = 1), and every row has a positive product with the weighted sum. There is no solution where zero is a convex
    combination of the rows.

    The work is done in ``y_i = w_i d_i`` with d_i the length of row i, where the equation is that of unit rows with
    demands ``p_i d_i^(1 - alpha)``; demands of equal rows add up. Newton's method runs on the pair (y, r) of
    ``C y = r`` and ``r_i^alpha y_i = demand_i``, both positive, as interior-point methods do: where two rows nearly
    oppose each other ``C y`` is the small difference of large terms, while r keeps all its digits.

    Args:
        gram: Inner products A of the rows, float64, symmetric positive semi-definite.
        alpha: Above 0. Small values approach equal weights, large ones equal products with every row.
        demands: p, positive; default 1.

    Returns:
        The weights, 0 for a zero row, and all 0 where zero is in the convex hull of the other rows; and the largest
        error of the equation, relative to the terms of the sum ``(C y)_i``.

    Example:
        >>> import torch
        >>> bargain(torch.tensor([[4.0, 0.0], [0.0, 1.0]], dtype=torch.float64))[0]
        tensor([0.5000, 1.0000], dtype=torch.float64)

    References:
        The equation: Navon et al., "Multi-Task Learning as a Bargaining Game", ICML 2022, arXiv:2202.01017, and Ban and
        Ji, "Fair Resource Allocation in Multi-Task Learning", ICML 2024, arXiv:2402.15638. The solver is our own.
    """
    lengths = norms(gram).numpy()
    kept = np.flatnonzero(lengths > 0)
    weights = np.zeros(len(lengths))
    if not len(kept):
        return from_numpy(weights), 0.0
    lengths = lengths[kept]
    cosine = unit_rows(gram.numpy()[np.ix_(kept, kept)], lengths)
    demand = (1 - alpha) * np.log(lengths)  # logarithm, as in all that follows
    if demands is not None:
        demand += np.log(demands.numpy()[kept])
    level = float(demand.mean())
    first, group = _equal_rows(cosine)
    total = np.full(len(first), -np.inf)
    np.logaddexp.at(total, group, demand - level)
    block = cosine[np.ix_(first, first)]
    y = _newton(block, alpha, total)
    residual = 0.0 if y is None else _residual(block, alpha, total, y)
    if y is None or _has_no_solution(block, y, residual):
        return from_numpy(weights), 0.0
    part = demand - level - total[group]
    weights[kept] = np.exp(np.log(y[group]) + part + level / (1 + alpha) - np.log(lengths))
    return from_numpy(weights), residual


def _equal_rows(cosine: Float[ndarray, "K K"]) -> tuple[Int[ndarray, " N"], Int[ndarray, " K"]]:
    """Return one row of each group of equal ones, and the number of the group of each row."""
    same = cosine > 1 - _SAME
    if same.sum() == len(same):
        return np.arange(len(same)), np.arange(len(same))
    _, first, group = np.unique(same.argmax(axis=1), return_index=True, return_inverse=True)
    return first, group


def _newton(cosine: Float[ndarray, "N N"], alpha: float, demand: Float[ndarray, " N"]) -> Float[ndarray, " N"] | None:
    """Solve ``C y = r``, ``alpha log r + log y = demand``; ``None`` once a combination counts as zero.

    Newton's steps are taken whole; where an entry would become negative the step is taken in its logarithm.
    """
    size = np.abs(cosine)
    diagonal = np.diag_indices(len(demand))
    accuracy = _SHARE * (1 + float(np.abs(demand).max()) / alpha)
    mean = max(float(cosine.sum()) / len(demand), STATIONARY)
    y = np.full(len(demand), mean ** (-alpha / (1 + alpha)))  # the best point of the ray through (1, ..., 1)
    product, r = cosine @ y, y ** (-1 / alpha)
    for step in range(_MAX_STEPS):
        terms = size @ y
        gap, share = product - r, np.log(r) + (np.log(y) - demand) / alpha
        share[((y <= _TINY) | (r <= _TINY)) & (share > 0)] = 0.0  # as good as zero, and would be smaller still
        if np.abs(share).max() <= accuracy and (np.abs(gap) <= _PRODUCT * terms).all():
            break
        if float(y @ product) <= STATIONARY * float(y.sum()) ** 2 or (step == _SUSPICIOUS and is_stationary(cosine)):
            return None
        system = cosine.copy()
        system[diagonal] += r / y / alpha
        step_y = _solve(system, -gap - r * share) / y  # relative, as is the next
        step_r = -share - step_y / alpha
        y = np.clip(y * _factor(step_y), _TINY, _HUGE)
        r = np.clip(r * _factor(step_r), _TINY, _HUGE)
        product = cosine @ y
    return y


def _factor(step: Float[ndarray, " N"]) -> Float[ndarray, " N"]:
    """Return by what a relative step multiplies: it stays positive, and agrees with 1 + step to first order."""
    return np.where(step < 0, np.exp(np.clip(step, -_SHRINK, 0.0)), 1 + np.minimum(step, _GROW))


def _solve(system: Float[ndarray, "N N"], right: Float[ndarray, " N"]) -> Float[ndarray, " N"]:
    try:
        return np.linalg.solve(system, right)
    except np.linalg.LinAlgError:  # rows that are dependent, with shares below rounding
        return np.linalg.lstsq(system, right, rcond=None)[0]


def _has_no_solution(cosine: Float[ndarray, "N N"], y: Float[ndarray, " N"], residual: float) -> bool:
    """Tell whether zero is in the convex hull; the products of the solution mostly rule it out without a search.

    For the shortest combination m of the unit rows ``min_i (C y)_i <= <m, y> <= |m| |y|``, lengths in the sense of C. A
    matrix from rounded rows can have a negative eigenvalue, and then no solution at all; that eigenvalue shows how
    accurate the matrix is, and what is shorter than that counts as zero.
    """
    product = cosine @ y
    bound = float(product.min())
    if bound > 0 and bound**2 > STATIONARY * float(y @ product):
        return False
    noise = max(0.0, -float(np.linalg.eigvalsh(cosine)[0])) if residual > _FAILED else 0.0
    return is_stationary(cosine, tolerance=max(STATIONARY, len(cosine) * noise))


def _residual(
    cosine: Float[ndarray, "N N"], alpha: float, demand: Float[ndarray, " N"], y: Float[ndarray, " N"]
) -> float:
    product, expected = cosine @ y, np.exp(np.minimum((demand - np.log(y)) / alpha, 700.0))
    error = np.where((y <= _TINY) & (product > expected), 0.0, np.abs(product - expected))
    return float((error / np.maximum(np.abs(cosine) @ y, expected)).max())
