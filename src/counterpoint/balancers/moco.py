"""MoCo: weights and gradients that are tracked over steps, against the bias of stochastic multi-gradient methods."""

from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from counterpoint import linalg
from counterpoint._checks import check_choice, check_range
from counterpoint.balancers._columns import ColumnsBalancer
from counterpoint.solvers.simplex_projection import project_to_simplex


def moco_weights(
    gram: Float[Tensor, "K K"],
    weights: Float[Tensor, " K"],
    *,
    rate: float,
    rho: float = 0.0,
    variant: str = "paper",
) -> Float[Tensor, " K"]:
    """Return the weights after one step of projected gradient descent on ``(w A w + rho w w) / 2``.

    Args:
        gram: Inner products A of the tracked gradients, float64, on the CPU.
        weights: Weights before the step, on the simplex.
        rate: Step size, above 0; in the unit of 1 / A.
        rho: Strength of the pull towards even weights, at least 0.
        variant: ``"paper"`` projects onto the simplex; ``"libmtl"`` takes the softmax instead, which draws the weights
            towards 1 / K at every step, as the softmax of numbers in [0, 1] is nearly even.

    Returns:
        Weights, at least 0, with sum 1.

    Example:
        >>> gram = torch.tensor([[1.0, 0.0], [0.0, 3.0]], dtype=torch.float64)
        >>> moco_weights(gram, torch.tensor([0.5, 0.5], dtype=torch.float64), rate=0.1)
        tensor([0.5500, 0.4500], dtype=torch.float64)

    References:
        Fernando et al., "Mitigating Gradient Bias in Multi-objective Learning: A Provably Convergent Approach",
        ICLR 2023, arXiv:2210.12624.
    """
    moved = weights - rate * (gram @ weights + rho * weights)
    return project_to_simplex(moved) if variant == "paper" else moved.softmax(dim=0)


def scaled_by_loss(
    jacobian: Float[Tensor, "K P"], losses: Float[Tensor, " K"], *, eps: float = 0.0
) -> Float[Tensor, "K P"]:
    """Return the gradients made as long as their losses: ``L_i g_i / |g_i|``; a zero gradient stays zero.

    Args:
        jacobian: One gradient per task.
        losses: Losses.
        eps: Added to each length; LibMTL takes 1e-8.

    Example:
        >>> scaled_by_loss(torch.tensor([[3.0, 4.0]]), torch.tensor([0.5]))
        tensor([[0.3000, 0.4000]])
    """
    lengths = linalg.norms(linalg.gram(jacobian)).cpu()
    factors = torch.where(lengths > 0, losses / torch.where(lengths > 0, lengths + eps, 1.0), 0.0)
    return jacobian * factors.to(jacobian)[:, None]


