"""Conflict between tasks: pure measures of their gradients, on small matrices."""

import itertools
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from counterpoint import linalg
from counterpoint._checks import check_range
from counterpoint.solvers.min_norm import min_norm

_CANCELLED = 1e-14  # the square of a sum this much smaller than the squares of its terms is rounding
_DEPENDENT = float(torch.finfo(torch.float64).eps)  # an eigenvalue this much (times K) smaller than the largest is zero


def pairwise_cosines(gram: Float[Tensor, "K K"], tasks: Sequence[str]) -> dict[str, float]:
    """Return the cosine of each pair of task gradients by ``"a|b"``.

    Args:
        gram: Inner products of the task gradients. An absent task (NaN) and a zero gradient leave their pairs out.
        tasks: Names of the K tasks.

    Returns:
        Pair -> cosine in [-1, 1]; negative means that the two tasks conflict.

    Example:
        >>> import torch
        >>> pairwise_cosines(torch.tensor([[4.0, -1.0], [-1.0, 1.0]]), ["a", "b"])
        {'a|b': -0.5}
    """
    here = _measurable(gram).nonzero().flatten().tolist()
    cosines = linalg.cosine(gram[here][:, here]).tolist()
    pairs = itertools.combinations(range(len(here)), 2)
    return {f"{tasks[here[i]]}|{tasks[here[j]]}": cosines[i][j] for i, j in pairs}


def cosine_matrix(gram: Float[Tensor, "K K"]) -> Float[Tensor, "K K"]:
    """Return the cosines between the task gradients; NaN in the rows and columns of absent tasks and zero gradients.

    Unlike :func:`counterpoint.linalg.cosine`, which calls a zero gradient orthogonal to all, a measure says that there
    is nothing to measure.

    Args:
        gram: Inner products of the task gradients; NaN for an absent task.

    Example:
        >>> import torch
        >>> cosine_matrix(torch.tensor([[4.0, -1.0, 0.0], [-1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]))
        tensor([[ 1.0000, -0.5000,     nan],
                [-0.5000,  1.0000,     nan],
                [    nan,     nan,     nan]], dtype=torch.float64)
    """
    here = _measurable(gram)
    return _spread(linalg.cosine(gram.double()[here][:, here]), here)


def magnitude_similarity(gram: Float[Tensor, "K K"]) -> Float[Tensor, "K K"]:
    """Return ``2 d_i d_j / (d_i^2 + d_j^2)`` of the lengths of the task gradients: 1 if equal, near 0 if one dominates.

    Args:
        gram: Inner products of the task gradients; the result is NaN for an absent task and for a zero gradient.

    References:
        Yu et al., "Gradient Surgery for Multi-Task Learning", NeurIPS 2020, arXiv:2001.06782.
    """
    here = _measurable(gram)
    lengths = linalg.norms(gram.double()[here][:, here])
    ratios = lengths[:, None] / lengths[None, :]
    return _spread(2 / (ratios + 1 / ratios), here)


def curvature_bound(gram: Float[Tensor, "K K"]) -> Float[Tensor, "K K"]:
    """Return the curvature bounding measure ``(1 - cos^2) |g_i - g_j|^2 / |g_i + g_j|^2`` of each pair.

    At least 0; infinite where two gradients cancel; NaN for an absent task and for a zero gradient.

    Args:
        gram: Inner products of the task gradients.

    References:
        Yu et al., "Gradient Surgery for Multi-Task Learning", NeurIPS 2020, arXiv:2001.06782.
    """
    here = _measurable(gram)
    products = gram.double()[here][:, here]
    squares = products.diagonal()
    total = squares[:, None] + squares[None, :]
    difference = (total - 2 * products).clamp(min=0)
    summed = total + 2 * products
    bound = (1 - linalg.cosine(products).square()) * difference / summed
    return _spread(torch.where(summed > _CANCELLED * total, bound, float("inf")), here)


def conflict_rate(gram: Float[Tensor, "K K"], *, threshold: float = 0.0) -> float:
    """Return the share of pairs of tasks whose cosine is below a threshold; NaN if no pair can be measured.

    Args:
        gram: Inner products of the task gradients; absent tasks and zero gradients are in no pair.
        threshold: In [-1, 1]; Recon counts pairs below -0.1 and the like as its S-conflict score.

    Example:
        >>> import torch
        >>> conflict_rate(torch.tensor([[6.0, -5.0, 2.5], [-5.0, 14.0, -2.0], [2.5, -2.0, 2.25]]))
        0.6666666666666666
    """
    cosines = cosine_matrix(gram)
    rows, columns = torch.triu_indices(*cosines.shape, offset=1)
    pairs = cosines[rows, columns]
    pairs = pairs[~pairs.isnan()]
    return float((pairs < threshold).double().mean()) if len(pairs) else float("nan")


def dominated_conflicts(gram: Float[Tensor, "K K"]) -> Bool[Tensor, "K K"]:
    """Return which pairs conflict more than their lengths are alike: ``cos <= -similarity``.

    Condition (a) of the "tragic triad" under which gradient surgery beats the plain sum, given enough curvature.

    Args:
        gram: Inner products of the task gradients.

    References:
        Yu et al., "Gradient Surgery for Multi-Task Learning", NeurIPS 2020, arXiv:2001.06782.
    """
    return cosine_matrix(gram) <= -magnitude_similarity(gram)


