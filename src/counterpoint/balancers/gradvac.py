"""GradVac: gradients pulled towards the cosines that they usually have."""

from collections.abc import Sequence
from typing import final

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from counterpoint._checks import check_choice, check_range
from counterpoint.balancers._base import GramBalancer
from counterpoint.linalg import nonzero_rows, norms, random_orders

_LARGEST = 0.999  # targets nearer to 1 would divide by zero
_CANCELLED = 1e-14  # a square this much smaller than that of the sum of the terms' lengths is rounding


def gradvac_weights(
    gram: Float[Tensor, "K K"],
    rho: Float[Tensor, "K K"],
    orders: Int[Tensor, "K K-1"],
    *,
    beta: float = 0.01,
    reduction: str = "sum",
) -> tuple[Float[Tensor, " K"], Float[Tensor, "K K"]]:
    """Return the weights of the sum of the altered gradients, and the new targets.

    Each gradient g_i meets the other tasks j in turn. With phi the cosine of its current form g' and the *original*
    g_j: if phi < rho_ij, a multiple of g_j is added to g' that makes the cosine rho_ij, ``|g'| (rho sqrt(1 - phi^2) -
    phi sqrt(1 - rho^2)) / (|g_j| sqrt(1 - rho^2))``. Then, always, ``rho_ij <- (1 - beta) rho_ij + beta phi``, with phi
    from before the change. With rho = 0 the weights are those of PCGrad.

    Args:
        gram: Inner products of the task gradients, symmetric positive semi-definite.
        rho: Target cosine of each ordered pair; taken as at most 0.999 in size.
        orders: Row i lists the other tasks in the order in which g_i meets them.
        beta: Rate of the moving average, in [0, 1].
        reduction: ``"sum"`` (the paper) or ``"mean"`` over tasks.

    Returns:
        Weights (1 or more for ``"sum"``, 0 for a zero gradient), and the new rho. Pairs with a zero gradient, or with a
        g' that has vanished, are skipped and their rho stays.

    Example:
        >>> gram = torch.tensor([[1.0, -1.0], [-1.0, 4.0]])
        >>> gradvac_weights(gram, torch.zeros(2, 2), torch.tensor([[1], [0]]))[0]
        tensor([2.0000, 1.2500])

    References:
        Wang et al., "Gradient Vaccine: Investigating and Improving Multi-task Optimization in Massively Multilingual
        Models", ICLR 2021, arXiv:2010.05874. No epsilon in the divisions.
    """
    kept = nonzero_rows(gram)
    if not bool(kept.any()):
        return torch.full_like(gram.diagonal(), 1 / len(gram)), rho.clone()
    matrix, usable, targets = gram.double().numpy(), kept.numpy(), rho.double().numpy().copy()
    lengths = np.where(usable, norms(gram).double().numpy(), 1.0)
    rows = np.eye(len(matrix))
    task = np.arange(len(matrix))
    for other in orders.numpy().T:  # all tasks meet their next partner at once
        products = rows @ matrix
        squares, terms = np.einsum("ij,ij->i", products, rows), np.abs(rows) @ lengths
        met = usable & usable[other] & (squares > _CANCELLED * terms * terms)
        current = np.sqrt(np.where(met, squares, 1.0))
        length, target = lengths[other], np.clip(targets[task, other], -_LARGEST, _LARGEST)
        phi = np.clip(products[task, other] / (current * length), -1.0, 1.0)
        side = np.sqrt(1 - target * target)
        added = current * (target * np.sqrt(1 - phi * phi) - phi * side) / (length * side)
        rows[task, other] += np.where(met & (phi < target), added, 0.0)
        targets[task, other] += np.where(met, beta * (phi - targets[task, other]), 0.0)
    weights = torch.from_numpy(usable @ rows).to(gram)
    return weights / len(gram) if reduction == "mean" else weights, torch.from_numpy(targets).to(rho)


@final
class GradVac(GramBalancer):
    """GradVac: each gradient is turned until its cosine with the others is at least their running mean.

    See :func:`gradvac_weights` for the mathematics. The targets are kept for the shared parameters as a whole; the
    paper also keeps them layer by layer, which needs a Gram matrix for each. The time grows with K^4: 50 s a step for
    1000 tasks.

    Args:
        num_tasks: Number of tasks K.
        tasks: Names of the tasks.
        beta: Rate of the moving average of the cosines, in [0, 1]; 0.01 in the paper.
        reduction: ``"sum"`` (the paper) or ``"mean"`` over the tasks of the step.
        generator: Source of the random orders.
    """

    key = "gradvac"
    equation = "as PCGrad, but g_i is turned until cos(g_i, g_j) = rho_ij, the running mean of that cosine"
    source = "Wang et al., Gradient Vaccine, ICLR 2021, arXiv:2010.05874"
    provenance = "paper; one group of parameters"
    scale = "sum"
    avoid = (
        "Where conflicts are to be removed: a pair is changed only when its cosine falls below its own running mean, "
        "so a conflict that is usual stays. Long gradients dominate the sum, and the result depends on a random "
        "order."
    )

    rho: Tensor

    def __init__(
        self,
        num_tasks: int | None = None,
        *,
        tasks: Sequence[str] | None = None,
        beta: float = 0.01,
        reduction: str = "sum",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(num_tasks, tasks, generator, random=True)
        self.beta = check_range("GradVac: beta", beta, low=0.0, high=1.0)
        self.reduction = check_choice("GradVac: reduction", reduction, ("sum", "mean"))
        self.add_state("rho", torch.zeros(self.num_tasks, self.num_tasks, dtype=torch.float64))

    def solve(self, gram: Tensor, losses: Tensor | None, present: tuple[int, ...]) -> Tensor:  # noqa: ARG002
        """Return the weights of one step; see :func:`gradvac_weights`."""
        index = torch.tensor(present, device=self.rho.device)
        pairs = (index[:, None], index[None, :])
        orders = random_orders(len(gram), self.generator)
        rho = self.rho[pairs].to(gram)
        weights, rho = gradvac_weights(gram, rho, orders, beta=self.beta, reduction=self.reduction)
        self.rho[pairs] = rho.to(self.rho)
        return weights
