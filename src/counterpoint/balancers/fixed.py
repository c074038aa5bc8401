"""Fixed weights: linear scalarization."""

from collections.abc import Mapping, Sequence
from typing import final

from jaxtyping import Float
from torch import Tensor

from counterpoint.balancers._base import LossBalancer
from counterpoint.balancers._task_weights import TaskWeights, check_task_weights, infer_tasks


def fixed_objective(losses: Float[Tensor, " K"], task_weights: Float[Tensor, " K"]) -> Float[Tensor, ""]:
    """Return the weighted sum of the losses.

    Every stationary point of it with positive weights is Pareto stationary; which point is reached depends on the
    weights.

    Args:
        losses: Losses of the tasks.
        task_weights: Weights, at least 0, in any normalization.

    Example:
        >>> import torch
        >>> fixed_objective(torch.tensor([1.0, 2.0]), torch.tensor([0.5, 3.0]))
        tensor(6.5000)
    """
    return (task_weights * losses).sum()


@final
class Fixed(LossBalancer):
    """Linear scalarization: a weighted sum of the losses with weights that you choose; see :func:`fixed_objective`.

    Args:
        num_tasks: Number of tasks K; may be left out, ``task_weights`` has it.
        tasks: Names of the tasks; may be left out if ``task_weights`` is a mapping.
        task_weights: One weight per task, in the order of the tasks or by task name; at least 0, one of them positive,
            used as they are. A task with weight 0 is not trained.

    References:
        Xin et al., "Do Current Multi-Task Optimization Methods in Deep Learning Even Help?", NeurIPS 2022,
        arXiv:2209.11379; Kurin et al., "In Defense of the Unitary Scalarization", NeurIPS 2022, arXiv:2201.04122.
    """

    key = "fixed"
    equation = "L = sum_i w_i L_i, w_i chosen by the user"
    source = "folklore; as a baseline Xin et al., NeurIPS 2022, arXiv:2209.11379"
    provenance = "folklore baseline"
    scale = "sum with the given weights, not normalized"
    avoid = (
        "Where the weights are not known beforehand: K - 1 of them have to be searched for, and they fit one scale of "
        "the losses only. It sees no conflicts."
    )

    def __init__(
        self,
        num_tasks: int | None = None,
        *,
        tasks: Sequence[str] | None = None,
        task_weights: TaskWeights,
    ) -> None:
        super().__init__(*infer_tasks("Fixed", task_weights, num_tasks, tasks))
        self._listed = check_task_weights("Fixed", task_weights, self.num_tasks, self.tasks)
        self.task_weights = dict(task_weights) if isinstance(task_weights, Mapping) else tuple(task_weights)

    def objective(self, losses: Tensor, *, present: Sequence[int] | None = None) -> Tensor:
        """Return the objective of one step; see :func:`fixed_objective`."""
        positions = self._positions(len(losses), present)
        return fixed_objective(losses, losses.new_tensor([self._listed[task] for task in positions]))
