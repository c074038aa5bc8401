"""IMTL-G: the direction that has the same angle to every task gradient."""

from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from counterpoint._checks import check_choice
from counterpoint.balancers._base import GramBalancer
from counterpoint.linalg import direction_with_cosines, nonzero_rows

_CANCELLED = 1e-12  # a sum this much smaller than its terms is rounding


def imtl_g_weights(gram: Float[Tensor, "K K"], *, sign_guard: bool = True) -> Float[Tensor, " K"]:
    """Return weights that sum to 1 or -1 and whose combination v has equal projections on all unit gradients.

    With the lengths d the weights solve ``A w = kappa d``, so ``w = x / sum(x)`` for ``x = A^+ d``. They can be
    negative. Where ``sum(x)`` is negative the normalization of the paper turns v around, and every loss then rises:
    with gradients whose lengths differ by e^{+-3} that is one case in twenty. ``sign_guard`` divides by ``|sum(x)|``
    instead.

    Args:
        gram: Inner products A of the task gradients, symmetric positive semi-definite.
        sign_guard: Whether v keeps the sign that lowers every loss.

    Returns:
        Weights; 0 for a zero gradient. All are 0 where no direction has equal angles, as for two opposed gradients, or
        where the sum of x vanishes. For dependent gradients the angles are equal in the sense of least squares.

    Example:
        >>> imtl_g_weights(torch.tensor([[4.0, 0.0], [0.0, 1.0]]))
        tensor([0.3333, 0.6667])

    References:
        Liu et al., "Towards Impartial Multi-task Learning", ICLR 2021, the closed form of its gradient
        balance. Released codes have no sign guard and fail or add 1e-8 where gradients are dependent. The
        pseudo-inverse is taken of the cosines, not of A, so that short gradients do not count as dependent; for opposed
        gradients of unequal lengths that gives 0 where A^+ d follows the longer one.
    """
    if not bool(nonzero_rows(gram).any()):
        return torch.full_like(gram.diagonal(), 1 / len(gram))
    weights = direction_with_cosines(gram, torch.ones_like(gram.diagonal()))
    total = float(weights.sum())
    if abs(total) <= _CANCELLED * float(weights.abs().sum()):
        return torch.zeros_like(weights)
    return weights / (abs(total) if sign_guard else total)


@final
class IMTLG(GramBalancer):
    """IMTL-G: equal projections on all task gradients; see :func:`imtl_g_weights`.

    Args:
        num_tasks: Number of tasks K.
        tasks: Names of the tasks.
        sign_guard: Whether the update keeps the sign that lowers every loss; ``False`` is the paper's formula.
        task_gradients: What task parameters get: ``"raw"``, the gradient of their own loss, or ``"weighted"``, the same
            times the task's weight, which can be negative.
    """

    key = "imtl_g"
    equation = "<v, g_i / |g_i|> equal for all i,  v = sum_i w_i g_i,  sum w = 1"
    source = "Liu et al., Towards Impartial Multi-task Learning, ICLR 2021"
    provenance = "paper (closed form); the sign guard and the pseudo-inverse for dependent gradients are ours"
    scale = "weights sum to 1 (to -1 where the sign guard acts)"
    avoid = (
        "Where gradients are nearly dependent, as with many similar tasks: the weights get large and can be negative, "
        "and with dependent gradients the angles are equal in the sense of least squares only. A task whose gradient "
        "is short and mostly noise counts as much as any."
    )

    def __init__(
        self,
        num_tasks: int | None = None,
        *,
        tasks: Sequence[str] | None = None,
        sign_guard: bool = True,
        task_gradients: str = "raw",
    ) -> None:
        super().__init__(num_tasks, tasks)
        self.sign_guard = sign_guard
        self.task_gradients = check_choice("IMTLG: task_gradients", task_gradients, ("raw", "weighted"))

    def solve(self, gram: Tensor, losses: Tensor | None, present: tuple[int, ...]) -> Tensor:  # noqa: ARG002
        """Return the weights of one step; see :func:`imtl_g_weights`."""
        return imtl_g_weights(gram, sign_guard=self.sign_guard)
