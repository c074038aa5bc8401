"""PIVRG: the alpha-fair combination with a larger share for tasks that fall behind their single-task networks."""

import math
from collections.abc import Mapping, Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from counterpoint._checks import check_choice, check_per_task, check_range
from counterpoint.balancers._base import GramBalancer
from counterpoint.balancers._metrics import Directions, Values, read_metrics
from counterpoint.errors import OptionError
from counterpoint.linalg import clip_combination, nonzero_block
from counterpoint.solvers.bargaining import bargain

_RESIDUAL = 1e-9  # rounding gives 1e-11 at most


def pivrg_demands(
    scores: Float[Tensor, " K"], *, bound: float = 2.0, min_temperature: float = 10.0
) -> Float[Tensor, " K"]:
    """Return the shares ``p = K softmax(s / T)`` with ``T = max((max s - min s) / ln(bound), min_temperature)``.

    Args:
        scores: Drop s of each task against its single-task network, in per cent; larger is worse.
        bound: Largest ratio of two shares, above 1.
        min_temperature: Least temperature, in per cent; drops that differ by less than it hardly count.

    Example:
        >>> pivrg_demands(torch.tensor([-10.0, 10.0, 30.0]))
        tensor([0.6796, 0.9611, 1.3592])
    """
    temperature = max(float(scores.max() - scores.min()) / math.log(bound), min_temperature)
    return len(scores) * (scores / temperature).softmax(dim=0)


def pivrg_weights(
    gram: Float[Tensor, "K K"],
    scores: Float[Tensor, " K"],
    *,
    bound: float = 2.0,
    min_temperature: float = 10.0,
    max_norm: float | None = None,
) -> tuple[Float[Tensor, " K"], float]:
    """Return the weights w > 0 with ``A w = sqrt(p / w)``, and the residual of the solver.

    The shares p are those of :func:`pivrg_demands`. It is FairGrad's equation for alpha = 2 with p in it. Every loss
    falls.

    Args:
        gram: Inner products A of the task gradients, symmetric positive semi-definite.
        scores: Drop of each task against its single-task network, in per cent.
        bound: Largest ratio of two shares, above 1.
        min_temperature: Least temperature of the softmax, in per cent.
        max_norm: Largest length of the weighted sum, or ``None``.

    Returns:
        Weights, 0 for a zero gradient, all 0 where zero is a convex combination of the others (there is no solution,
        the point is Pareto-stationary); and the largest relative error of the equation.

    Example:
        >>> pivrg_weights(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0.0, 30.0]))[0]
        tensor([0.8736, 1.1006])

    References:
        Qin, Wang, Yan, "Revisiting Fairness in Multitask Learning: A Performance-Driven Approach for Variance
        Reduction", CVPR 2025; formulas from the released code, which measures the scores on the test split. Here they
        come from the validation split.
    """
    index, small = nonzero_block(gram)
    weights = torch.zeros_like(gram.diagonal())
    if not len(index):
        return weights + 1 / len(gram), 0.0
    demands = pivrg_demands(scores[index].double(), bound=bound, min_temperature=min_temperature)
    found, residual = bargain(small, alpha=2.0, demands=demands)
    weights[index] = clip_combination(small, found, max_norm).to(weights)
    return weights, residual


