"""RLW: random loss weighting."""

from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from counterpoint._checks import check_choice
from counterpoint.balancers._base import LossBalancer

DISTRIBUTIONS = ("normal", "uniform", "dirichlet", "bernoulli")


def rlw_weights(draws: Float[Tensor, " K"], *, distribution: str = "normal") -> Float[Tensor, " K"]:
    """Return random weights on the simplex; each has expectation 1 / K.

    ``"normal"``: softmax of standard normal draws. The others start from draws uniform in [0, 1): ``"uniform"`` is
    their softmax; ``"dirichlet"`` is uniform on the simplex, ``-ln u_i / sum_j -ln u_j``; ``"bernoulli"`` takes the
    tasks with u_i < 1/2 in equal parts, and all of them if there is none.

    Args:
        draws: Independent draws, standard normal for ``"normal"`` and uniform for the others.
        distribution: Which of the four.

    Returns:
        Weights, at least 0, summing to one.

    Example:
        >>> rlw_weights(torch.tensor([0.0, 0.0]))
        tensor([0.5000, 0.5000])

    References:
        Lin et al., "Reasonable Effectiveness of Random Weighting", TMLR 2022, arXiv:2111.10603. The paper also tests
        draws from the other three; how it normalizes them is our reading.
    """
    if distribution in ("normal", "uniform"):
        return draws.softmax(dim=0)
    if distribution == "dirichlet":
        parts = -torch.log1p(-draws)  # 1 - u is uniform on (0, 1]
        return parts / parts.sum() if bool(parts.sum() > 0) else torch.full_like(draws, 1 / len(draws))
    chosen = (draws < 0.5).to(draws)
    return chosen / chosen.sum() if bool(chosen.any()) else torch.full_like(draws, 1 / len(draws))


@final
class RLW(LossBalancer):
    """RLW: at every step new random weights for the losses; see :func:`rlw_weights`.

    Args:
        num_tasks: Number of tasks K.
        tasks: Names of the tasks.
        distribution: ``"normal"`` (the paper's), ``"uniform"``, ``"dirichlet"`` or ``"bernoulli"``.
        generator: Source of the draws.
    """

    key = "rlw"
    equation = "L = sum_i w_i L_i,  w = softmax(z),  z_i ~ N(0, 1) at every step"
    source = "Lin et al., Reasonable Effectiveness of Random Weighting, TMLR 2022, arXiv:2111.10603"
    provenance = "paper and released code for 'normal'; normalization of the other distributions is our reading"
    scale = "weights sum to 1"
    avoid = (
        "Where losses differ in size or gradients conflict: in expectation it is the plain mean of the losses, so it "
        "corrects neither, and the draws add noise to every step."
    )

    def __init__(
        self,
        num_tasks: int | None = None,
        *,
        tasks: Sequence[str] | None = None,
        distribution: str = "normal",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(num_tasks, tasks, generator, random=True)
        self.distribution = check_choice("RLW: distribution", distribution, DISTRIBUTIONS)

    def objective(self, losses: Tensor, *, present: Sequence[int] | None = None) -> Tensor:
        """Return the objective of one step; see :func:`rlw_weights`."""
        self._positions(len(losses), present)
        draw = torch.randn if self.distribution == "normal" else torch.rand
        draws = draw(len(losses), generator=self.generator, dtype=torch.float64)
        return (rlw_weights(draws, distribution=self.distribution).to(losses) * losses).sum()
