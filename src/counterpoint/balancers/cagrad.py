"""CAGrad: the best worst-case improvement near the mean gradient."""

import math
from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from counterpoint._checks import check_choice, check_range
from counterpoint.balancers._base import GramBalancer
from counterpoint.errors import OptionError
from counterpoint.linalg import nonzero_block, norms
from counterpoint.solvers.simplex import linear_plus_norm

_RESIDUAL = 1e-6  # rounding alone gives 1e-8 where the terms of the best combination nearly cancel
_STATIONARY = 1e-12  # square of the shortest combination, relative to the sum of its terms


def cagrad_weights(
    gram: Float[Tensor, "K K"], *, c: float = 0.4, rescale: int = 0, on_stationary: str = "auto"
) -> tuple[Float[Tensor, " K"], float]:
    """Return the weights of the direction that CAGrad takes, and the residual of the solver.

    The direction v maximizes ``min_i <g_i, v>`` in the ball ``|v - g_0| <= c |g_0|`` around the mean gradient g_0. By
    duality ``v = g_0 + c |g_0| g_w / |g_w|`` with w on the simplex minimizing ``<g_w, g_0> + c |g_0| |g_w|``.

    Args:
        gram: Inner products of the task gradients, symmetric positive semi-definite.
        c: Radius of the ball relative to |g_0|, at least 0; 0 gives the mean. Below 1 the method converges to a
            stationary point of the mean loss, from 1 on only to a Pareto-stationary one.
        rescale: 0: v itself (the paper); 1: divided by 1 + c^2; 2: divided by 1 + c.
        on_stationary: What to return where the best g_w is zero, so that no direction improves every task:
            ``"mean"``, ``"zero"``, or ``"auto"``: the mean for c < 1 and zero from 1 on.

    Returns:
        Weights, and the largest violation of the optimality conditions of the dual problem. A zero gradient is left
        out, with weight 0 and a mean over the others.

    Example:
        >>> cagrad_weights(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), c=0.5)[0]
        tensor([0.7500, 0.7500])

    References:
        Liu et al., "Conflict-Averse Gradient Descent for Multi-Task Learning", NeurIPS 2021, arXiv:2110.14048.
        c = 0.4 is what the authors' experiments use (other libraries take 0.5). The released code adds
        1e-8 to the norms, solves an unnormalized dual to 1e-9 ... 2e-3, defaults to ``rescale=1``, and multiplies by K
        when it writes the gradient.
    """
    index, small = nonzero_block(gram)
    weights = torch.zeros_like(gram.diagonal())
    if not len(index):
        return weights + 1 / len(gram), 0.0
    residual = 0.0
    combined = torch.full_like(small.diagonal(), 1 / len(small))
    if c > 0:
        dual, residual = linear_plus_norm(small, c)
        square = float(dual @ small @ dual)
        if square <= _STATIONARY * float(dual @ norms(small)) ** 2:
            if on_stationary == "zero" or (on_stationary == "auto" and c >= 1):
                combined = torch.zeros_like(combined)
        else:
            radius = c * math.sqrt(max(float(small.mean()), 0.0))
            combined = combined + radius / math.sqrt(square) * dual
    weights[index] = (combined / (1 + c * c if rescale == 1 else 1 + c if rescale == 2 else 1)).to(weights)
    return weights, residual


@final
class CAGrad(GramBalancer):
    """CAGrad: raises the smallest improvement of any task while it stays near the mean; see :func:`cagrad_weights`.

    Args:
        num_tasks: Number of tasks K.
        tasks: Names of the tasks.
        c: Radius of the ball relative to the length of the mean gradient, at least 0. 0.4 is the authors' choice.
        rescale: 0: none (the paper); 1: divide by 1 + c^2 (released code); 2: divide by 1 + c.
        on_stationary: ``"mean"``, ``"zero"`` or ``"auto"``: what to do at a Pareto-stationary point.
    """

    key = "cagrad"
    equation = "max over v of min_i <g_i, v>  subject to  |v - g_0| <= c |g_0|,  g_0 = mean_i g_i"
    source = "Liu et al., Conflict-Averse Gradient Descent, NeurIPS 2021, arXiv:2110.14048"
    provenance = "paper, dual solved exactly; c and rescale checked against the released code"
    scale = "mean"
    avoid = (
        "Where no task may get worse: for c below 1 it only lessens the worst conflict. The mean gradient that it "
        "stays near follows the longest gradients, so losses of different size need scaling first."
    )

    def __init__(
        self,
        num_tasks: int | None = None,
        *,
        tasks: Sequence[str] | None = None,
        c: float = 0.4,
        rescale: int = 0,
        on_stationary: str = "auto",
    ) -> None:
        super().__init__(num_tasks, tasks)
        self.c = check_range("CAGrad: c", c, low=0.0, high_open=True)
        if isinstance(rescale, bool) or rescale not in (0, 1, 2):
            raise OptionError(f"CAGrad: rescale must be 0, 1 or 2, got {rescale!r}")
        self.rescale = rescale
        self.on_stationary = check_choice("CAGrad: on_stationary", on_stationary, ("auto", "mean", "zero"))

    def solve(self, gram: Tensor, losses: Tensor | None, present: tuple[int, ...]) -> Tensor:  # noqa: ARG002
        """Return the weights of one step; see :func:`cagrad_weights`."""
        weights, residual = cagrad_weights(gram, c=self.c, rescale=self.rescale, on_stationary=self.on_stationary)
        if residual > _RESIDUAL:
            self.warn_once("solver", f"the dual solver stopped at residual {residual:.1e}; its best weights are used")
        return weights
