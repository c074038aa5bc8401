"""SAM-GS: gradient surgery by the similarity of magnitudes."""

from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from counterpoint import linalg
from counterpoint._checks import check_range
from counterpoint.balancers._columns import ColumnsBalancer

_FLOOR = 1e-8  # added to the spread at each step, as in the released code, so that it is never 0


def mean_magnitude_similarity(gram: Float[Tensor, "K K"]) -> float:
    """Return the mean over pairs of ``2 d_i d_j / (d_i^2 + d_j^2)``, with d the lengths of the rows.

    Args:
        gram: Inner products of the task gradients; rows that are zero are left out.

    Returns:
        In (0, 1], 1 for rows of equal length, and where there is no pair.

    Example:
        >>> round(mean_magnitude_similarity(torch.tensor([[1.0, 0.0], [0.0, 4.0]])), 6)
        0.8

    References:
        Yu et al., "Gradient Surgery for Multi-Task Learning", NeurIPS 2020, arXiv:2001.06782.
    """
    lengths = linalg.norms(gram)[linalg.nonzero_rows(gram)]
    if len(lengths) < 2:
        return 1.0
    unit = lengths / lengths.max()
    ratio = torch.minimum(unit[:, None], unit[None, :]) / torch.maximum(unit[:, None], unit[None, :])
    similarity = 2 * ratio / (1 + ratio * ratio)
    first, second = torch.triu_indices(len(unit), len(unit), offset=1)
    return float(similarity[first, second].mean())


def equalized_weights(gram: Float[Tensor, "K K"]) -> Float[Tensor, " K"]:
    """Return the factors that give all rows their mean length: ``mean(d) / d_i``; 0 for a row that is zero.

    Example:
        >>> equalized_weights(torch.tensor([[1.0, 0.0], [0.0, 9.0]]))
        tensor([2.0000, 0.6667])
    """
    lengths, kept = linalg.norms(gram), linalg.nonzero_rows(gram)
    if not bool(kept.any()):
        return torch.zeros_like(lengths)
    return torch.where(kept, lengths[kept].mean() / torch.where(kept, lengths, 1.0), 0.0)


@final
class SAMGS(ColumnsBalancer):
    """SAM-GS: equal lengths while they differ much, else each coordinate scaled by its mean over steps.

    With S the :func:`mean_magnitude_similarity`: if ``S < gamma``, every gradient is given the mean length, and they
    are added. Otherwise ``v = sum_i g_i |M_i| / sqrt(V_i)`` by coordinate, where ``M_i <- beta1 M_i + (1 - beta1) g_i``
    and ``V_i <- beta2 V_i + (1 - beta2) (1 - S)^2 + 1e-8`` are running means with the start corrected as in Adam. They
    go on in both branches. Angles between gradients play no part.

    The gradient appears twice in the second branch: twice the gradient is four times the update, and 1 / sqrt(V) is up
    to 1000 for gradients of equal length. Use it with an optimizer that does not see the scale, such as Adam, or clip.
    The running means cost memory for K more gradients. Of one task alone, S = 1.

    Args:
        num_tasks: Number of tasks K.
        tasks: Names of the tasks.
        beta1: Share of the past in M, in [0, 1).
        beta2: Share of the past in V, in [0, 1).
        gamma: Similarity below which lengths are made equal, in [0, 1]; 0.1 in the released class, 0.7 in its recipes.

    References:
        Borsani, Rosani, Nicosia, Di Fatta, "Gradient Similarity Surgery in Multi-Task Deep Learning", arXiv:2506.06130,
        by its released code. Its variant for reinforcement learning, which equalizes if a single pair is below gamma,
        is left out. Steps and V are kept by task here, which differs only where a task is absent; zero gradients are
        left out of S.
    """

    key = "sam_gs"
    equation = "S < gamma: v = mean(d) sum_i g_i / d_i;  else v = sum_i g_i |M_i| / sqrt(V_i)"
    source = "Borsani et al., Gradient Similarity Surgery in Multi-Task Deep Learning, 2025, arXiv:2506.06130"
    provenance = "released code; the paper's text by its abstract; zero gradients and absent tasks are ours"
    scale = "sum where lengths are made equal; of degree 2 in the gradients otherwise"
    avoid = (
        "Where the angle between gradients is the problem: it looks at lengths only. Its modulated update "
        "grows with the square of the gradients, so bound its length or use an optimizer that normalizes."
    )
    cost = "K backward passes, memory for K gradients and for a state of K more (K x P)"

    moment: Tensor
    spread: Tensor
    steps: Tensor

    def __init__(
        self,
        num_tasks: int | None = None,
        *,
        tasks: Sequence[str] | None = None,
        beta1: float = 0.9,
        beta2: float = 0.99,
        gamma: float = 0.1,
    ) -> None:
        super().__init__(num_tasks, tasks)
        self.beta1 = check_range("SAMGS: beta1", beta1, low=0.0, high=1.0, high_open=True)
        self.beta2 = check_range("SAMGS: beta2", beta2, low=0.0, high=1.0, high_open=True)
        self.gamma = check_range("SAMGS: gamma", gamma, low=0.0, high=1.0)
        self.add_lazy_state("moment")
        self.add_state("spread", torch.zeros(self.num_tasks, dtype=torch.float64))
        self.add_state("steps", torch.zeros(self.num_tasks, dtype=torch.long))

    def aggregate(self, jacobian: Tensor, losses: Tensor | None, present: tuple[int, ...]) -> Tensor:  # noqa: ARG002
        """Return the direction of one step."""
        index = torch.tensor(present, device=self.steps.device)
        gram = linalg.gram(jacobian).cpu()
        similarity = mean_magnitude_similarity(gram)
        steps = self.steps[index].cpu() + 1
        spread = self.beta2 * self.spread[index].cpu().double() + (1 - self.beta2) * (1 - similarity) ** 2 + _FLOOR
        old = self._rows("moment", jacobian, present)
        moment = (old * self.beta1).add_(jacobian.to(old), alpha=1 - self.beta1)
        self.steps[index] = steps.to(self.steps)
        self.spread[index] = spread.to(self.spread)
        self._keep("moment", moment, present)
        if similarity < self.gamma:
            return equalized_weights(gram).to(jacobian) @ jacobian
        count = steps.double()
        factors = ((1 - self.beta2**count) / spread).sqrt() / (1 - self.beta1**count)
        direction = torch.zeros_like(moment[0])
        for row, mean, factor in zip(jacobian.to(old), moment, factors.tolist(), strict=True):
            direction.addcmul_(row, mean.abs(), value=factor)
        return direction.to(jacobian.dtype)
