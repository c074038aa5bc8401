"""GradOPS: every conflicting task gradient is made orthogonal to the span of all others."""

from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from counterpoint._checks import check_range
from counterpoint.balancers._base import GramBalancer
from counterpoint.linalg import combination_norms, cosine, nonzero_block, norms

_CONFLICT = 1e-12  # a cosine this little below zero is rounding
_DEPENDENT = 1e-12  # an eigenvalue of the cosines this much smaller than the largest one counts as zero
_SILENT = 1e-6  # what is left of a gradient, relative to it, below which it lies in the span of the others
_REGULAR = 1e6  # entries of an inverse up to this have ten digits left
_SMALLEST_RATE = 1e-12  # relative to the largest; a negative power is taken of it


def deconflicted_rows(gram: Float[Tensor, "K K"]) -> Float[Tensor, "K K"]:
    """Return the gradients of GradOPS as coefficients of the original ones, a row each.

    A gradient that has a negative product with any other becomes its part orthogonal to the span of all others; the
    rest stay. So no row has a negative product with any original gradient. A conflicting gradient inside the span of
    the others becomes zero.

    Args:
        gram: Inner products of the task gradients, none of which is zero.
    """
    cosines, lengths = cosine(gram), norms(gram)
    conflicting = (cosines < -_CONFLICT).any(dim=1).nonzero().flatten()
    rows = torch.eye(len(gram), dtype=gram.dtype)
    if not len(conflicting):
        return rows
    inverse, info = torch.linalg.inv_ex(cosines)
    regular = int(info) == 0 and bool((inverse.abs().amax() < _REGULAR) & (inverse.diagonal() > 0).all())
    if regular:
        rows[conflicting] = (inverse / inverse.diagonal()[:, None])[conflicting]
    else:
        for task in conflicting.tolist():
            others = torch.tensor([other for other in range(len(gram)) if other != task])
            values, vectors = torch.linalg.eigh(cosines[others][:, others])
            large = values > _DEPENDENT * values[-1]
            parts = vectors[:, large].T @ cosines[others, task]
            rows[task, others] = -(vectors[:, large] @ (parts / values[large]))
            if float(combination_norms(cosines, rows[task, None])[0]) <= _SILENT:
                rows[task] = 0.0
    return rows * lengths[:, None] / lengths[None, :]


def gradops_weights(gram: Float[Tensor, "K K"], *, alpha: float = 0.0) -> Float[Tensor, " K"]:
    """Return the weights of ``v = sum_i w_i g'_i``, g' the gradients without conflicts.

    g'_i is the part of g_i orthogonal to the span of the others if g_i conflicts with any, else g_i. The trade-off
    ``w_i = K R_i^alpha / sum_j R_j^alpha`` uses how much of task i is in the plain sum v_0 of the g', ``R_i = <v_0,
    g_i> / |g_i|^2``: alpha = 0 is equal, a negative one favors dominated tasks. v conflicts with no task.

    Args:
        gram: Inner products of the task gradients, symmetric positive semi-definite.
        alpha: Exponent of the trade-off.

    Returns:
        Weights of the original gradients, 0 for a zero gradient. All are 0 where every gradient conflicts and lies in
        the span of the others.

    Example:
        >>> gradops_weights(torch.tensor([[1.0, -1.0], [-1.0, 4.0]]))
        tensor([2.0000, 1.2500])

    References:
        Zhu et al., "Gradient Deconfliction via Orthogonal Projections onto Subspaces For Multi-task Learning", WSDM
        2025, arXiv:2503.03438. No code was released; the formula of R is our reading. The projections are computed from
        the K x K cosines. A cosine above -1e-12 is no conflict, for rounding must not turn a gradient away.
    """
    index, small = nonzero_block(gram)
    weights = torch.zeros_like(gram.diagonal())
    if not len(index):
        return weights + 1 / len(gram)
    rows = deconflicted_rows(small)
    rates = (rows.sum(dim=0) @ small) / small.diagonal()
    if alpha == 0 or not bool((rates > 0).any()):
        shares = torch.ones_like(rates)
    else:
        powers = rates.clamp(min=_SMALLEST_RATE * float(rates.max())).log() * alpha
        shares = len(rates) * powers.softmax(dim=0)
    weights[index] = (shares @ rows).to(weights)
    return weights


@final
class GradOPS(GramBalancer):
    """GradOPS: conflicting gradients lose all that others have in common with them; see :func:`gradops_weights`.

    Where gradients are nearly dependent almost nothing of them is left, and the time grows with K^4: 3 minutes a step
    for 1000 tasks.

    Args:
        num_tasks: Number of tasks K.
        tasks: Names of the tasks.
        alpha: Exponent of the trade-off: 0 equal, negative favors the tasks that the sum serves least (-3 in an
            ablation of the paper).
    """

    key = "gradops"
    equation = "v = sum_i w_i g'_i,  g'_i = part of g_i orthogonal to span{g_j, j != i} if g_i conflicts, else g_i"
    source = "Zhu et al., Gradient Deconfliction via Orthogonal Projections onto Subspaces, WSDM 2025, arXiv:2503.03438"
    provenance = "paper for the projections; the weights of the trade-off (alpha other than 0) are our reading"
    scale = "sum"
    avoid = (
        "Where gradients are nearly dependent, as with many similar tasks: a conflicting gradient loses all that lies "
        "in the span of the others, and hardly anything is left. Long gradients dominate the sum."
    )

    def __init__(self, num_tasks: int | None = None, *, tasks: Sequence[str] | None = None, alpha: float = 0.0) -> None:
        super().__init__(num_tasks, tasks)
        self.alpha = check_range("GradOPS: alpha", alpha, low_open=True, high_open=True)

    def solve(self, gram: Tensor, losses: Tensor | None, present: tuple[int, ...]) -> Tensor:  # noqa: ARG002
        """Return the weights of one step; see :func:`gradops_weights`."""
        return gradops_weights(gram, alpha=self.alpha)
