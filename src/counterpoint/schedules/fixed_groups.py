"""Groups of tasks chosen beforehand, updated one after another."""

from collections.abc import Sequence
from typing import final

import torch

from counterpoint._checks import check_choice
from counterpoint.errors import OptionError
from counterpoint.schedules._base import Group, Schedule, permuted
from counterpoint.schedules._groups import left_out, read_groups


@final
class FixedGroups(Schedule):
    """Given groups of tasks, each with an optimizer step of its own on the same batch.

    A task may be in several groups and then takes part in several updates of a batch.

    Args:
        num_tasks: Number of tasks K; may be left out if ``tasks`` is given.
        tasks: Names of the tasks.
        generator: Source of the random orders.
        groups: The groups, each a list of names or positions of tasks.
        order: ``"fixed"`` takes the groups in turn, ``"random"`` in an order drawn anew for each batch.
        partial: Allow tasks that are in no group; they are not trained, though their losses are computed.

    Example:
        >>> FixedGroups(tasks=["depth", "edges", "normals"], groups=[["depth", "normals"], ["edges"]]).num_passes
        2
    """

    key = "fixed_groups"
    source = "folklore; baseline in Jeong and Yoon, Selective Task Group Updates, ICLR 2025"
    provenance = "our definition"
    cost = "M forward passes, the balancer's backward passes on each group, M optimizer steps, for M groups"

    def __init__(
        self,
        num_tasks: int | None = None,
        *,
        groups: Sequence[Sequence[str | int]],
        tasks: Sequence[str] | None = None,
        generator: torch.Generator | None = None,
        order: str = "fixed",
        partial: bool = False,
    ) -> None:
        self.groups = groups
        self.order = check_choice("FixedGroups: order", order, ("fixed", "random"))
        self.partial = partial
        super().__init__(num_tasks, tasks, generator, random=order == "random")
        self._groups = read_groups("FixedGroups", groups, self.num_tasks, self.tasks)
        left = left_out(self._groups, self.num_tasks, self.tasks)
        if left and not partial:
            raise OptionError(
                f"FixedGroups: task {', '.join(map(repr, left))} is in no group and would not be trained; add it to "
                "one, or allow this with partial=True"
            )

    @property
    def num_passes(self) -> int:
        """The number of groups."""
        return len(self._groups)

    def _plan(self, present: Group) -> Sequence[Group]:  # noqa: ARG002
        if self.order == "fixed":
            return self._groups
        return [self._groups[at] for at in permuted(len(self._groups), self.generator)]