@final
class MoCo(ColumnsBalancer):
    """MoCo: a tracked gradient per task, and weights that follow their min-norm point; see :func:`moco_weights`.

    At step k the tracked gradients move by ``y_i <- y_i - beta / k^beta_sigma (y_i - g_i)`` from 0, the weights by one
    projected step of size ``gamma / k^gamma_sigma`` from 1 / K, and the update is ``sum_i w_i y_i``. The step size of
    the weights is not free of units: scale ``gamma`` by the inverse square of the gradients' length. The weights of the
    report are those of the tracked gradients; task parameters get the gradient of their own loss.

    A task that is absent keeps its tracked gradient and its weight; the others share the rest. The tracked gradients
    cost memory for K more gradients.

    Args:
        num_tasks: Number of tasks K.
        tasks: Names of the tasks.
        variant: ``"paper"``, or ``"libmtl"``: gradients as long as their loss (losses must not be negative), and a
            softmax in place of the projection, which keeps all weights near 1 / K.
        beta: Step size of the tracked gradients at the first step, in (0, 1].
        beta_sigma: Exponent with which it falls, at least 0.
        gamma: Step size of the weights at the first step, at least 0.
        gamma_sigma: Exponent with which it falls, at least 0.
        rho: Strength of the pull of the weights towards 1 / K, at least 0.

    References:
        Fernando et al., "Mitigating Gradient Bias in Multi-objective Learning: A Provably Convergent Approach",
        ICLR 2023, arXiv:2210.12624. Step sizes and the second variant are those of LibMTL, from the authors' code;
        there 1e-8 is added to the lengths. Steps of the tracked gradients are counted by task here.
    """

    key = "moco"
    equation = "v = sum_i w_i y_i,  y_i <- y_i - beta_k (y_i - g_i),  w <- P(w - gamma_k (Y Y^T + rho I) w)"
    source = "Fernando et al., Mitigating Gradient Bias in Multi-objective Learning, ICLR 2023, arXiv:2210.12624"
    provenance = "paper for the update; step sizes and variant='libmtl' from LibMTL; absent tasks are ours"
    scale = "convex combination of tracked gradients, which start at 0"
    avoid = (
        "Where memory is short, since a tracked gradient of every task is kept; or where runs are short, "
        "since the tracked gradients start at 0 and the weights move slowly."
    )
    cost = "K backward passes, memory for K gradients and for a state of K more (K x P)"

    tracked: Tensor
    steps: Tensor
    task_weights: Tensor
    num_updates: Tensor

    def __init__(
        self,
        num_tasks: int | None = None,
        *,
        tasks: Sequence[str] | None = None,
        variant: str = "paper",
        beta: float = 0.5,
        beta_sigma: float = 0.5,
        gamma: float = 0.1,
        gamma_sigma: float = 0.5,
        rho: float = 0.0,
    ) -> None:
        super().__init__(num_tasks, tasks)
        self.variant = check_choice("MoCo: variant", variant, ("paper", "libmtl"))
        self.beta = check_range("MoCo: beta", beta, low=0.0, high=1.0, low_open=True)
        self.beta_sigma = check_range("MoCo: beta_sigma", beta_sigma, low=0.0, high_open=True)
        self.gamma = check_range("MoCo: gamma", gamma, low=0.0, high_open=True)
        self.gamma_sigma = check_range("MoCo: gamma_sigma", gamma_sigma, low=0.0, high_open=True)
        self.rho = check_range("MoCo: rho", rho, low=0.0, high_open=True)
        self.nonnegative_losses = variant == "libmtl"
        self.add_lazy_state("tracked")
        self.add_state("steps", torch.zeros(self.num_tasks, dtype=torch.long))
        self.add_state("task_weights", torch.full((self.num_tasks,), 1 / self.num_tasks, dtype=torch.float64))
        self.add_state("num_updates", torch.zeros((), dtype=torch.long))

    def aggregate(self, jacobian: Tensor, losses: Tensor | None, present: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Return the direction of one step and the weights of the tracked gradients."""
        index = torch.tensor(present, device=self.steps.device)
        old = self._rows("tracked", jacobian, present)
        rows = jacobian.to(old)
        if self.variant == "libmtl":
            rows = scaled_by_loss(rows, self._read_losses(losses, present))
        self.steps[index] += 1
        self.num_updates += 1
        beta = self.beta / self.steps[index].cpu().double() ** self.beta_sigma
        tracked = torch.lerp(old, rows, beta.to(old)[:, None].expand_as(old))
        self._keep("tracked", tracked, present)

        share = self.task_weights[index].cpu().double()
        total = share.sum()
        before = share / total if float(total) > 0 else torch.full_like(share, 1 / len(share))
        rate = self.gamma / int(self.num_updates) ** self.gamma_sigma
        gram = linalg.gram(tracked).cpu()
        weights = moco_weights(gram, before, rate=rate, rho=self.rho, variant=self.variant)
        self.task_weights[index] = (total * weights).to(self.task_weights)
        return (weights.to(tracked) @ tracked).to(jacobian.dtype), weights.to(jacobian)
