"""Convex problems over the simplex, solved exactly by active sets on small matrices, whatever the scales of the rows.

The variables are ``y_i = w_i d_i`` with d_i the length of row i, so the matrix holds cosines and no row is small: a
weight of 1e-20 on a row of length 1e12 keeps all its digits. NumPy, not torch: the matrices have a few dozen rows, the
work is some twenty calls into LAPACK, and the cost of a call is three to five times lower.
"""

import math

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray
from torch import Tensor, from_numpy

from counterpoint.linalg import norms

_SLACK = 1e-13  # violation, relative to the coefficients, that is rounding and not a better point
_RESIDUAL = 1e-10  # of a linear system; beyond it the matrix counts as singular
_SMALLEST_RADIUS = 1e-8  # a smaller one moves the sum by less than this, and would drown the norm in rounding
STATIONARY = 1e-12  # square of a combination, relative to that of the sum of its terms, below which it counts as zero
_STEP = 1e-13  # relative error of the one-dimensional root
_MAX_ROOT_STEPS = 100


def linear_plus_norm(gram: Float[Tensor, "K K"], c: float) -> tuple[Float[Tensor, " K"], float]:
    """Return the simplex weights minimizing ``<g_w, g_0> + c |g_0| |g_w|``, the dual problem of CAGrad.

    g_w is the weighted sum of the rows and g_0 their mean. With ``|g_w| = min_s (|g_w|^2 / s + s) / 2`` the problem is
    a one-dimensional root over quadratic problems. On a fixed support the root has a closed form, so the search ends
    after finitely many steps, at rounding error.

    Args:
        gram: Inner products of the rows, float64, symmetric positive semi-definite; zero rows are allowed.
        c: Radius relative to the length of the mean, at least 0.

    Returns:
        The weights, and the largest violation of the optimality conditions relative to ``(1 + c) |g_0| |row|``. Where
        the best g_w is zero the weights are those of the shortest one, and the violation is that of its problem.

    References:
        The problem: Liu et al., "Conflict-Averse Gradient Descent", NeurIPS 2021, arXiv:2110.14048. The solver is our
        own.
    """
    lengths = norms(gram).numpy()
    kept = lengths > 0
    if not kept.all():
        return _with_zero_rows(gram, c, kept)
    matrix = gram.numpy()
    mean = matrix.mean(axis=1)
    length = math.sqrt(max(float(mean.mean()), 0.0))
    inverse = lengths.min() / lengths
    if length == 0.0:
        return from_numpy(np.full(len(matrix), 1 / len(matrix))), 0.0
    cosine = unit_rows(matrix, lengths)
    linear = np.clip(mean / lengths / length, -1.0, 1.0)
    if c == 0.0:
        weights = np.zeros(len(matrix))
        weights[np.argmin(mean)] = 1.0
        return from_numpy(weights), 0.0
    c = max(c, _SMALLEST_RADIUS)
    found = _root(cosine, linear, inverse, c)
    if float(found @ cosine @ found) <= STATIONARY * found.sum() ** 2:  # the norm has no derivative there
        nothing = np.zeros_like(linear)
        found = active_set(cosine, nothing, inverse)[0]
        residual = quadratic_residual(cosine, nothing, inverse, found)
    else:
        residual = _dual_residual(cosine, linear, inverse, c, found)
    weights = found * inverse
    return from_numpy(weights / weights.sum()), residual


def _with_zero_rows(gram: Tensor, c: float, kept: Bool[ndarray, " K"]) -> tuple[Tensor, float]:
    """Compare the best point without the zero rows to the value 0 that a zero row has."""
    weights = np.zeros(len(kept))
    if kept.any():
        rest = np.flatnonzero(kept)
        share = kept.mean()  # the mean over all rows is this times the mean over the rest, and the problem scales
        found, residual = linear_plus_norm(gram[np.ix_(rest, rest)], c)
        small = gram.numpy()[np.ix_(rest, rest)]
        w = found.numpy()
        radius = c * math.sqrt(max(float(small.mean()), 0.0))
        value = share * (w @ small.mean(axis=1) + radius * math.sqrt(max(float(w @ small @ w), 0.0)))
        if value < 0:
            weights[rest] = w
            return from_numpy(weights), residual
    weights[~kept] = 1 / (~kept).sum()
    return from_numpy(weights), 0.0


