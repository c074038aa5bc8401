"""Saliency similarity: two tasks are related if their outputs depend on the shared features alike."""

from collections.abc import Sequence
from typing import final

import numpy as np
import torch
from torch import Tensor, nn

from counterpoint.errors import GraphError, OptionError
from counterpoint.grouping._observer import Compute, Estimator
from counterpoint.grouping._preserve import Snapshot
from counterpoint.grouping.affinity import Matrix


@final
class Saliency(Estimator):
    """Distance of saliencies: mean over samples of ``||s_t - s_u||_1``; lower is better.

    ``s_t`` is the gradient of a task's output on the shared features, summed over positions: one number per channel
    and sample. Exact where heads treat samples apart; a norm over the batch in a head breaks that.
    ``compute`` returns the pair (features with a graph, outputs by task). An output with several numbers per sample is
    summed, which is our reading.

    Args:
        num_tasks: Number of tasks T; may be left out if ``tasks`` is given.
        tasks: Names of the tasks.
        every: Measure every so many calls of ``observe``.

    References:
        Bai, Zhao, "Saliency-Regularized Deep Multi-Task Learning", KDD 2022, arXiv:2207.01117. Its distance only: no
        learned weights of pairs.
    """

    key = "saliency"
    directed = False
    higher_is_better = False
    diagonal = "0"
    source = "Bai and Zhao, SRDML, KDD 2022, arXiv:2207.01117"
    provenance = "distance as in the released code, mean over the batch; several outputs are our reading"
    cost = "1 forward pass and T backward passes of the heads per observation"
    reads = "(features, outputs)"

    def __init__(self, num_tasks: int | None = None, *, tasks: Sequence[str] | None = None, every: int = 10) -> None:
        super().__init__(num_tasks, tasks, every)

    def _measure(self, compute: Compute, snapshot: Snapshot, shared: list[nn.Parameter] | None) -> Matrix:  # noqa: ARG002
        with torch.enable_grad():
            pair = compute()
            if not isinstance(pair, tuple) or len(pair) != 2 or not isinstance(pair[0], Tensor):
                raise OptionError("Saliency: compute must return (features, outputs of the tasks)")
            features, outputs = pair[0], self.by_task(pair[1], "outputs")
        if not features.requires_grad:
            raise GraphError("Saliency: the features have no graph; compute them with gradients on")
        values = np.full((self.num_tasks, self.num_tasks), np.nan)
        rows = {task: _saliency(self.names[task], out, features) for task, out in enumerate(outputs) if out is not None}
        for first, a in rows.items():
            for second, b in rows.items():
                values[first, second] = float((a - b).abs().sum(dim=1).double().mean())
        return values


def _saliency(task: str, output: Tensor, features: Tensor) -> Tensor:
    """Return (B, C): gradient of the output on the features, summed over positions."""
    grad = torch.autograd.grad(output.sum(), features, retain_graph=True, allow_unused=True)[0]
    if grad is None:
        raise GraphError(
            f"Saliency: the output of {task} does not depend on the features; return those that heads read"
        )
    return grad.flatten(2).sum(dim=2) if grad.dim() > 2 else grad