@final
class PIVRG(GramBalancer):
    """PIVRG: tasks that fell behind get a larger share of the update; see :func:`pivrg_weights`.

    Until the first validation all shares are 1, which is FairGrad with alpha = 2. A task without a metric, or absent
    from a validation, keeps its last score.

    Args:
        num_tasks: Number of tasks K; may be left out, ``references`` has it.
        tasks: Names of the tasks; may be left out if ``references`` is a mapping.
        references: The primary metric that each task reaches when trained alone, not 0, in the order of the tasks or by
            task name.
        bound: Largest ratio of the shares of two tasks, above 1; 2 in the released code.
        min_temperature: Least temperature of the softmax over the drops, in per cent, above 0; 10 in the released code.
        max_norm: Largest length of the update, above 0; the released experiments clip at 1. ``None``: no bound.
        task_gradients: What task parameters get: ``"raw"``, the gradient of their own loss, or ``"weighted"``, the same
            times the task's weight.
    """

    key = "pivrg"
    equation = "A w = sqrt(p / w),  p = K softmax(drop against single-task training / T),  v = sum_i w_i g_i"
    source = "Qin, Wang, Yan, Revisiting Fairness in Multitask Learning, CVPR 2025"
    provenance = "released code (formulas), equation solved exactly; scores on the validation split"
    scale = "of degree -1/3 in the gradients; K orthogonal unit gradients are added up"
    avoid = (
        "Where single-task results are not at hand, since it needs one for each task, and a metric of each after "
        "every validation. Its update grows as gradients shrink (degree -1/3), so set max_norm or let the learning "
        "rate decay."
    )
    needs = frozenset({"metrics"})

    scores: Tensor

    def __init__(
        self,
        num_tasks: int | None = None,
        *,
        tasks: Sequence[str] | None = None,
        references: Sequence[float] | Mapping[str, float],
        bound: float = 2.0,
        min_temperature: float = 10.0,
        max_norm: float | None = None,
        task_gradients: str = "raw",
    ) -> None:
        if not isinstance(references, Sequence | Mapping) or isinstance(references, str):
            raise OptionError(f"PIVRG: references must be a sequence or a mapping by task name, got {references!r}")
        if num_tasks is None and tasks is None:
            num_tasks = len(references)
        if tasks is None and isinstance(references, Mapping):
            tasks = tuple(references)
        super().__init__(num_tasks, tasks)
        listed = check_per_task("PIVRG: references", references, self.num_tasks, self.tasks)
        self._references = [
            float(check_range("PIVRG: references", value, low_open=True, high_open=True)) for value in listed
        ]
        if not all(self._references):
            raise OptionError(f"PIVRG: references must not be 0, a drop is relative to them; got {references!r}")
        self.references = dict(references) if isinstance(references, Mapping) else tuple(references)
        self.bound = check_range("PIVRG: bound", bound, low=1.0, low_open=True, high_open=True)
        self.min_temperature = check_range(
            "PIVRG: min_temperature", min_temperature, low=0.0, low_open=True, high_open=True
        )
        if max_norm is not None:
            check_range("PIVRG: max_norm", max_norm, low=0.0, low_open=True)
        self.max_norm = max_norm
        self.task_gradients = check_choice("PIVRG: task_gradients", task_gradients, ("raw", "weighted"))
        self.add_state("scores", torch.zeros(self.num_tasks, dtype=torch.float64))

    def observe_metrics(self, values: Values, *, higher_is_better: Directions) -> None:
        """Compute the drops against the references, in per cent.

        Args:
            values: Primary metric of each task on the validation split, by task name or in the order of the tasks. NaN,
                or a name that is missing, leaves the score of a task as it is.
            higher_is_better: Direction of each metric.

        Raises:
            UnknownNameError: If there is a task that the balancer does not know.
            ShapeError: If the number of values is not that of the tasks.
            NonFiniteError: If a value is infinite.
        """
        names = self._names or tuple(str(task) for task in range(self.num_tasks))
        measured = read_metrics("PIVRG", names, values, higher_is_better)
        for task, ((value, higher), reference) in enumerate(zip(measured, self._references, strict=True)):
            if not math.isnan(value):
                self.scores[task] = 100 * (reference - value) / abs(reference) * (1 if higher else -1)

    def solve(self, gram: Tensor, losses: Tensor | None, present: tuple[int, ...]) -> Tensor:  # noqa: ARG002
        """Return the weights of one step; see :func:`pivrg_weights`."""
        scores = self.scores[torch.tensor(present, device=self.scores.device)].to(gram)
        weights, residual = pivrg_weights(
            gram, scores, bound=self.bound, min_temperature=self.min_temperature, max_norm=self.max_norm
        )
        if not residual <= _RESIDUAL:
            self.warn_once("solver", f"the solver stopped at residual {residual:.1e}; its best weights are used")
        return weights
