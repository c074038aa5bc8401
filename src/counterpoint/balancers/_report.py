"""The report of one step: what a balancer measured and decided, by task."""

import dataclasses
from typing import Any

import torch
from torch import Tensor

from counterpoint.balancers._losses import Step
from counterpoint.gradients.jacobian import Level


@dataclasses.dataclass(frozen=True)
class BalancerReport:
    """What one step did, for logging; nothing here costs anything more.

    Attributes:
        tasks: Names of the K tasks; their positions, as text, where they have no names.
        present: Which tasks took part, (K,).
        losses: Loss of each task, (K,); NaN for an absent one.
        weights: Weight of each task's gradient in the shared update, (K,), 0 for an absent one; ``None`` for
            methods that do not weight whole tasks.
        gram: Inner products of the task gradients, (K, K) in float64, NaN for an absent task; ``None`` if the
            method does not need them. At ``level="features"`` of the gradients of the features.
        level: What ``gram`` was measured on.
        num_backward: Backward passes through the shared part of the network.
        skipped: True if a gradient scaler was given and found an overflow.
    """

    tasks: tuple[str, ...]
    present: Tensor
    losses: Tensor
    weights: Tensor | None
    gram: Tensor | None
    level: Level
    num_backward: int
    skipped: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers by task name, for a logger (waits for the device)."""
        present = self.present.tolist()
        names = [task for task, here in zip(self.tasks, present, strict=True) if here]
        values: dict[str, Any] = {
            "losses": {task: float(self.losses[self.tasks.index(task)]) for task in names},
            "num_backward": self.num_backward,
        }
        if self.weights is not None:
            values["weights"] = {task: float(self.weights[self.tasks.index(task)]) for task in names}
        return values


def make_report(
    step: Step, weights: Tensor | None, gram: Tensor | None, level: Level, num_backward: int, *, skipped: bool = False
) -> BalancerReport:
    """Spread what was measured on the present tasks over all tasks."""
    num_tasks, device = len(step.names), step.values.device
    if len(step.present) == num_tasks:
        present = torch.ones(num_tasks, dtype=torch.bool, device=device)
        weights = None if weights is None else weights.clone()
        return BalancerReport(step.names, present, step.values, weights, gram, level, num_backward, skipped)
    index = torch.tensor(step.present, device=device, dtype=torch.long)
    present = torch.zeros(num_tasks, dtype=torch.bool, device=device)
    present[index] = True
    losses = torch.full((num_tasks,), float("nan"), dtype=step.values.dtype, device=device)
    losses[index] = step.values
    if weights is not None:
        spread = torch.zeros(num_tasks, dtype=weights.dtype, device=weights.device)
        spread[index.to(weights.device)] = weights
        weights = spread
    if gram is not None:
        at = index.to(gram.device)
        spread = torch.full((num_tasks, num_tasks), float("nan"), dtype=gram.dtype, device=gram.device)
        spread[at[:, None], at[None, :]] = gram
        gram = spread
    return BalancerReport(step.names, present, losses, weights, gram, level, num_backward, skipped)
