"""SDMGrad: direction-oriented multi-objective descent with stochastic gradients."""

from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from counterpoint._checks import check_integer, check_range
from counterpoint.balancers._cross import CrossGramBalancer
from counterpoint.linalg import norms
from counterpoint.solvers.simplex_projection import project_to_simplex

_SMALLEST = 1e-8  # scale of the matrix, relative to its largest entry, below which the diagonal is noise


def sdmgrad_weights(
    gram: Float[Tensor, "K K"],
    start: Float[Tensor, " K"],
    *,
    pull: float = 0.3,
    inner_steps: int = 20,
    learning_rate: float = 5.0,
    momentum: float = 0.5,
) -> Float[Tensor, " K"]:
    """Return simplex weights after some projected gradient steps on ``|g_w + pull g_0|^2 / 2``.

    g_w is the weighted sum of the gradients and g_0 their mean. The gradient is ``A (w + pull / K)``, with the matrix
    A divided by the squared mean length of the rows first.

    Args:
        gram: Inner products ``<a_i, b_j>`` of the task gradients of two batches; need not be symmetric.
        start: Weights to start from, on the simplex.
        pull: Lambda of the paper, at least 0: how strongly the update is drawn to the mean gradient.
        inner_steps: Number of steps.
        learning_rate: Length of a step.
        momentum: Share of the previous step that is kept, in [0, 1).

    Returns:
        Weights w on the simplex, before the mean is mixed in.

    Example:
        >>> gram = torch.tensor([[1.0, 0.0], [0.0, 4.0]], dtype=torch.float64)
        >>> start = torch.full((2,), 0.5, dtype=torch.float64)
        >>> sdmgrad_weights(gram, start, pull=0.0, learning_rate=0.5, inner_steps=99)
        tensor([0.8000, 0.2000], dtype=torch.float64)

    References:
        Xiao, Ban, Ji, "Direction-oriented Multi-objective Learning: Simple and Provable Stochastic Algorithms", NeurIPS
        2023, arXiv:2305.18409. Step size, momentum and scale as in LibMTL; the scale has no
        constant added. Twenty steps of length 5 do not solve the inner problem.
    """
    size = norms(gram).mean() ** 2
    matrix = gram / torch.maximum(size, _SMALLEST * gram.abs().max())
    weights, velocity = start.clone(), torch.zeros_like(start)
    for _ in range(inner_steps):
        velocity = momentum * velocity + matrix @ (weights + pull / len(weights))
        weights = project_to_simplex(weights - learning_rate * velocity)
    return weights


@final
class SDMGrad(CrossGramBalancer):
    """SDMGrad: the shortest combination of the gradients, drawn to their mean; see :func:`sdmgrad_weights`.

    The update is ``(g_w + pull g_0) / (1 + pull)`` with the gradients of the step's batch; w comes from two further
    batches, which makes its gradient unbiased, and goes on from step to step.

    Args:
        num_tasks: Number of tasks K.
        tasks: Names of the tasks.
        pull: Lambda of the paper, at least 0: 0 is MGDA, a large one the mean of the gradients.
        inner_steps: Steps on w each time.
        learning_rate: Length of these steps, above 0.
        momentum: Share of the previous of these steps that is kept, in [0, 1).
    """

    key = "sdmgrad"
    equation = "v = (g_w + pull g_0) / (1 + pull),  w by projected steps on |g_w + pull g_0|^2 / 2 over the simplex"
    source = "Xiao, Ban, Ji, Direction-oriented Multi-objective Learning, NeurIPS 2023, arXiv:2305.18409"
    provenance = "paper; scale, step size and momentum of the inner steps as in LibMTL"
    scale = "convex combination: weights sum to 1"
    avoid = (
        "Where three batches a step are too dear, or where every step must lower every loss: for lambda above"
        " 0 it stays near the mean gradient."
    )

    task_weights: Tensor

    def __init__(
        self,
        num_tasks: int | None = None,
        *,
        tasks: Sequence[str] | None = None,
        pull: float = 0.3,
        inner_steps: int = 20,
        learning_rate: float = 5.0,
        momentum: float = 0.5,
    ) -> None:
        super().__init__(num_tasks, tasks)
        self.pull = check_range("SDMGrad: pull", pull, low=0.0, high_open=True)
        self.inner_steps = check_integer("SDMGrad: inner_steps", inner_steps, low=1)
        self.learning_rate = check_range(
            "SDMGrad: learning_rate", learning_rate, low=0.0, low_open=True, high_open=True
        )
        self.momentum = check_range("SDMGrad: momentum", momentum, low=0.0, high=1.0, high_open=True)
        self.add_state("task_weights", torch.full((self.num_tasks,), 1 / self.num_tasks, dtype=torch.float64))

    def solve(self, gram: Tensor, losses: Tensor | None, present: tuple[int, ...]) -> Tensor:  # noqa: ARG002
        """Return the weights of one step, the mean mixed in; see :func:`sdmgrad_weights`."""

        def update(matrix: Tensor, start: Tensor) -> Tensor:
            return sdmgrad_weights(
                matrix,
                start,
                pull=self.pull,
                inner_steps=self.inner_steps,
                learning_rate=self.learning_rate,
                momentum=self.momentum,
            )

        found, taking_part = self._move("task_weights", gram, present, update)
        mean = taking_part.to(found) / max(int(taking_part.sum()), 1)
        return (found + self.pull * mean) / (1 + self.pull) if bool(taking_part.any()) else found