def multitask_curvature(gradient: Float[Tensor, " P"], moved: Float[Tensor, " P"], step: float) -> float:
    """Return the multi-task curvature ``H = integral_0^1 g' Hess L(theta - a t g) g da`` of a step ``-t g``.

    L is the sum of the losses and g its gradient at theta. The integral is ``g' (g - g_t) / t``, with g_t the gradient
    of L after the step: exactly, by the mean-value form along the step. Together with a conflict that outweighs the
    similarity of lengths (:func:`dominated_conflicts`), a large H (``H >= l |g|^2`` with l large against
    :func:`curvature_bound` times the Lipschitz constant of the gradient) is the "tragic triad".

    Args:
        gradient: Of the summed losses before the step.
        moved: Of the summed losses, on the same batch, at ``theta - step * gradient``.
        step: t, above 0; the learning rate.

    Raises:
        OptionError: If ``step`` is not above 0.

    References:
        Yu et al., "Gradient Surgery for Multi-Task Learning", NeurIPS 2020, arXiv:2001.06782.
    """
    check_range("multitask_curvature: step", step, low=0.0, low_open=True)
    first, second = gradient.double(), moved.double()
    return float(first @ (first - second)) / step


def update_cosines(gram: Float[Tensor, "K K"], weights: Float[Tensor, " K"]) -> Float[Tensor, " K"]:
    """Return the cosine of each task gradient with the update ``sum_i w_i g_i``; negative for a task that loses.

    The smallest one, and the share of negative ones, are what to watch of any balancer. Equal weights give the angles
    to the mean.

    Args:
        gram: Inner products of the task gradients; NaN for an absent task, whose weight is not read.
        weights: Weight of each task in the update.

    Returns:
        Cosines in [-1, 1]; NaN for absent tasks and zero gradients, and for all if the update is zero.
    """
    here = _measurable(gram)
    products, chosen = gram.double()[here][:, here], weights.double()[here]
    length = linalg.combination_norms(products, chosen[None, :])[0] if bool(here.any()) else chosen.sum()
    cosines = (products @ chosen / linalg.norms(products) / length).clamp(-1.0, 1.0)
    found = torch.full((len(gram),), float("nan"), dtype=torch.float64, device=gram.device)
    found[here] = torch.where(length > 0, cosines, float("nan"))
    return found


def sign_purity(jacobian: Float[Tensor, "K P"]) -> Float[Tensor, " P"]:
    """Return the positive sign purity ``(1 + sum_i g_i / sum_i |g_i|) / 2`` of each coordinate.

    0 or 1 where all tasks agree on the sign, 0.5 where they cancel, and where all are zero.

    Args:
        jacobian: One task gradient per row.

    References:
        Chen et al., "Just Pick a Sign", NeurIPS 2020, arXiv:2010.06808.
    """
    size = jacobian.abs().sum(dim=0)
    return 0.5 * (1 + torch.where(size > 0, jacobian.sum(dim=0) / size, 0.0))


def mean_sign_purity(jacobian: Float[Tensor, "K P"]) -> float:
    """Return the mean of ``|2 P - 1|`` over the coordinates that some task moves: 1 if signs agree, 0 if all cancel.

    Args:
        jacobian: One task gradient per row; NaN is returned if all are zero.
    """
    moved = jacobian.abs().sum(dim=0) > 0
    degrees = (2 * sign_purity(jacobian) - 1).abs()[moved]
    return float(degrees.double().mean()) if len(degrees) else float("nan")


def condition_number(gram: Float[Tensor, "K K"]) -> float:
    """Return the ratio of the largest to the smallest nonzero singular value of the matrix of task gradients.

    Args:
        gram: Inner products of the task gradients; absent tasks are left out. NaN if all gradients are zero.

    References:
        Senushkin et al., "Independent Component Alignment for Multi-Task Learning", CVPR 2023, arXiv:2305.19000.
    """
    here = _measurable(gram)
    if not bool(here.any()):
        return float("nan")
    values = torch.linalg.eigvalsh(gram.double()[here][:, here])
    return float((values[-1] / values[values > _DEPENDENT * len(values) * values[-1]][0]).sqrt())


def dominance_ratio(gram: Float[Tensor, "K K"]) -> float:
    """Return the length of the longest task gradient over that of the shortest.

    Args:
        gram: Inner products of the task gradients; absent tasks are left out. Infinite if one gradient is zero, NaN if
            all are.
    """
    lengths = linalg.norms(gram.double())
    lengths = lengths[~gram.diagonal().isnan()]
    return float(lengths.max() / lengths.min()) if len(lengths) else float("nan")


def stationarity_gap(gram: Float[Tensor, "K K"]) -> float:
    """Return the length of the shortest convex combination of the task gradients; 0 at Pareto-stationary points.

    Args:
        gram: Inner products of the task gradients; absent tasks are left out. NaN if all are absent.

    Example:
        >>> import torch
        >>> round(stationarity_gap(torch.tensor([[1.0, 0.0], [0.0, 1.0]])), 6)
        0.707107
    """
    here = ~gram.diagonal().isnan()
    if not bool(here.any()):
        return float("nan")
    products = gram.double()[here][:, here].cpu()
    weights, _ = min_norm(products)
    return float(linalg.combination_norms(products, weights[None, :])[0])


def _measurable(gram: Tensor) -> Tensor:
    """Return which tasks are present and have a gradient that is not zero."""
    present = ~gram.diagonal().isnan()
    found = present.clone()
    if bool(present.any()):
        found[present] = linalg.nonzero_rows(gram[present][:, present])
    return found


def _spread(measured: Tensor, here: Tensor) -> Tensor:
    """Return a measure of some tasks on all of them, NaN for the others."""
    found = torch.full((len(here), len(here)), float("nan"), dtype=torch.float64, device=here.device)
    at = here.nonzero().flatten()
    found[at[:, None], at[None, :]] = measured
    return found
