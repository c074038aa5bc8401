"""FairGrad: the alpha-fair combination of the task gradients."""

from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from counterpoint._checks import check_choice, check_range
from counterpoint.balancers._base import GramBalancer
from counterpoint.linalg import clip_combination, nonzero_block
from counterpoint.solvers.bargaining import bargain

_RESIDUAL = 1e-9  # rounding gives 1e-11 at most


def fairgrad_weights(
    gram: Float[Tensor, "K K"], *, alpha: float = 1.0, max_norm: float | None = None
) -> tuple[Float[Tensor, " K"], float]:
    """Return the weights w > 0 with ``(A w)_i^alpha = 1 / w_i``, and the residual of the solver.

    ``(A w)_i`` is the rate at which a step along v = sum_i w_i g_i lowers loss i; the weights maximize the alpha-fair
    utility of the rates. Every rate is positive. alpha = 1 is Nash bargaining without the clipping. Towards 0, v
    becomes the plain sum, or its projection onto the dual cone where the sum conflicts with a task (DualProj); towards
    infinity, all losses that need it fall at the same rate (MGDA, at another length). For ``A -> s A`` the weights
    scale with ``s^(-alpha / (1 + alpha))``, so v scales with ``|g|^((1 - alpha) / (1 + alpha))``: for alpha above 1 it
    gets longer, slowly and without bound, towards a Pareto-stationary point; ``max_norm`` bounds it.

    Args:
        gram: Inner products A of the task gradients, symmetric positive semi-definite.
        alpha: Fairness, above 0.
        max_norm: Largest length of v, or ``None``.

    Returns:
        Weights, 0 for a zero gradient, all 0 where zero is a convex combination of the others (there is no solution,
        the point is Pareto-stationary); and the largest relative error of the equation.

    Example:
        >>> fairgrad_weights(torch.tensor([[4.0, 0.0], [0.0, 1.0]]), alpha=2.0)[0]
        tensor([0.3969, 1.0000])

    References:
        Ban and Ji, "Fair Resource Allocation in Multi-Task Learning", ICML 2024, arXiv:2402.15638. The
        released code starts SciPy's least squares at 1 / K (5 % off for alpha = 5 on badly scaled gradients),
        multiplies v by K and clips it to length 1; here nothing is added to the equation and ``max_norm`` is off.
    """
    index, small = nonzero_block(gram)
    weights = torch.zeros_like(gram.diagonal())
    if not len(index):
        return weights + 1 / len(gram), 0.0
    found, residual = bargain(small, alpha=alpha)
    weights[index] = clip_combination(small, found, max_norm).to(weights)
    return weights, residual


@final
class FairGrad(GramBalancer):
    """FairGrad: all losses fall, and small rates count more the larger alpha is; see :func:`fairgrad_weights`.

    Args:
        num_tasks: Number of tasks K.
        tasks: Names of the tasks.
        alpha: Fairness, above 0; 1 in the released code, chosen per data set in the paper.
        max_norm: Largest length of the update, above 0; the released experiments clip at 1. ``None``: no bound.
        task_gradients: What task parameters get: ``"raw"``, the gradient of their own loss, or ``"weighted"``, the same
            times the task's weight.
    """

    key = "fairgrad"
    equation = "(A w)_i^alpha = 1 / w_i for all i,  v = sum_i w_i g_i"
    source = "Ban and Ji, Fair Resource Allocation in Multi-Task Learning, ICML 2024, arXiv:2402.15638"
    provenance = "paper, equation solved exactly; default alpha and clipping from the released code"
    scale = "of degree (1 - alpha) / (1 + alpha) in the gradients; K orthogonal unit gradients are added up"
    avoid = (
        "Where the step has to shrink by itself near the optimum: the length of the update does not depend on that of "
        "the gradients for alpha = 1, and for larger alpha it grows as they shrink, so set max_norm or let the "
        "learning rate decay. Only alpha = 1 ignores the size of the losses."
    )

    def __init__(
        self,
        num_tasks: int | None = None,
        *,
        tasks: Sequence[str] | None = None,
        alpha: float = 1.0,
        max_norm: float | None = None,
        task_gradients: str = "raw",
    ) -> None:
        super().__init__(num_tasks, tasks)
        self.ignores_scale = alpha == 1
        self.alpha = check_range("FairGrad: alpha", alpha, low=0.0, low_open=True, high_open=True)
        if max_norm is not None:
            check_range("FairGrad: max_norm", max_norm, low=0.0, low_open=True)
        self.max_norm = max_norm
        self.task_gradients = check_choice("FairGrad: task_gradients", task_gradients, ("raw", "weighted"))

    def solve(self, gram: Tensor, losses: Tensor | None, present: tuple[int, ...]) -> Tensor:  # noqa: ARG002
        """Return the weights of one step; see :func:`fairgrad_weights`."""
        weights, residual = fairgrad_weights(gram, alpha=self.alpha, max_norm=self.max_norm)
        if not residual <= _RESIDUAL:
            self.warn_once("solver", f"the solver stopped at residual {residual:.1e}; its best weights are used")
        return weights
