"""PCGrad: projection of conflicting gradients."""

from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from counterpoint._checks import check_choice
from counterpoint.balancers._base import GramBalancer
from counterpoint.linalg import nonzero_rows, projected_rows, random_orders


def pcgrad_weights(
    gram: Float[Tensor, "K K"], orders: Int[Tensor, "K K-1"], *, reduction: str = "sum"
) -> Float[Tensor, " K"]:
    """Return the weights of the sum of the projected gradients.

    Each gradient g_i is projected, for the other tasks j in turn, onto the normal plane of the *original* g_j
    whenever its current product with g_j is negative. Done on coefficients of the original rows, which is exact.

    Args:
        gram: Inner products of the task gradients, symmetric positive semi-definite.
        orders: Row i lists the other tasks in the order in which g_i is projected.
        reduction: ``"sum"`` (the paper) or ``"mean"`` over tasks.

    Returns:
        Weights, at least 1 (``"sum"``); 0 for a zero gradient, which takes no part; 1/K if all are zero.

    Example:
        >>> pcgrad_weights(torch.tensor([[1.0, -1.0], [-1.0, 4.0]]), torch.tensor([[1], [0]]))
        tensor([2.0000, 1.2500])

    References:
        Yu et al., "Gradient Surgery for Multi-Task Learning", NeurIPS 2020, arXiv:2001.06782. The
        released TensorFlow code shuffles a copy, so its order is fixed; ours is random, as in the paper. No epsilon in
        the division.
    """
    kept = nonzero_rows(gram)
    if not bool(kept.any()):
        return torch.full_like(gram.diagonal(), 1 / len(gram))
    weights = projected_rows(gram, orders).sum(dim=0) * kept
    return weights / len(gram) if reduction == "mean" else weights


@final
class PCGrad(GramBalancer):
    """PCGrad: each gradient is projected onto the normal plane of those that it conflicts with.

    See :func:`pcgrad_weights` for the mathematics. For two tasks no conflict is left; for more the result depends on
    the random order and may still conflict with some task.

    Args:
        num_tasks: Number of tasks K.
        tasks: Names of the tasks.
        reduction: ``"sum"`` (the paper) or ``"mean"`` over the tasks of the step.
        generator: Source of the random orders.
    """

    key = "pcgrad"
    equation = "g_i <- g_i - (<g_i, g_j> / |g_j|^2) g_j  if <g_i, g_j> < 0, j in random order;  v = sum_i g_i"
    source = "Yu et al., Gradient Surgery for Multi-Task Learning, NeurIPS 2020, arXiv:2001.06782"
    provenance = "paper; released code read, its order is not random"
    scale = "sum"
    avoid = (
        "Where no task may get worse and there are three or more: the result depends on a random order and can still "
        "conflict. Long gradients dominate the sum, and two opposed gradients stop it wherever that happens."
    )

    def __init__(
        self,
        num_tasks: int | None = None,
        *,
        tasks: Sequence[str] | None = None,
        reduction: str = "sum",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(num_tasks, tasks, generator, random=True)
        self.reduction = check_choice("PCGrad: reduction", reduction, ("sum", "mean"))

    def solve(self, gram: Tensor, losses: Tensor | None, present: tuple[int, ...]) -> Tensor:  # noqa: ARG002
        """Return PCGrad's weights for freshly drawn orders."""
        return pcgrad_weights(gram, random_orders(len(gram), self.generator), reduction=self.reduction)
