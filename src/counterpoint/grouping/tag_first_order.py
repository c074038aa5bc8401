"""TAG to first order: from the gradients alone."""

from collections.abc import Sequence
from typing import final

import numpy as np
import torch
from torch import nn

from counterpoint.grouping._observer import Compute, Estimator
from counterpoint.grouping._preserve import Snapshot
from counterpoint.grouping._step import learning_rates
from counterpoint.grouping.affinity import Matrix


@final
class TAGFirstOrder(Estimator):
    """First-order inter-task affinity: ``Z[i, j] = lr * <g_i, g_j> / L_j`` over the shared parameters.

    The limit of :class:`~counterpoint.grouping.TAG` with plain gradient steps for small learning rates; no look ahead.

    Args:
        num_tasks: Number of tasks T; may be left out if ``tasks`` is given.
        tasks: Names of the tasks.
        every: Measure every so many calls of ``observe``.

    References:
        Expansion of Fifty et al., NeurIPS 2021, arXiv:2109.04617; the estimator is ours.
    """

    key = "tag_first_order"
    directed = True
    diagonal = "effect of a task's step on its own loss"
    source = "first-order expansion of Fifty et al., TAG, NeurIPS 2021"
    provenance = "our reading"
    cost = "1 forward and T backward passes per observation"
    reads = "losses"

    def __init__(self, num_tasks: int | None = None, *, tasks: Sequence[str] | None = None, every: int = 10) -> None:
        super().__init__(num_tasks, tasks, every)

    def _measure(self, compute: Compute, snapshot: Snapshot, shared: list[nn.Parameter] | None) -> Matrix:
        losses, grads, flags = self.differentiated(compute, snapshot, shared)
        before = np.array(self.positive(losses))
        rates = learning_rates("TAGFirstOrder", snapshot.parameters, snapshot.optimizer)
        weights = [rate if flag else 0.0 for rate, flag in zip(rates, flags, strict=True)]
        return inner_products(grads, weights) / before


def inner_products(grads: Sequence[Sequence[torch.Tensor | None] | None], weights: Sequence[float]) -> Matrix:
    """Return (T, T) inner products of gradients, each parameter with its weight; NaN for absent tasks."""
    present = [task for task, row in enumerate(grads) if row is not None]
    products = np.full((len(grads), len(grads)), np.nan)
    products[np.ix_(present, present)] = 0.0
    for at, weight in enumerate(weights):
        if not weight:
            continue
        reached = [task for task in present if grads[task][at] is not None]  # type: ignore[index]
        if reached:
            rows = torch.stack([grads[task][at].detach().flatten() for task in reached]).double()  # type: ignore[index,union-attr]
            products[np.ix_(reached, reached)] += weight * (rows @ rows.T).cpu().numpy()
    return products
