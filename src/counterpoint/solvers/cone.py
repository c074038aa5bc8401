"""Projection onto the dual cone of a few rows, the vectors that have no negative product with any of them."""

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy import ndarray
from torch import Tensor, from_numpy

from counterpoint.linalg import norms
from counterpoint.solvers.simplex import unit_rows

_SLACK = 1e-13  # violation, relative to the largest term, that is rounding
_SHIFT = 1e-15  # added to the diagonal of systems, so that none is singular; it moves products by less than _SLACK
_LARGE_SHIFT = 1e-7  # the same for a matrix that is only accurate to float32
_REGULAR = 50.0  # entries of an inverse up to this have 13 digits
_MAX_EXCHANGES = 30  # rounds of block pivoting; 3 to 6 are usual
_GRACE = 3  # rounds in which the number of violations need not fall
_COMPAT = 1e-4  # both constants of TorchJD
_MAX_ENTRIES = 2**24  # of the systems that are solved at once


def project_to_dual_cone(gram: Float[Tensor, "K K"], vector: Float[Tensor, " K"]) -> tuple[Float[Tensor, " K"], float]:
    """Return ``argmin v A v`` over ``v >= vector``: the weights of the projection of ``sum_i vector_i g_i``.

    The projection is the nearest vector that has a product of at least 0 with every row; it adds to the weights only,
    and ``(A v)_i = 0`` wherever it adds. It is unique, its weights may not be.

    Args:
        gram: Inner products A of the rows g_i, float64, symmetric positive semi-definite; zero rows are allowed.
        vector: Weights before.

    Returns:
        The weights, and the largest violation of the optimality conditions, measured on rows of unit length and
        relative to the largest term.

    Example:
        >>> import torch
        >>> gram = torch.tensor([[1.0, -1.0], [-1.0, 4.0]], dtype=torch.float64)
        >>> project_to_dual_cone(gram, torch.tensor([1.0, 0.0], dtype=torch.float64))[0]
        tensor([1.0000, 0.2500], dtype=torch.float64)

    References:
        The use for gradients: Lopez-Paz and Ranzato, "Gradient Episodic Memory for Continual Learning", NeurIPS 2017,
        arXiv:1706.08840. Block pivoting: Portugal, Judice, Vicente, "A comparison of block pivoting and interior-point
        algorithms for linear least squares problems with nonnegative variables", Math. Comp. 63, 1994.
    """
    found, residual = _project(gram, vector.numpy()[None, :])
    return from_numpy(found[0]), residual


def project_rows_to_dual_cone(gram: Float[Tensor, "K K"]) -> tuple[Float[Tensor, "K K"], float]:
    """Return the weights of the projections of all rows, one after another: row i is ``argmin v A v``, ``v >= e_i``.

    The K problems share their matrix and are solved together, so the cost is that of K solutions of a system of half
    the size or less, four times or so.

    Args:
        gram: Inner products A of the rows, float64, symmetric positive semi-definite; zero rows are allowed.

    Returns:
        The weights, and the largest violation of the optimality conditions, as in :func:`project_to_dual_cone`.

    Example:
        >>> import torch
        >>> project_rows_to_dual_cone(torch.tensor([[1.0, -1.0], [-1.0, 4.0]], dtype=torch.float64))[0]
        tensor([[1.0000, 0.2500],
                [1.0000, 1.0000]], dtype=torch.float64)

    References:
        Quinton and Rey, "Jacobian Descent for Multi-Objective Optimization", arXiv:2406.16232.
    """
    found, residual = _project(gram, np.eye(len(gram)))
    return from_numpy(found), residual


