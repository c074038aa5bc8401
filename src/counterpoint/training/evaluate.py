"""Evaluation of a model on a split with torchmetrics."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from counterpoint.tasks import Task


def evaluate(
    model: nn.Module, tasks: Sequence[Task], batches: Iterable[Mapping[str, Tensor]]
) -> dict[str, dict[str, float]]:
    """Return task -> metric -> value over all batches, in each metric's unit.

    The model is put into eval mode and back into the mode in which it was. Entries whose mask is False are left out; a
    task without a single label in the split has NaN.

    Args:
        model: Returns a :class:`~counterpoint.architectures.MTLOutput`.
        tasks: Tasks to judge.
        batches: Batches of one split, on the model's device.
    """
    meters = {task.name: {name: spec.make() for name, spec in task.metrics.items()} for task in tasks}
    counts = dict.fromkeys(meters, 0)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            for batch in batches:
                output = model(batch["image"], [task.name for task in tasks])
                for task in tasks:
                    counts[task.name] += _update(meters[task.name], output.preds[task.name], batch, task.name)
    finally:
        model.train(was_training)
    return {
        task.name: {
            name: _value(meters[task.name][name]) * spec.factor if counts[task.name] else float("nan")
            for name, spec in task.metrics.items()
        }
        for task in tasks
    }


def _value(meter: Any) -> float:
    """Return the value of a metric; of one in float32 the seven digits that it has, not the noise behind them."""
    value = meter.compute()
    return float(value) if value.dtype == torch.float64 else float(f"{float(value):.7g}")


def _update(meters: Mapping[str, Any], prediction: Tensor, batch: Mapping[str, Tensor], task: str) -> int:
    """Feed one batch to the meters of a task; return the number of labelled entries."""
    target = batch.get(task)
    if target is None:
        return 0
    mask = batch.get(f"{task}_mask")
    prediction = prediction.float()
    if mask is not None:
        if prediction.ndim > mask.ndim:
            prediction = prediction.movedim(1, -1)
        prediction, target = prediction[mask], target[mask]
    if target.numel() == 0:
        return 0
    for meter in meters.values():
        meter.to(prediction.device).update(prediction, target)
    return target.numel()
