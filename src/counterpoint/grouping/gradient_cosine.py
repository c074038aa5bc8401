"""Cosine of the task gradients."""

from collections.abc import Sequence
from typing import final

import numpy as np
from torch import nn

from counterpoint.grouping._observer import Compute, Estimator
from counterpoint.grouping._preserve import Snapshot
from counterpoint.grouping.affinity import Matrix
from counterpoint.grouping.tag_first_order import inner_products


@final
class GradientCosine(Estimator):
    """Mean cosine of the gradients of two tasks over the shared parameters; a zero gradient has cosine 0 with all.

    Args:
        num_tasks: Number of tasks T; may be left out if ``tasks`` is given.
        tasks: Names of the tasks.
        every: Measure every so many calls of ``observe``.

    References:
        The "CS grouping" baseline of Fifty et al., NeurIPS 2021, arXiv:2109.04617.
    """

    key = "gradient_cosine"
    directed = False
    diagonal = "1"
    source = "baseline in Fifty et al., TAG, NeurIPS 2021"
    provenance = "paper"
    cost = "1 forward and T backward passes per observation"
    reads = "losses"

    def __init__(self, num_tasks: int | None = None, *, tasks: Sequence[str] | None = None, every: int = 10) -> None:
        super().__init__(num_tasks, tasks, every)

    def _measure(self, compute: Compute, snapshot: Snapshot, shared: list[nn.Parameter] | None) -> Matrix:
        _, grads, flags = self.differentiated(compute, snapshot, shared)
        products = inner_products(grads, [float(flag) for flag in flags])
        norms = np.sqrt(np.diag(products))
        scale = np.outer(norms, norms)
        cosines = np.divide(products, scale, out=np.where(np.isnan(scale), np.nan, 0.0), where=scale > 0)
        present = ~np.isnan(norms)
        cosines[present, present] = 1.0
        return (cosines + cosines.T) / 2
