"""Scale-invariant scalarization: the sum of the logarithms of the losses."""

from collections.abc import Mapping, Sequence
from typing import final

from jaxtyping import Float
from torch import Tensor

from counterpoint._checks import check_choice, check_range
from counterpoint.balancers._base import LossBalancer
from counterpoint.balancers._task_weights import TaskWeights, check_task_weights, infer_tasks

_FORMS = ("log", "log1p")


def scale_invariant_objective(
    losses: Float[Tensor, " K"], task_weights: Float[Tensor, " K"], *, form: str = "log", eps: float = 1e-8
) -> Float[Tensor, ""]:
    """Return the weighted sum of the logarithms of the losses.

    ``"log"``: ``sum_i w_i ln(L_i + eps)``. The weight of a loss is ``w_i / (L_i + eps)``, so a constant factor on a
    loss that is large against ``eps`` changes nothing in the update. ``"log1p"``: ``sum_i w_i ln(1 + L_i)``, with
    weights ``w_i / (1 + L_i)``: bounded, but not invariant; it is close to the plain sum where the losses are small
    against 1, and to ``"log"`` where they are large.

    With all w equal, ``"log"`` has the direction of the geometric mean (GLS), and it is what IMTL-L and uncertainty
    weighting minimize once their learned scalars are at the optimum.

    Args:
        losses: Losses, at least 0.
        task_weights: Weights w, at least 0, in any normalization.
        form: ``"log"`` or ``"log1p"``.
        eps: Added to each loss, so that the weight of a loss of 0 stays finite; above 0. Not read by ``"log1p"``.

    Returns:
        The total; may be negative with ``"log"``.

    Example:
        >>> import torch
        >>> scale_invariant_objective(torch.tensor([1.0, 1.0]), torch.tensor([1.0, 3.0]), form="log1p")
        tensor(2.7726)

    References:
        Folklore; the baseline "SI" of the code released with Navon et al., "Multi-Task Learning as a Bargaining Game",
        ICML 2022, arXiv:2202.01017, with a plain logarithm. ``"log1p"`` is the form of the code released with
        Senushkin et al., "Independent Component Alignment for Multi-Task Learning", CVPR 2023, arXiv:2305.19000.
    """
    logarithms = losses.log1p() if form == "log1p" else (losses + eps).log()
    return (task_weights * logarithms).sum()


@final
class ScaleInvariant(LossBalancer):
    """Scale-invariant scalarization: minimizes the sum of the log losses; see :func:`scale_invariant_objective`.

    Losses must not be negative.

    Args:
        num_tasks: Number of tasks K; may be left out if ``task_weights`` is given.
        tasks: Names of the tasks; may be left out if ``task_weights`` is a mapping.
        task_weights: One weight per task, in the order of the tasks or by task name; at least 0, one of them positive,
            used as they are. Default: 1 for each.
        form: ``"log"``, or ``"log1p"`` for ``ln(1 + L)``, which is not scale-invariant.
        eps: Added to each loss before the logarithm, above 0, in the unit of the losses; not read by ``"log1p"``.
    """

    key = "scale_invariant"
    equation = "L = sum_i w_i ln(L_i + eps), w_i chosen by the user"
    source = "folklore; baseline SI in the code of Navon et al., ICML 2022, arXiv:2202.01017"
    provenance = "formulas of released code (nash-mtl; log1p: Aligned-MTL); eps is ours"
    scale = "weights w_i / L_i, not normalized"
    avoid = (
        "Where a loss can come near 0: its weight is 1 / L, so a solved task takes over. Conflicts between "
        "tasks are not seen."
    )
    nonnegative_losses = True

    def __init__(
        self,
        num_tasks: int | None = None,
        *,
        tasks: Sequence[str] | None = None,
        task_weights: TaskWeights | None = None,
        form: str = "log",
        eps: float = 1e-8,
    ) -> None:
        if task_weights is not None:
            num_tasks, tasks = infer_tasks("ScaleInvariant", task_weights, num_tasks, tasks)
        super().__init__(num_tasks, tasks)
        given = [1.0] * self.num_tasks if task_weights is None else task_weights
        self._listed = check_task_weights("ScaleInvariant", given, self.num_tasks, self.tasks)
        self.task_weights = task_weights
        if task_weights is not None:
            self.task_weights = dict(task_weights) if isinstance(task_weights, Mapping) else tuple(task_weights)
        self.form = check_choice("ScaleInvariant: form", form, _FORMS)
        self.eps = check_range("ScaleInvariant: eps", eps, low=0.0, low_open=True, high_open=True)

    def objective(self, losses: Tensor, *, present: Sequence[int] | None = None) -> Tensor:
        """Return the objective of one step; see :func:`scale_invariant_objective`."""
        positions = self._positions(len(losses), present)
        weights = losses.new_tensor([self._listed[task] for task in positions])
        return scale_invariant_objective(losses, weights, form=self.form, eps=self.eps)
