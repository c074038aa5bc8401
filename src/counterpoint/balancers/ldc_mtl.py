"""LDC-MTL: learned weights that keep the weighted losses close to each other."""

from collections.abc import Mapping, Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from counterpoint._checks import check_choice, check_per_task, check_range
from counterpoint.balancers._base import LossBalancer

_NORMALIZATIONS = ("none", "initial", "log_ratio")
_LEAST = -80.0  # the sigmoid of less vanishes in float32, and the mean of the losses would be 0 / 0
_SMALLEST = 1e-20  # a smaller ratio of losses counts as this one


def normalized_losses(
    losses: Float[Tensor, " K"], reference: Float[Tensor, " K"], normalization: str, *, smallest: float = 1.0
) -> Float[Tensor, " K"]:
    """Return the losses y that are balanced.

    Args:
        losses: Losses L, at least 0.
        reference: A former loss of each task, above 0; NaN: none yet, the loss itself
            counts, or 1 if it is 0.
        normalization: ``"none"``: y = L. ``"initial"``: ``y = L smallest / reference``, so that all losses start at the
            smallest of them. ``"log_ratio"``: ``y = ln(L / reference)``; a ratio below 1e-20 counts as that.
        smallest: The smallest of all references.

    Example:
        >>> normalized_losses(torch.tensor([4.0, 1.0]), torch.tensor([8.0, 1.0]), "initial")
        tensor([0.5000, 1.0000])
    """
    if normalization == "none":
        return losses
    own = torch.where(losses > 0, losses, torch.ones_like(losses)).detach()
    reference = torch.where(reference.isnan(), own, reference)
    ratio = losses / reference
    return ratio * smallest if normalization == "initial" else ratio.clamp(min=_SMALLEST).log()


def ldc_mtl_objective(
    normalized: Float[Tensor, " K"], router: Float[Tensor, " K"], *, lam: float = 0.01, detach_sum: bool = True
) -> Float[Tensor, ""]:
    """Return the penalty form ``sum_i s_i y_i / sum_i s_i + lam sum_i |s_i y_i - s_{i+1} y_{i+1}|``.

    The penalty compares each task with its neighbor only, so for more than two tasks the objective depends on their
    order.

    Args:
        normalized: Normalized losses y.
        router: Weights s, positive.
        lam: Strength of the penalty, at least 0.
        detach_sum: Whether the sum of s counts as a constant. If so, the first term pushes every s towards 0 where all
            y are positive, and the penalty shrinks with it.

    Example:
        >>> ldc_mtl_objective(torch.tensor([1.0, 3.0]), torch.tensor([0.5, 0.5]), lam=0.1)
        tensor(2.1000)

    References:
        Xiao, Dong, Zou, Ji, "LDC-MTL: Balancing Multi-Task Learning through Scalable Loss Discrepancy Control",
        arXiv:2502.08585, as in the released code. There, dense prediction takes s from features of the network; here
        they are free, as there on CelebA.
    """
    weighted = router * normalized
    total = router.detach().sum() if detach_sum else router.sum()
    return weighted.sum() / total + lam * weighted.diff().abs().sum()


@final
class LDCMTL(LossBalancer):
    """LDC-MTL: weights learned with the network, under a penalty on unequal losses; see :func:`ldc_mtl_objective`.

    Each weight is the sigmoid of a parameter, which counts as -80 where it is drawn below that. Give
    ``balancer.parameters()`` to the optimizer, as a group of their own with ``weight_decay=0``. The defaults are those
    of the released code where the weights are free parameters and the losses are of one kind (CelebA: normalization
    none, lam 0.01, sum detached); for losses in different units take another normalization. In the released code:
    Cityscapes none and lam 0.1, NYUv2 initial and 0.05 with the sum not
    detached, QM9 log_ratio and 0.05. A task that is absent is left out of the chain of neighbors. Losses must not be
    negative.

    Args:
        num_tasks: Number of tasks K.
        tasks: Names of the tasks; their order counts.
        normalization: ``"none"``; ``"initial"``, by the first loss of each task; ``"log_ratio"``, the logarithm of the
            ratio to the first loss in each epoch, see :meth:`end_epoch`.
        lam: Strength of the penalty, at least 0.
        detach_sum: Whether the sum of the weights counts as a constant.
        initial: First value of the parameters before the sigmoid, one for all or one per task, from -80 to 80.
    """

    key = "ldc_mtl"
    equation = "L = sum_i s_i y_i / sum_i s_i + lam sum_i |s_i y_i - s_{i+1} y_{i+1}|,  s = sigmoid(learned)"
    source = "Xiao, Dong, Zou, Ji, LDC-MTL, arXiv:2502.08585"
    provenance = "released code, with free parameters as router; first value and absent tasks are ours"
    scale = "mean of the normalized losses, and the penalty"
    avoid = (
        "Where the order of the tasks should not matter: the penalty compares neighbors only. Losses of "
        "different size need normalization, and with the sum detached every weight is drawn towards 0."
    )
    needs = frozenset({"epochs"})
    nonnegative_losses = True

    router: nn.ParameterList
    reference: Tensor

    def __init__(
        self,
        num_tasks: int | None = None,
        *,
        tasks: Sequence[str] | None = None,
        normalization: str = "none",
        lam: float = 0.01,
        detach_sum: bool = True,
        initial: float | Sequence[float] | Mapping[str, float] = 0.0,
    ) -> None:
        super().__init__(num_tasks, tasks)
        self.normalization = check_choice("LDCMTL: normalization", normalization, _NORMALIZATIONS)
        self.lam = check_range("LDCMTL: lam", lam, low=0.0, high_open=True)
        self.detach_sum = detach_sum
        first = check_per_task("LDCMTL: initial", initial, self.num_tasks, self.tasks)
        self.initial = initial
        self.add_parameter("router", [check_range("LDCMTL: initial", s, low=-80.0, high=80.0) for s in first])
        self.add_state("reference", torch.full((self.num_tasks,), float("nan"), dtype=torch.float64))

    def objective(self, losses: Tensor, *, present: Sequence[int] | None = None) -> Tensor:
        """Return the objective of one step; see :func:`ldc_mtl_objective`."""
        positions = self._positions(len(losses), present)
        index = torch.tensor(positions, dtype=torch.long, device=self.reference.device)
        wide = losses.to(self.reference)
        reference = self.reference[index]
        new = reference.isnan() & (wide.detach() > 0)
        self.reference[index] = torch.where(new, wide.detach(), reference)
        known = self.reference[~self.reference.isnan()]
        smallest = float(known.min()) if len(known) else 1.0
        normalized = normalized_losses(wide, self.reference[index], self.normalization, smallest=smallest)
        router = torch.stack([self.router[task] for task in positions]).to(wide).clamp(min=_LEAST).sigmoid()
        return ldc_mtl_objective(normalized, router, lam=self.lam, detach_sum=self.detach_sum).to(losses)

    def end_epoch(self) -> None:
        """Let the next loss of each task be its reference; for ``normalization="log_ratio"`` only."""
        if self.normalization == "log_ratio":
            self.reference.fill_(float("nan"))
