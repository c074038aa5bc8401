"""DB-MTL: dual balancing of loss scales and gradient lengths."""

import dataclasses
from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from counterpoint import linalg
from counterpoint._checks import check_range
from counterpoint.balancers._call import Call
from counterpoint.balancers._columns import ColumnsBalancer
from counterpoint.balancers._gradient import Balanced, Found
from counterpoint.balancers._losses import Step


def longest_length_weights(gram: Float[Tensor, "K K"], *, eps: float = 0.0) -> Float[Tensor, " K"]:
    """Return the factors that make all rows as long as the longest one: ``max_j d_j / d_i``.

    Args:
        gram: Inner products of the rows; only the lengths d on its diagonal are read.
        eps: Added to each d_i; released codes take 1e-8.

    Returns:
        The factors, at least 1; 0 for a row that is zero.

    Example:
        >>> longest_length_weights(torch.tensor([[9.0, 0.0], [0.0, 1.0]]))
        tensor([1., 3.])

    References:
        Lin et al., "Dual-Balancing for Multi-Task Learning", arXiv:2308.12029. There 1e-8 is added to d_i; here nothing
        is by default, so the factors do not depend on the unit of the gradients.
    """
    lengths, kept = linalg.norms(gram), linalg.nonzero_rows(gram)
    return torch.where(kept, lengths.max() / torch.where(kept, lengths + eps, 1.0), 0.0)


@final
class DBMTL(ColumnsBalancer):
    """DB-MTL: gradients of the logarithms of the losses, averaged over steps, all made as long as the longest one.

    With ``beta_k = beta / k^beta_sigma`` at a task's k-th step, its running mean is ``m_i <- beta_k m_i + (1 - beta_k)
    grad log(L_i + eps)``, and the update ``v = max_j |m_j| sum_i m_i / |m_i|``. The mean starts at 0 and is not
    corrected for that, as in the paper: with beta = 0.9 the first update is ten times too short. The parameters of a
    task get the gradient of the logarithm of its loss. Losses must not be negative.

    With ``beta=0`` there is no mean, no state per coordinate, and ``level="features"`` is possible. The means cost
    memory for K more gradients.

    Args:
        num_tasks: Number of tasks K.
        tasks: Names of the tasks.
        beta: Share of the past at the first step, in [0, 1).
        beta_sigma: Exponent with which that share falls, at least 0; 0.5 in the paper as far as we know, 0 in LibMTL.
        eps: Added to each loss before the logarithm, above 0; bounds the gradient of a loss near zero.

    References:
        Lin et al., "Dual-Balancing for Multi-Task Learning", arXiv:2308.12029, and LibMTL's code of it. There 1e-8 is
        added to the lengths, and the steps of all tasks are counted together, which differs where one is absent.
    """

    key = "db_mtl"
    equation = "v = max_j |m_j| sum_i m_i / |m_i|,  m_i = running mean of grad log(L_i + eps)"
    source = "Lin et al., Dual-Balancing for Multi-Task Learning, arXiv:2308.12029"
    provenance = "paper and LibMTL's code; the exponent 0.5 from memory; steps counted by task are ours"
    scale = "K times the longest mean gradient of log(L) at most; (1 - beta) of that at the first step"
    avoid = (
        "Where memory is short: with beta above 0 it keeps one average gradient per task. Losses near 0 get "
        "very large gradients from the logarithm, and every task pulls as hard as the longest gradient, a "
        "noisy one too."
    )
    cost = "K backward passes, memory for K gradients and, unless beta = 0, for a state of K more (K x P)"
    nonnegative_losses = True

    mean: Tensor
    steps: Tensor

    def __init__(
        self,
        num_tasks: int | None = None,
        *,
        tasks: Sequence[str] | None = None,
        beta: float = 0.9,
        beta_sigma: float = 0.5,
        eps: float = 1e-8,
    ) -> None:
        super().__init__(num_tasks, tasks)
        self.beta = check_range("DBMTL: beta", beta, low=0.0, high=1.0, high_open=True)
        self.beta_sigma = check_range("DBMTL: beta_sigma", beta_sigma, low=0.0, high_open=True)
        self.eps = check_range("DBMTL: eps", eps, low=0.0, low_open=True, high_open=True)
        self.keeps_columns = beta > 0
        self.add_state("steps", torch.zeros(self.num_tasks, dtype=torch.long))
        if self.keeps_columns:
            self.add_lazy_state("mean")

    def aggregate(self, jacobian: Tensor, losses: Tensor | None, present: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Return the direction of one step and the weights of the plain gradients (in the means) in it."""
        factors = 1 / (self._read_losses(losses, present) + self.eps)
        rows, scales = jacobian, factors
        if self.keeps_columns:
            index = torch.tensor(present, device=self.steps.device)
            steps = self.steps[index] + 1
            self.steps[index] = steps
            share = self.beta / steps.cpu().double() ** self.beta_sigma
            old = self._rows("mean", jacobian, present)
            rows = (old * share.to(old)[:, None]).addcmul_(jacobian.to(old), (factors * (1 - share)).to(old)[:, None])
            self._keep("mean", rows, present)
            scales = torch.ones_like(factors)
        products = linalg.gram(rows).cpu() * scales[:, None] * scales[None, :]
        weights = longest_length_weights(products)
        direction = (weights * scales).to(rows) @ rows
        return direction.to(jacobian.dtype), (weights * factors).to(jacobian)

    def _balance(self, found: Found, gram: Tensor | None, step: Step, call: Call) -> Balanced:
        balanced = super()._balance(found, gram, step, call)
        return dataclasses.replace(balanced, private=1 / (step.values + self.eps))
