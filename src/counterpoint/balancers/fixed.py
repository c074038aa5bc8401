"""Fixed weights: linear scalarization."""

from collections.abc import Mapping, Sequence
from typing import final

from jaxtyping import Float
from torch import Tensor

from counterpoint._checks import check_per_task, check_range
from counterpoint.balancers._base import LossBalancer
from counterpoint.errors import OptionError


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
        task_weights: Sequence[float] | Mapping[str, float],
    ) -> None:
        if not isinstance(task_weights, Sequence | Mapping) or isinstance(task_weights, str):
            raise OptionError(f"Fixed: task_weights must be a sequence or a mapping by task name, got {task_weights!r}")
        if num_tasks is None and tasks is None:
            num_tasks = len(task_weights)
        if tasks is None and isinstance(task_weights, Mapping):
            tasks = tuple(task_weights)
        super().__init__(num_tasks, tasks)
        listed = check_per_task("Fixed: task_weights", task_weights, self.num_tasks, self.tasks)
        self._listed = [float(check_range("Fixed: task_weights", w, low=0.0, high_open=True)) for w in listed]
        if not any(self._listed):
            raise OptionError(f"Fixed: task_weights must have a positive entry, got {task_weights!r}")
        self.task_weights = dict(task_weights) if isinstance(task_weights, Mapping) else tuple(task_weights)

    def objective(self, losses: Tensor, *, present: Sequence[int] | None = None) -> Tensor:
        """Return the objective of one step; see :func:`fixed_objective`."""
        positions = self._positions(len(losses), present)
        return fixed_objective(losses, losses.new_tensor([self._listed[task] for task in positions]))
