"""DTP: dynamic task prioritization."""

import math
from collections.abc import Mapping, Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from counterpoint._checks import check_per_task, check_range
from counterpoint.balancers._base import LossBalancer
from counterpoint.balancers._metrics import Directions, Values, read_metrics
from counterpoint.errors import OptionError

_LEAST, _MOST = 1e-3, 1 - 1e-6  # bounds of a KPI: its logarithm is finite, its weight never exactly 0
_ROUNDING = 1e-6  # a metric may exceed perfection by this, relative

PerTask = float | Sequence[float] | Mapping[str, float]


def dtp_weights(
    kpi: Float[Tensor, " K"], gamma: Float[Tensor, " K"], *, normalize: bool = False
) -> Float[Tensor, " K"]:
    """Return the focal weights ``-(1 - k_i)^gamma_i ln k_i``: the worse a task performs, the more it counts.

    A weight falls with the KPI and vanishes as it goes to 1, so the update becomes small when all tasks are solved.

    Args:
        kpi: Performance k of each task; held between 0.001 and 1 - 1e-6. NaN where there is none: weight 1.
        gamma: Focusing exponents, at least 0.
        normalize: Whether to scale the weights to the sum K.

    Returns:
        Weights, positive; at most 6.9 unless normalized.

    Example:
        >>> dtp_weights(torch.tensor([0.2, 0.9]), torch.ones(2))
        tensor([1.2876, 0.0105])

    References:
        Guo, Haque, Huang, Yeung, Fei-Fei, "Dynamic Task Prioritization for Multitask Learning", ECCV 2018, task level.
        Its example level is no weight of a task but a loss, the focal loss: use that as the loss of the task.
    """
    held = kpi.clamp(_LEAST, _MOST)
    logarithm = gamma * (-held).log1p() + (-held.log()).log()
    logarithm = torch.where(kpi.isnan(), torch.zeros_like(logarithm), logarithm)
    return len(kpi) * logarithm.softmax(dim=0) if normalize else logarithm.exp()


