"""MoDo: multi-objective descent with double sampling."""

from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from counterpoint._checks import check_range
from counterpoint.balancers._cross import CrossGramBalancer
from counterpoint.solvers.simplex_projection import project_to_simplex


def modo_weights(
    gram: Float[Tensor, "K K"], weights: Float[Tensor, " K"], *, learning_rate: float = 1e-3, rho: float = 0.1
) -> Float[Tensor, " K"]:
    """Return the weights after one projected step on ``|g_w|^2 / 2 + rho |w|^2 / 2``, g_w the weighted sum.

    Args:
        gram: Inner products ``<a_i, b_j>`` of the task gradients of two batches; need not be symmetric.
        weights: Weights on the simplex.
        learning_rate: Length of the step; not relative to the gradients.
        rho: Weight of the regularizer, at least 0, which draws the weights to equal ones.

    Returns:
        Weights on the simplex.

    Example:
        >>> gram = torch.tensor([[1.0, 0.0], [0.0, 4.0]], dtype=torch.float64)
        >>> modo_weights(gram, torch.full((2,), 0.5, dtype=torch.float64), learning_rate=0.1)
        tensor([0.5750, 0.4250], dtype=torch.float64)

    References:
        Chen et al., "Three-Way Trade-Off in Multi-Objective Learning: Optimization, Generalization and
        Conflict-Avoidance", NeurIPS 2023, arXiv:2305.20057, whose analysis has rho = 0.
    """
    return project_to_simplex(weights - learning_rate * (gram @ weights + rho * weights))


@final
class MoDo(CrossGramBalancer):
    """MoDo: simplex weights by one step per update, from two batches, applied to a third; see :func:`modo_weights`.

    With a small step size and equal batches the weights go to those of MGDA. Parameters of one task get the gradient of
    the step's batch alone; LibMTL gives them a third of the sum over the three batches.

    Args:
        num_tasks: Number of tasks K.
        tasks: Names of the tasks.
        learning_rate: Step size of the weights, above 0; gamma of the paper.
        rho: Weight of the regularizer, at least 0. 0 is the paper's analysis, 0.1 what LibMTL uses.
    """

    key = "modo"
    equation = "w <- project(w - gamma (G_1 G_2' w + rho w)),  v = sum_i w_i g_i of a third batch"
    source = "Chen et al., Three-Way Trade-Off in Multi-Objective Learning, NeurIPS 2023, arXiv:2305.20057"
    provenance = "paper; step size and regularizer as in LibMTL"
    scale = "convex combination: weights sum to 1"
    avoid = (
        "Where three batches a step are too dear. The weights move by a small step from equal ones, so short "
        "runs are nearly those of equal weighting."
    )

    task_weights: Tensor

    def __init__(
        self,
        num_tasks: int | None = None,
        *,
        tasks: Sequence[str] | None = None,
        learning_rate: float = 1e-3,
        rho: float = 0.1,
    ) -> None:
        super().__init__(num_tasks, tasks)
        self.learning_rate = check_range("MoDo: learning_rate", learning_rate, low=0.0, low_open=True, high_open=True)
        self.rho = check_range("MoDo: rho", rho, low=0.0, high_open=True)
        self.add_state("task_weights", torch.full((self.num_tasks,), 1 / self.num_tasks, dtype=torch.float64))

    def solve(self, gram: Tensor, losses: Tensor | None, present: tuple[int, ...]) -> Tensor:  # noqa: ARG002
        """Return the weights of one step; see :func:`modo_weights`."""

        def update(matrix: Tensor, weights: Tensor) -> Tensor:
            return modo_weights(matrix, weights, learning_rate=self.learning_rate, rho=self.rho)

        return self._move("task_weights", gram, present, update)[0]
