"""TAG: what a step on one task's loss does to the losses of the others."""

from collections.abc import Sequence
from typing import final

import numpy as np
import torch
from torch import nn

from counterpoint.grouping._observer import Compute, Estimator
from counterpoint.grouping._preserve import Snapshot
from counterpoint.grouping._step import try_step
from counterpoint.grouping.affinity import Matrix


@final
class TAG(Estimator):
    """Inter-task affinity: ``Z[i, j] = 1 - L_j(after a step of the shared parameters on L_i) / L_j(before)``.

    The step is tried on the same batch, with the same random numbers, and taken back. Private parameters stay.
    Losses near 0 (below 1e-12) are skipped; a negative loss is refused.

    Args:
        num_tasks: Number of tasks T; may be left out if ``tasks`` is given.
        tasks: Names of the tasks.
        every: Measure every so many calls of ``observe``.
        use_optimizer_state: Step as the optimizer would, with momentum, Adam moments and weight decay. ``False``: the
            paper's plain gradient step at the optimizer's learning rate.
        divide_by_lr: Divide by the learning rate of the first parameter group, as the released code does.

    References:
        Fifty et al., "Efficiently Identifying Task Groupings for Multi-Task Learning", NeurIPS 2021, arXiv:2109.04617.
        Differs from the released code: running statistics of norms and random numbers are put back, and the optimizer's
        state is really used (there the momentum is looked up in vain).
    """

    key = "tag"
    directed = True
    diagonal = "effect of a task's step on its own loss"
    source = "Fifty et al., TAG, NeurIPS 2021, arXiv:2109.04617"
    provenance = "paper and released code; the use of the optimizer's state is ours"
    cost = "1 + T forward and T backward passes per observation"
    reads = "losses"

    def __init__(
        self,
        num_tasks: int | None = None,
        *,
        tasks: Sequence[str] | None = None,
        every: int = 10,
        use_optimizer_state: bool = True,
        divide_by_lr: bool = False,
    ) -> None:
        self.use_optimizer_state = use_optimizer_state
        self.divide_by_lr = divide_by_lr
        super().__init__(num_tasks, tasks, every)

    def _measure(self, compute: Compute, snapshot: Snapshot, shared: list[nn.Parameter] | None) -> Matrix:
        losses, grads, flags = self.differentiated(compute, snapshot, shared)
        before = np.array(self.positive(losses))
        values = np.full((self.num_tasks, self.num_tasks), np.nan)
        for source, row in enumerate(grads):
            if row is None:
                continue
            snapshot.restore()
            step = [grad if flag else None for grad, flag in zip(row, flags, strict=True)]
            try_step("TAG", snapshot.parameters, step, snapshot.optimizer, use_optimizer_state=self.use_optimizer_state)
            snapshot.rewind()
            with torch.no_grad():
                after = np.array([np.nan if loss is None else float(loss) for loss in self.losses(compute)])
            values[source] = 1 - after / before
        if self.divide_by_lr and snapshot.optimizer is not None:
            values /= float(snapshot.optimizer.param_groups[0]["lr"])
        return values
