"""Nash-MTL: the update on which the tasks would agree as bargaining partners."""

from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from counterpoint._checks import check_choice, check_integer, check_range
from counterpoint.balancers._base import GramBalancer
from counterpoint.linalg import clip_combination, nonzero_block, nonzero_rows
from counterpoint.solvers.bargaining import bargain

_RESIDUAL = 1e-9  # rounding gives 1e-11 at most


def nash_mtl_weights(gram: Float[Tensor, "K K"]) -> tuple[Float[Tensor, " K"], float]:
    """Return the weights w > 0 with ``(A w)_i = 1 / w_i``, and the residual of the solver.

    They maximize ``sum_i log <v, g_i>`` over directions v of one length. ``<v, g_i> = 1 / w_i`` is positive for every
    task, ``|v|^2 = K``, and v does not change where a gradient is scaled.

    Args:
        gram: Inner products A of the task gradients, symmetric positive semi-definite.

    Returns:
        Weights, 0 for a zero gradient, all 0 where zero is a convex combination of the others (there is no solution,
        the point is Pareto-stationary); and the largest relative error of the equation.

    Example:
        >>> nash_mtl_weights(torch.tensor([[4.0, 0.0], [0.0, 1.0]]))[0]
        tensor([0.5000, 1.0000])

    References:
        Navon et al., "Multi-Task Learning as a Bargaining Game", ICML 2022, arXiv:2202.01017, Claim 3.1. The
        released code runs 20 convex approximations and keeps the old weights where they fail; on ten badly scaled tasks
        it is 39 % off. Here the equation is solved to rounding.
    """
    index, small = nonzero_block(gram)
    weights = torch.zeros_like(gram.diagonal())
    if not len(index):
        return weights + 1 / len(gram), 0.0
    found, residual = bargain(small)
    weights[index] = found.to(weights)
    return weights, residual


@final
class NashMTL(GramBalancer):
    """Nash-MTL: the bargaining solution of the tasks; see :func:`nash_mtl_weights`.

    The exact solution has length sqrt(K), so with ``max_norm=1`` and two tasks or more the update is a unit vector.

    Args:
        num_tasks: Number of tasks K.
        tasks: Names of the tasks.
        max_norm: Largest length of the update, above 0; ``None`` for no bound.
        update_every: Number of steps for which weights are used; above 1 the equation is solved at every n-th step
            only. The gradients are still measured at each step. A step whose tasks were not all in the last solution,
            or that had none, solves anew.
        task_gradients: What task parameters get: ``"weighted"``, the gradient of their loss times the task's weight
            (the released code scales the losses), or ``"raw"``.
    """

    key = "nash_mtl"
    equation = "(A w)_i = 1 / w_i for all i,  v = sum_i w_i g_i, clipped to length max_norm"
    source = "Navon et al., Multi-Task Learning as a Bargaining Game, ICML 2022, arXiv:2202.01017"
    provenance = "paper, equation solved exactly; clipping, reuse of weights and weighted task gradients as released"
    scale = "length sqrt(K), clipped to max_norm = 1"
    avoid = (
        "Where the step has to shrink by itself near the optimum: with max_norm=1 every update has length 1, so a "
        "constant learning rate keeps it moving. By default task parameters are weighted too, and then their step "
        "sizes change with the weights."
    )
    task_gradients = "weighted"

    last: Tensor
    solved_at: Tensor
    num_steps: Tensor

    def __init__(
        self,
        num_tasks: int | None = None,
        *,
        tasks: Sequence[str] | None = None,
        max_norm: float | None = 1.0,
        update_every: int = 1,
        task_gradients: str = "weighted",
    ) -> None:
        super().__init__(num_tasks, tasks)
        if max_norm is not None:
            check_range("NashMTL: max_norm", max_norm, low=0.0, low_open=True)
        self.max_norm = max_norm
        self.update_every = check_integer("NashMTL: update_every", update_every, low=1)
        self.ignores_scale = update_every == 1
        self.task_gradients = check_choice("NashMTL: task_gradients", task_gradients, ("weighted", "raw"))
        self.add_state("last", torch.zeros(self.num_tasks, dtype=torch.float64))
        self.add_state("solved_at", torch.full((self.num_tasks,), -1, dtype=torch.long))  # step, -1: not at all
        self.add_state("num_steps", torch.zeros((), dtype=torch.long))

    def solve(self, gram: Tensor, losses: Tensor | None, present: tuple[int, ...]) -> Tensor:  # noqa: ARG002
        """Return the weights of one step; see :func:`nash_mtl_weights`."""
        index = torch.tensor(present, device=self.last.device)
        step = int(self.num_steps)
        self.num_steps += 1
        solved = set(self.solved_at[index].tolist())
        if len(solved) == 1 and 0 <= step - min(solved) < self.update_every and min(solved) >= 0:
            weights = self.last[index].to(gram)
        else:
            weights, residual = nash_mtl_weights(gram)
            if not residual <= _RESIDUAL:
                self.warn_once("solver", f"the solver stopped at residual {residual:.1e}; its best weights are used")
            usable = bool(weights.all()) and bool(nonzero_rows(gram).all())
            self.last[index] = weights.to(self.last)
            self.solved_at[index] = step if usable else -1
        return clip_combination(gram, weights, self.max_norm)
