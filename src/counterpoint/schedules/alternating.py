"""Alternating training: one task at a time."""

from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import nn
from torch.optim import Optimizer

from counterpoint._checks import check_choice
from counterpoint.schedules._base import Group, Schedule, permuted


@final
class Alternating(Schedule):
    """Single tasks one after another, each with an optimizer step of its own on the same batch.

    The shared parameters move K times a batch, so a comparison with joint training at the same learning rate is one of
    larger steps as well. A balancer sees one task at a time; most then give its plain gradient.

    Args:
        num_tasks: Number of tasks K; may be left out if ``tasks`` is given.
        tasks: Names of the tasks.
        generator: Source of the random orders.
        order: ``"fixed"`` takes the tasks in turn, ``"random"`` in an order drawn anew for each batch.
        per_batch: ``"all"`` gives each batch to every task, ``"one"`` to one task only: the next in turn, or, with
            ``order="random"``, one drawn evenly from those with labels in the batch.

    Example:
        >>> import torch
        >>> from counterpoint.balancers import Equal
        >>> x = torch.nn.Parameter(torch.tensor(1.0))
        >>> schedule = Alternating(num_tasks=2)
        >>> report = schedule.step(lambda: [x.square(), 3 * x], torch.optim.SGD([x], lr=0.1), Equal(2))
        >>> report.groups, round(x.item(), 6)
        (((0,), (1,)), 0.5)
    """

    key = "alternating"
    source = "folklore; with one task per batch as in Luong et al., Multi-task Sequence to Sequence Learning, ICLR 2016"
    provenance = "textbook; what happens to absent tasks is our definition"
    cost = "K forward passes, K backward passes, K optimizer steps (one of each with per_batch='one')"

    def __init__(
        self,
        num_tasks: int | None = None,
        *,
        tasks: Sequence[str] | None = None,
        generator: torch.Generator | None = None,
        order: str = "fixed",
        per_batch: str = "all",
    ) -> None:
        self.order = check_choice("Alternating: order", order, ("fixed", "random"))
        self.per_batch = check_choice("Alternating: per_batch", per_batch, ("all", "one"))
        super().__init__(num_tasks, tasks, generator, random=order == "random")
        self._next = 0

    @property
    def num_passes(self) -> int:
        """The number of tasks, or one."""
        return self.num_tasks if self.per_batch == "all" else 1

    def _plan(self, present: Group) -> Sequence[Group]:
        if self.order == "random":
            order = [task for task in permuted(self.num_tasks, self.generator) if task in present]
        else:
            order = sorted(
                present, key=lambda task: (task - self._next) % self.num_tasks
            )  # absent tasks lose their turn
        return [(task,) for task in (order if self.per_batch == "all" else order[:1])]

    def _finish(self, groups: Sequence[Group], optimizer: Optimizer, model: nn.Module | None) -> None:  # noqa: ARG002
        if self.per_batch == "one":
            self._next = (groups[-1][0] + 1) % self.num_tasks

    def state_dict(self) -> dict[str, Any]:
        """Return names, generator and whose turn it is."""
        return {**super().state_dict(), "next": self._next}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        super().load_state_dict(state)
        self._next = state["next"]