def _root(
    cosine: Float[ndarray, "K K"], linear: Float[ndarray, " K"], inverse: Float[ndarray, " K"], c: float
) -> Float[ndarray, " K"]:
    """Find t with |v(t)| = c t, where v(t) belongs to the minimizer of |v|^2 / 2 + t linear.y."""
    system = _bordered(cosine, inverse)
    low, high = 0.0, 2.0 / (c * float(inverse.min()))
    t = _root_on_support(system, linear, c, list(range(len(linear))))
    t = t if low < t < high else 1.0 / c
    point: tuple[Float[ndarray, " K"], list[int]] | None = None
    for _ in range(_MAX_ROOT_STEPS):
        point = _descend(system, np.append(-t * linear, 1.0), point)
        y, support = point
        length = math.sqrt(max(float(y @ cosine @ y), 0.0))
        if abs(length - c * t) <= _STEP * c * t or high - low <= _STEP * high:
            break
        if length > c * t:
            low = t
        else:
            high = t
            if length <= math.sqrt(STATIONARY) * y.sum():  # at the root it is shorter still
                break
        better = _root_on_support(system, linear, c, support)
        if abs(better - t) <= _STEP * t:
            break
        t = better if low < better < high else _between(low, high)
    assert point is not None
    return point[0]


def _between(low: float, high: float) -> float:
    return math.sqrt(low * high) if low > 0 else high / 1024


def _root_on_support(
    system: Float[ndarray, "N N"], linear: Float[ndarray, " K"], c: float, support: list[int]
) -> float:
    """Return the root if the support stays what it is: the minimizer is x + t z, with <x, C z> = 0."""
    right = np.zeros((len(system), 2))
    right[-1, 0], right[:-1, 1] = 1.0, -linear
    x, z = _affine_minimizer(system, right, support).T
    block = system[np.ix_(support, support)]
    square, slope = max(float(x @ block @ x), 0.0), max(float(z @ block @ z), 0.0)
    return math.sqrt(square / (c * c - slope)) if c * c > slope else math.inf


def _dual_residual(
    cosine: Float[ndarray, "K K"],
    linear: Float[ndarray, " K"],
    inverse: Float[ndarray, " K"],
    c: float,
    y: Float[ndarray, " K"],
) -> float:
    product = cosine @ y
    slope = linear + c * product / math.sqrt(float(y @ product))
    slack = slope - float(y @ slope) * inverse
    return float(max(-slack.min(), np.abs(slack[y > 0]).max())) / (1 + c)


def unit_rows(gram: Float[ndarray, "K K"], lengths: Float[ndarray, " K"]) -> Float[ndarray, "K K"]:
    """Return the cosines of rows, none of which is zero."""
    cosine = np.clip(gram / lengths[:, None] / lengths[None, :], -1.0, 1.0)
    np.fill_diagonal(cosine, 1.0)
    return cosine


def quadratic_residual(
    cosine: Float[ndarray, "K K"], linear: Float[ndarray, " K"], inverse: Float[ndarray, " K"], y: Float[ndarray, " K"]
) -> float:
    """Return the violation of the optimality conditions of :func:`active_set`, relative to the terms in it."""
    gradient = cosine @ y + linear
    slack = gradient - float(y @ gradient) * inverse
    return float(max(-slack.min(), np.abs(slack[y > 0]).max()) / (y.max() + np.abs(linear).max()))


def active_set(
    cosine: Float[ndarray, "K K"],
    linear: Float[ndarray, " K"],
    inverse: Float[ndarray, " K"],
) -> tuple[Float[ndarray, " K"], list[int]]:
    """Minimize ``y C y / 2 + linear.y`` over ``y >= 0`` with ``inverse.y = 1`` by Wolfe's method.

    Every round adds the row with the largest violation, then walks to the minimizer over the affine hull of the
    support, dropping rows on the way. The value falls in every round, so no support comes back and the search is
    finite. Singular matrices are no exception: an added row is never in the affine hull of the support.

    Args:
        cosine: Symmetric positive semi-definite, ones on the diagonal.
        linear: In the range of ``cosine``, so that the problem is bounded.
        inverse: Positive, largest entry 1.

    Returns:
        The minimizer and its support. If rounding stops the descent, the best point so far.

    References:
        Wolfe, "Finding the nearest point in a polytope", Mathematical Programming 11, 1976.
    """
    return _descend(_bordered(cosine, inverse), np.append(-linear, 1.0), None)