def _project(gram: Float[Tensor, "K K"], bounds: Float[ndarray, "N K"]) -> tuple[Float[ndarray, "N K"], float]:
    """Solve one problem for each row of bounds."""
    lengths = norms(gram).numpy()
    kept = np.flatnonzero(lengths > 0)
    found = bounds.astype(float)
    if not len(kept):
        return found, 0.0
    lengths = lengths[kept]
    cosine = unit_rows(gram.numpy()[np.ix_(kept, kept)], lengths)
    # unit rows have the weights y_i = v_i d_i; each problem is scaled so that its largest bound is 1
    low = bounds[:, kept] * lengths
    scale = np.maximum(np.abs(low).max(axis=1, keepdims=True), np.finfo(float).tiny)
    low = low / scale
    size = max(1, _MAX_ENTRIES // len(kept) ** 2)
    residual = 0.0
    for start in range(0, len(low), size):
        part = slice(start, start + size)
        y, worst = _solve(cosine, low[part])
        residual = max(residual, worst)
        bound = bounds[part, kept]
        found[part, kept] = np.where(y > low[part], np.maximum(y * (scale[part] / lengths), bound), bound)
    return found, residual


def _solve(cosine: Float[ndarray, "K K"], low: Float[ndarray, "N K"]) -> tuple[Float[ndarray, "N K"], float]:
    """Minimize ``y C y`` over ``y >= low`` for every row of ``low``."""
    y, free = _exchange(cosine, low)
    violation = _violation(cosine, low, y)
    for row in np.flatnonzero(~(violation <= _SLACK)):
        y[row] = _active_set(cosine, low[row], free[row])
        violation[row] = _violation(cosine, low[row, None], y[row, None])[0]
    return y, float(violation.max())


def _exchange(
    cosine: Float[ndarray, "K K"], low: Float[ndarray, "N K"]
) -> tuple[Float[ndarray, "N K"], Bool[ndarray, "N K"]]:
    """Find which entries leave their bounds by block pivoting: all violations change sides at once.

    It mostly ends at the solution. Dependent rows can keep it from that, and it then returns any point.
    """
    free, inverse = low @ cosine < 0, _inverse(cosine)
    points = np.empty_like(low)
    rows = np.arange(len(low))  # not solved yet
    fewest, grace = np.full(len(low), free.shape[1] + 1), np.full(len(low), _GRACE)
    for _ in range(_MAX_EXCHANGES):
        part, lower = free[rows], low[rows]
        y = _minimizer(cosine, inverse, lower, part)
        points[rows] = np.maximum(y, lower)
        slack = _SLACK / 2 * np.abs(y).max(axis=1, keepdims=True)
        wrong = np.where(part, y < lower - slack, y @ cosine < -slack)
        count = wrong.sum(axis=1)
        grace[rows] = np.where(count < fewest[rows], _GRACE, grace[rows] - 1)
        fewest[rows] = np.minimum(fewest[rows], count)
        again = (count > 0) & (grace[rows] >= 0)
        rows = rows[again]
        if not len(rows):
            break
        free[rows] ^= wrong[again]
    return points, free


def _inverse(cosine: Float[ndarray, "K K"]) -> Float[ndarray, "K K"] | None:
    """Return the inverse, if it has about as many digits as the matrix."""
    try:
        inverse = np.linalg.inv(cosine)
    except np.linalg.LinAlgError:
        return None
    return inverse if np.abs(inverse).max() < _REGULAR else None


def _minimizer(
    cosine: Float[ndarray, "K K"],
    inverse: Float[ndarray, "K K"] | None,
    low: Float[ndarray, "N K"],
    free: Bool[ndarray, "N K"],
) -> Float[ndarray, "N K"]:
    """Return for each problem the point with ``(C y)_i = 0`` where free and ``y = low`` elsewhere.

    The systems have as many equations as entries are free. Where most are, the inverse S has the smaller ones: the
    products t = C y are 0 where free, and elsewhere ``(S t)_i = low_i``.
    """
    if inverse is not None and 2 * free.sum() > free.size:
        return np.where(free, _solve_parts(inverse, ~free, low) @ inverse, low)
    y = np.where(free, 0.0, low)
    return y - _solve_parts(cosine, free, y @ cosine)


def _solve_parts(
    matrix: Float[ndarray, "K K"], used: Bool[ndarray, "N K"], right: Float[ndarray, "N K"]
) -> Float[ndarray, "N K"]:
    """Solve for each row the equations and unknowns that it uses; the other unknowns are 0.

    The systems have different sizes; they are filled up to the largest with rows of an identity matrix.
    """
    count, size = used.shape
    width = int(used.sum(axis=1).max(initial=0))
    if width == 0:
        return np.zeros_like(right)
    each, diagonal = np.arange(count)[:, None], np.arange(width)
    index = np.argsort(~used, axis=1, kind="stable")[:, :width]  # the used ones first
    index = np.where(used[each, index], index, size)
    padded = np.zeros((size + 1, size + 1))
    padded[:size, :size] = matrix
    blocks = padded.ravel().take(index[:, :, None] * (size + 1) + index[:, None, :])
    blocks[:, diagonal, diagonal] += np.where(index == size, 1.0, _SHIFT)
    padded = np.zeros((count, size + 1))
    padded[:, :size] = right
    try:
        found = np.linalg.solve(blocks, padded[each, index][:, :, None])[:, :, 0]
    except np.linalg.LinAlgError:  # of a matrix with a negative eigenvalue, from rounding
        found = np.linalg.solve(blocks + _LARGE_SHIFT * np.eye(width), padded[each, index][:, :, None])[:, :, 0]
    padded[:] = 0.0
    padded[each, index] = found
    return padded[:, :size]


def _violation(
    cosine: Float[ndarray, "K K"],
    low: Float[ndarray, "N K"],
    y: Float[ndarray, "N K"],
) -> Float[ndarray, " N"]:
    """Return the largest violation of ``y >= low``, ``C y >= 0`` and ``(C y)_i = 0`` where ``y_i > low_i``."""
    product = y @ cosine
    wrong = np.where(y > low, np.abs(product), np.maximum(-product, 0.0))
    wrong = np.maximum(wrong, low - y)
    return wrong.max(axis=1) / np.maximum(np.abs(y).max(axis=1), np.finfo(float).tiny)


def _active_set(
    cosine: Float[ndarray, "K K"], low: Float[ndarray, " K"], guess: Bool[ndarray, " K"]
) -> Float[ndarray, " K"]:
    """Solve one problem by Lawson and Hanson's method, for dependent rows, on which block pivoting may not end.

    Every round frees the entry with the most negative product and walks to the minimizer over the free ones, fixing
    those that reach their bound on the way. If rounding stops it, the best point so far is returned.
    """
    y, free = _first_point(cosine, low, guess)
    best, least = y, np.inf
    barred = np.zeros(len(low), dtype=bool)
    for _ in range(20 * len(low) + 20):
        violation = float(_violation(cosine, low[None, :], y[None, :])[0])
        if violation < least:
            best, least = y, violation
        product = np.where(barred | free, np.inf, cosine @ y)
        worst = int(product.argmin())
        if least <= _SLACK / 10 or not product[worst] < 0:
            break
        new_free = free.copy()
        new_free[worst] = True
        new, new_free = _walk(cosine, low, y, new_free)
        if new_free[worst]:
            barred = np.zeros(len(low), dtype=bool)
            y, free = new, new_free
        else:  # rounding: it cannot leave its bound
            barred = barred.copy()
            barred[worst] = True
    return best


def _first_point(
    cosine: Float[ndarray, "K K"], low: Float[ndarray, " K"], guess: Bool[ndarray, " K"]
) -> tuple[Float[ndarray, " K"], Bool[ndarray, " K"]]:
    """Start from a guess of the free entries and fix those below their bounds, again and again."""
    free = guess.copy()
    while free.any():
        y = _free_minimizer(cosine, low, free)
        below = free & (y <= low)
        if not below.any():
            return y, free
        free &= ~below
    return low.copy(), free


def _walk(
    cosine: Float[ndarray, "K K"], low: Float[ndarray, " K"], y: Float[ndarray, " K"], free: Bool[ndarray, " K"]
) -> tuple[Float[ndarray, " K"], Bool[ndarray, " K"]]:
    """Go to the minimizer over the free entries; at each bound on the way, fix an entry and try again."""
    free = free.copy()
    while free.any():
        target = _free_minimizer(cosine, low, free)
        blocked = np.flatnonzero(free & (target <= low))
        if not len(blocked):
            return target, free
        steps = (y[blocked] - low[blocked]) / np.maximum(y[blocked] - target[blocked], np.finfo(float).tiny)
        wall = int(blocked[steps.argmin()])
        y = np.maximum(y + min(float(steps.min()), 1.0) * (target - y), low)
        free[wall] = False
        y[wall] = low[wall]
    return low.copy(), free


def _free_minimizer(
    cosine: Float[ndarray, "K K"], low: Float[ndarray, " K"], free: Bool[ndarray, " K"]
) -> Float[ndarray, " K"]:
    """Return the point with ``(C y)_i = 0`` where free and ``y = low`` elsewhere, for any rows."""
    index = np.flatnonzero(free)
    y = np.where(free, 0.0, low)
    block, right = cosine[np.ix_(index, index)], -(cosine[index] @ y)
    try:
        found = np.linalg.solve(block, right)
        singular = not np.abs(block @ found - right).max() <= _SLACK * (1 + np.abs(found).max())
    except np.linalg.LinAlgError:
        singular, found = True, right
    y[index] = np.linalg.lstsq(block, right, rcond=None)[0] if singular else found
    return y


def regularized(gram: Float[Tensor, "K K"]) -> Float[Tensor, "K K"]:
    """Return the matrix that TorchJD projects with.

    Its trace is 1, or 0 where it was below 1e-4, and 1e-4 is added to the diagonal.
    With it the projection does not remove the conflicts of short gradients; there to reproduce results of others.
    """
    trace = gram.trace()
    scaled = gram / trace if float(trace) >= _COMPAT else torch.zeros_like(gram)
    return scaled + _COMPAT * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