@final
class DTP(LossBalancer):
    """DTP: tasks that perform badly count more; see :func:`dtp_weights`.

    The performance of a task is the running mean of its KPI, ``k = (metric - worst) / (perfect - worst)``, which
    :meth:`observe_metrics` computes from the primary metric. The training loop gives that of the validation split after
    each epoch; in a loop of your own, metrics of the training batch at every step are as good. Until a task has a
    metric its weight is 1. A task without one, or absent from a validation, keeps its KPI.

    There is no default for ``perfect``, because the weights depend on it and no number tells whether 0.9 is a share or
    per cent: accuracy here is in per cent, ``perfect=100``. For a metric where lower is better, such as an error in
    metres, say with ``worst`` what a useless prediction reaches, and ``perfect=0``.

    Args:
        num_tasks: Number of tasks K.
        tasks: Names of the tasks.
        perfect: Value of the metric that means that the task is solved: 1 for a share, 100 for per cent, 0 for an
            error; one for all tasks, or one per task as a sequence or by task name.
        worst: Value of the metric that means that nothing is learned, in the same form; 0 fits a share or per cent.
        gamma: Focusing exponent, at least 0, one for all or one per task; the paper tunes it between 0.5 and 2.
        ema_new_weight: Share of the newest metric in the running mean, above 0, at most 1.
        normalize: Whether to scale the weights to the number of tasks in the batch.
    """

    key = "dtp"
    equation = "w_i = -(1 - k_i)^gamma_i ln k_i,  k_i running mean of the task's KPI"
    source = "Guo, Haque, Huang, Yeung, Fei-Fei, Dynamic Task Prioritization for Multitask Learning, ECCV 2018"
    provenance = "paper, task level; weight of the running mean and map of a metric to a KPI are ours"
    scale = "focal weights, towards 0 as tasks are solved; with normalize weights sum to K"
    avoid = (
        "Where no metric between 0 and a known best value is at hand, or where losses differ in size: the "
        "weights ignore it. The update vanishes as all tasks come near their best value."
    )
    needs = frozenset({"metrics"})

    kpi: Tensor

    def __init__(
        self,
        num_tasks: int | None = None,
        *,
        tasks: Sequence[str] | None = None,
        perfect: PerTask,
        worst: PerTask = 0.0,
        gamma: PerTask = 1.0,
        ema_new_weight: float = 0.1,
        normalize: bool = False,
    ) -> None:
        super().__init__(num_tasks, tasks)
        self._perfect = self._listed("perfect", perfect)
        self._worst = self._listed("worst", worst)
        for best, least in zip(self._perfect, self._worst, strict=True):
            if best == least:
                raise OptionError(f"DTP: perfect and worst must differ, got {best:g} for both")
        self._gamma = self._listed("gamma", gamma, low=0.0)
        self.perfect = perfect
        self.worst = worst
        self.gamma = gamma
        self.ema_new_weight = check_range("DTP: ema_new_weight", ema_new_weight, low=0.0, high=1.0, low_open=True)
        self.normalize = normalize
        self.add_state("kpi", torch.full((self.num_tasks,), float("nan"), dtype=torch.float64))

    def _listed(self, name: str, value: PerTask, low: float = -math.inf) -> tuple[float, ...]:
        label = f"DTP: {name}"
        listed = check_per_task(label, value, self.num_tasks, self.tasks)
        return tuple(float(check_range(label, one, low=low, low_open=low < 0, high_open=True)) for one in listed)

    def observe_metrics(self, values: Values, *, higher_is_better: Directions) -> None:
        """Take the metrics into the running means.

        Args:
            values: Primary metric of each task, by task name or in the order of the tasks. NaN, or a name that is
                missing, leaves the KPI of a task as it is.
            higher_is_better: Direction of each metric.

        Raises:
            UnknownNameError: If there is a task that the balancer does not know.
            ShapeError: If the number of values is not that of the tasks.
            NonFiniteError: If a value is infinite.
            OptionError: If a metric has the other direction than ``worst`` to ``perfect``, or is better than
                ``perfect``.
        """
        names = self._names or tuple(str(task) for task in range(self.num_tasks))
        found = self.kpi.clone()
        for task, (value, higher) in enumerate(read_metrics("DTP", names, values, higher_is_better)):
            if not math.isnan(value):
                now = self._measure(names[task], value, higher, self._perfect[task], self._worst[task])
                old = float(found[task])
                found[task] = now if math.isnan(old) else old + self.ema_new_weight * (now - old)
        self.kpi.copy_(found)

    def _measure(self, name: str, value: float, higher: bool, perfect: float, worst: float) -> float:
        """Return the KPI of one task, at least 0.

        Raises:
            OptionError: If the metric does not go from ``worst`` to ``perfect``.
        """
        if higher != (perfect > worst):
            better, cure = "higher", "a worst below perfect"
            if not higher:
                better, cure = "lower", "perfect=0 and as worst the error of a useless prediction, both by task name"
            raise OptionError(
                f"DTP: the metric of task {name!r} is better when it is {better}, but worst = {worst:g} and "
                f"perfect = {perfect:g}; give this task {cure}"
            )
        kpi = (value - worst) / (perfect - worst)
        if kpi > 1 + _ROUNDING:
            raise OptionError(
                f"DTP: the metric of task {name!r} is {value:g}, better than perfect = {perfect:g}; say what a solved "
                "task has, perfect=100 if the metric is in per cent"
            )
        return min(max(kpi, 0.0), 1.0)

    def objective(self, losses: Tensor, *, present: Sequence[int] | None = None) -> Tensor:
        """Return the objective of one step; see :func:`dtp_weights`."""
        positions = self._positions(len(losses), present)
        kpi = self.kpi[torch.tensor(positions, dtype=torch.long, device=self.kpi.device)]
        gamma = kpi.new_tensor([self._gamma[task] for task in positions])
        return (dtp_weights(kpi, gamma, normalize=self.normalize).to(losses) * losses).sum()
