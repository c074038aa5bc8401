"""MGDA: the shortest vector in the convex hull of the task gradients."""

from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from counterpoint._checks import check_choice
from counterpoint.balancers._base import GramBalancer
from counterpoint.errors import OptionError
from counterpoint.linalg import nonzero_block, norms
from counterpoint.solvers.min_norm import min_norm

_RESIDUAL = 1e-6  # float64 gives 1e-14; a singular matrix of rows in float32 about the accuracy of its entries
_SMALLEST = 1e-12  # a loss is divided by, and may be zero


def mgda_weights(
    gram: Float[Tensor, "K K"],
    losses: Float[Tensor, " K"] | None = None,
    *,
    normalization: str = "none",
    apply_to: str = "original",
    zero_row_is_stationary: bool = False,
) -> tuple[Float[Tensor, " K"], float]:
    """Return the weights w on the simplex that minimize ``|sum_i w_i g_i / s_i|``, and the residual of the solver.

    With s = 1 the combined gradient v satisfies ``<v, g_i> >= |v|^2`` for all tasks, so a small step along -v lowers
    every loss, and v = 0 exactly at Pareto-stationary points. It is short where one gradient is short;
    ``normalization`` divides the gradients first by ``s_i``: ``"l2"`` |g_i|, ``"loss"`` L_i, ``"loss+"`` L_i |g_i|.

    Args:
        gram: Inner products of the task gradients, symmetric positive semi-definite.
        losses: Losses, at least 0; read by ``"loss"`` and ``"loss+"``.
        normalization: ``"none"``, ``"l2"``, ``"loss"`` or ``"loss+"``.
        apply_to: ``"original"``: the weights multiply the gradients themselves, as in the released code;
            ``"normalized"``: the normalized ones, so that v is the shortest vector itself.
        zero_row_is_stationary: Whether a zero gradient makes v = 0, as the definition says, instead of being left out.

    Returns:
        Weights, at least 0, summing to one (``"original"``), or those divided by s (``"normalized"``); and the largest
        violation of the optimality conditions, see :func:`~counterpoint.solvers.min_norm.min_norm`.

    Raises:
        OptionError: If losses are needed and not given, or one is negative.

    Example:
        >>> mgda_weights(torch.tensor([[1.0, 0.2], [0.2, 4.0]]))[0]
        tensor([0.8261, 0.1739])

    References:
        Désidéri, C. R. Acad. Sci. 350, 2012; Sener and Koltun, "Multi-Task Learning as Multi-Objective Optimization",
        NeurIPS 2018, arXiv:1810.04650. Solved exactly: Frank-Wolfe (its Algorithm 2) converges like 1/k, and the
        projected gradient of the released code stops up to 47 per cent above the shortest length on badly scaled
        gradients.
    """
    index, small = nonzero_block(gram)
    if not len(index):
        return torch.full_like(gram.diagonal(), 1 / len(gram)), 0.0
    if zero_row_is_stationary and len(index) < len(gram):
        zero = torch.ones_like(gram.diagonal()).index_fill(0, index, 0.0)
        return zero / zero.sum(), 0.0
    divisors = torch.ones_like(small.diagonal())
    if normalization in ("loss", "loss+"):
        if losses is None or bool((losses < 0).any()):
            raise OptionError(f"MGDA: normalization={normalization!r} needs losses of at least 0, got {losses}")
        divisors = losses[index].double()
        divisors = divisors.clamp(min=_SMALLEST * float(divisors.max().clamp(min=_SMALLEST)))
    if normalization in ("l2", "loss+"):
        divisors = divisors * norms(small)
    found, residual = min_norm(small / divisors[:, None] / divisors[None, :])
    weights = torch.zeros_like(gram.diagonal())
    weights[index] = (found / divisors if apply_to == "normalized" else found).to(weights)
    return weights, residual


@final
class MGDA(GramBalancer):
    """MGDA: the shortest convex combination of the task gradients, a common descent direction.

    See :func:`mgda_weights` for the mathematics.

    Args:
        num_tasks: Number of tasks K.
        tasks: Names of the tasks.
        normalization: What the gradients are divided by before solving: ``"none"`` (nothing), ``"l2"`` (their
            length), ``"loss"`` (their loss), ``"loss+"`` (both).
        apply_to: Whether the weights then multiply the ``"original"`` gradients (the released code) or the
            ``"normalized"`` ones.
        task_gradients: What task parameters get: ``"weighted"``, the gradient of their loss times the task's weight
            (the released code scales the losses), or ``"raw"``.
        zero_row_is_stationary: Whether a zero gradient of one task stops the step (v = 0). By default that task is
            left out of the step.
    """

    key = "mgda"
    equation = "min over w on the simplex of |sum_i w_i g_i|^2"
    source = "Sener and Koltun, Multi-Task Learning as Multi-Objective Optimization, NeurIPS 2018, arXiv:1810.04650"
    provenance = "paper, solved exactly; normalizations and weighted task gradients from the released code"
    scale = "convex combination: weights sum to 1"
    avoid = (
        "Where one gradient is much shorter than the others, from a loss of small scale or a task that is nearly "
        "solved: the shortest combination follows it, and the other tasks hardly move (normalization='l2' mends "
        "this). It stops at the first Pareto-stationary point it meets, however unequal that is."
    )
    task_gradients = "weighted"

    def __init__(
        self,
        num_tasks: int | None = None,
        *,
        tasks: Sequence[str] | None = None,
        normalization: str = "none",
        apply_to: str = "original",
        task_gradients: str = "weighted",
        zero_row_is_stationary: bool = False,
    ) -> None:
        super().__init__(num_tasks, tasks)
        self.normalization = check_choice("MGDA: normalization", normalization, ("none", "l2", "loss", "loss+"))
        self.apply_to = check_choice("MGDA: apply_to", apply_to, ("original", "normalized"))
        self.task_gradients = check_choice("MGDA: task_gradients", task_gradients, ("weighted", "raw"))
        self.zero_row_is_stationary = zero_row_is_stationary
        self.ignores_scale = normalization == "l2" and apply_to == "normalized"

    def solve(self, gram: Tensor, losses: Tensor | None, present: tuple[int, ...]) -> Tensor:  # noqa: ARG002
        """Return the weights of one step; see :func:`mgda_weights`."""
        weights, residual = mgda_weights(
            gram,
            losses,
            normalization=self.normalization,
            apply_to=self.apply_to,
            zero_row_is_stationary=self.zero_row_is_stationary,
        )
        if residual > _RESIDUAL:
            self.warn_once(
                "solver", f"the min-norm solver stopped at residual {residual:.1e}; its best weights are used"
            )
        return weights