def _descend(
    system: Float[ndarray, "N N"], right: Float[ndarray, " N"], start: tuple[Float[ndarray, " K"], list[int]] | None
) -> tuple[Float[ndarray, " K"], list[int]]:
    """Solve the problem of :func:`active_set`, from a feasible point and its support if they are given."""
    cosine, inverse, linear = system[:-1, :-1], system[-1, :-1], -right[:-1]
    y, support = _first_point(system, right) if start is None else _walk(system, right, *start)
    gradient, size = cosine @ y + linear, float(np.abs(linear).max())
    value = float(y @ (gradient + linear))  # twice the objective
    for _ in range(20 * len(linear) + 20):
        slack = gradient - float(y @ gradient) * inverse
        slack[support] = 0.0
        worst = int(slack.argmin())
        if slack[worst] >= -_SLACK * (float(y.max()) + size):
            break
        new, new_support = _walk(system, right, y, [*support, worst])
        new_gradient = cosine @ new + linear
        new_value = float(new @ (new_gradient + linear))
        if not new_value < value:
            break
        y, support, gradient, value = new, new_support, new_gradient, new_value
    return y, support


def _bordered(cosine: Float[ndarray, "K K"], inverse: Float[ndarray, " K"]) -> Float[ndarray, "N N"]:
    """Return the matrix of the optimality conditions under one equation: N = K + 1."""
    size = len(inverse)
    system = np.zeros((size + 1, size + 1))
    system[:size, :size] = cosine
    system[:size, size] = system[size, :size] = inverse
    return system


def _first_point(system: Float[ndarray, "N N"], right: Float[ndarray, " N"]) -> tuple[Float[ndarray, " K"], list[int]]:
    """Start from all rows and drop those with negative coefficients, or else from the shortest row."""
    y, inverse = np.zeros(len(right) - 1), system[-1, :-1]
    support = list(range(len(y)))
    while support:
        try:
            found = _affine_minimizer(system, right, support, strict=True)
        except np.linalg.LinAlgError:
            break
        if found.min() > 0:
            y[support] = found
            return y, support
        support = [row for row, entry in zip(support, found.tolist(), strict=True) if entry > 0]
    shortest = int(inverse.argmax())
    y[shortest] = 1.0 / inverse[shortest]
    return y, [shortest]


def _walk(
    system: Float[ndarray, "N N"], right: Float[ndarray, " N"], y: Float[ndarray, " K"], support: list[int]
) -> tuple[Float[ndarray, " K"], list[int]]:
    """Go to the minimizer over the affine hull of the support; at each wall, drop a row and try again."""
    support, inverse = list(support), system[-1, :-1]
    current = y[support]
    while True:
        target = _affine_minimizer(system, right, support)
        if target.min() > 0:
            current = target
            break
        blocked = np.flatnonzero(target <= 0)
        steps = current[blocked] / np.maximum(current[blocked] - target[blocked], np.finfo(float).tiny)
        current = current + min(float(steps.min()), 1.0) * (target - current)
        wall = int(blocked[steps.argmin()])
        if len(support) == 1:
            break
        del support[wall]
        current = np.maximum(np.delete(current, wall), 0.0)
        current = current / float(inverse[support] @ current) if current.any() else current
    new = np.zeros_like(y)
    new[support] = current
    return new, support


def _affine_minimizer(
    system: Float[ndarray, "N N"],
    right: Float[ndarray, "N *M"],
    support: list[int],
    *,
    strict: bool = False,
) -> Float[ndarray, "S *M"]:
    """Solve the optimality conditions on a support; the signs are free.

    Raises:
        numpy.linalg.LinAlgError: If the system is singular and ``strict`` is given.
    """
    index = np.array([*support, len(system) - 1])
    block, values = system.take(index, axis=0).take(index, axis=1), right[index]
    try:
        found = np.linalg.solve(block, values)
        singular = not np.abs(block @ found - values).max() <= _RESIDUAL * (1 + np.abs(found).max())
    except np.linalg.LinAlgError:
        if strict:
            raise
        singular, found = True, values
    if singular and strict:
        raise np.linalg.LinAlgError("the rows are affinely dependent")
    return (np.linalg.lstsq(block, values, rcond=None)[0] if singular else found)[:-1]
