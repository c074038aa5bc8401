"""Transfer gain: a step on two tasks together against a step on the target alone."""

from collections.abc import Sequence
from typing import final

import numpy as np
import torch
from torch import Tensor, nn

from counterpoint._checks import check_choice
from counterpoint.grouping._observer import Compute, Estimator
from counterpoint.grouping._preserve import Snapshot, preserved
from counterpoint.grouping._step import try_step
from counterpoint.grouping.affinity import Matrix


@final
class TransferGain(Estimator):
    """Gain ``S[j, i] = 1 - L_i(after a step on L_i + L_j) / L_i(after a step on L_i alone)``.

    All steps are tried from the same point on the same batch and taken back. The diagonal is the doubled gradient
    {i, i} where ``measure_diagonal``, else 0.

    Args:
        num_tasks: Number of tasks T; may be left out if ``tasks`` is given.
        tasks: Names of the tasks.
        every: Measure every so many calls of ``observe``.
        update_heads: Let the private parameters of the tasks of the step move too.
        lookahead_mode: ``"eval"`` or ``"train"``: mode of the network in the forward pass after the step.
        use_optimizer_state: Step as the optimizer would; ``False``: plain gradient step at its learning rate.
        measure_diagonal: Measure {i, i}.

    References:
        Wang, Pan, Yu, "Towards Principled Task Grouping for Multi-Task Learning", arXiv:2402.15328. The steps
        are those of the released collector; that the gain is this ratio is our reading of what it records.
    """

    key = "transfer_gain"
    directed = True
    diagonal = "gain of a doubled gradient, or 0 where it is not measured"
    source = "Wang, Pan, Yu, arXiv:2402.15328"
    provenance = "steps as in the released code; the ratio is our reading"
    cost = "1 + T + T(T - 1)/2 forward and T backward passes per observation (T more forward passes for the diagonal)"
    reads = "losses"

    def __init__(
        self,
        num_tasks: int | None = None,
        *,
        tasks: Sequence[str] | None = None,
        every: int = 10,
        update_heads: bool = True,
        lookahead_mode: str = "eval",
        use_optimizer_state: bool = True,
        measure_diagonal: bool = False,
    ) -> None:
        self.update_heads = update_heads
        self.lookahead_mode = check_choice("TransferGain: lookahead_mode", lookahead_mode, ("eval", "train"))
        self.use_optimizer_state = use_optimizer_state
        self.measure_diagonal = measure_diagonal
        super().__init__(num_tasks, tasks, every)

    def group_gain(
        self, compute: Compute, model: nn.Module, optimizer: torch.optim.Optimizer, sources: Sequence[int], target: int
    ) -> float:
        """Return the gain of several sources together for one target, on this batch, and leave no trace.

        Args:
            compute: Returns the losses.
            model: The network.
            optimizer: The optimizer of the real step.
            sources: Positions of the sources.
            target: Position of the target.
        """
        with preserved(model, optimizer) as snapshot:
            look = _Look(self, compute, snapshot, None)
            return 1 - look(*sources, target)[target] / look.own(target)

    def _measure(self, compute: Compute, snapshot: Snapshot, shared: list[nn.Parameter] | None) -> Matrix:
        look = _Look(self, compute, snapshot, shared)
        present = [task for task, row in enumerate(look.grads) if row is not None]
        values = np.full((self.num_tasks, self.num_tasks), np.nan)
        alone = {task: look.own(task) for task in present}
        for at, first in enumerate(present):
            values[first, first] = 1 - look(first, first)[first] / alone[first] if self.measure_diagonal else 0.0
            for second in present[at + 1 :]:
                together = look(first, second)
                values[first, second] = 1 - together[second] / alone[second]
                values[second, first] = 1 - together[first] / alone[first]
        return values


class _Look:
    """Losses after a step on the sum of some tasks' losses."""

    def __init__(
        self, owner: TransferGain, compute: Compute, snapshot: Snapshot, shared: list[nn.Parameter] | None
    ) -> None:
        self.owner, self.compute, self.snapshot = owner, compute, snapshot
        losses, self.grads, self.flags = owner.differentiated(compute, snapshot, shared)
        owner.positive(losses)  # refuses negative ones

    def __call__(self, *tasks: int) -> list[float]:
        self.snapshot.restore()
        rows = [self.grads[task] for task in tasks]
        total: list[Tensor | None] = []
        for at, flag in enumerate(self.flags):
            parts = [row[at] for row in rows if row is not None and row[at] is not None]
            moves = bool(parts) and (flag or self.owner.update_heads)
            total.append(torch.stack(parts).sum(dim=0) if moves else None)  # type: ignore[arg-type]
        state = self.owner.use_optimizer_state
        parameters = self.snapshot.parameters
        try_step("TransferGain", parameters, total, self.snapshot.optimizer, use_optimizer_state=state)
        if self.owner.lookahead_mode == "eval":
            self.snapshot.set_eval()
        self.snapshot.rewind()
        with torch.no_grad():
            return [np.nan if loss is None else float(loss) for loss in self.owner.losses(self.compute)]

    def own(self, task: int) -> float:
        """Return the loss of a task after a step on it alone; NaN if it is too near 0 for a ratio."""
        value = self(task)[task]
        return value if value > 1e-12 else float("nan")
