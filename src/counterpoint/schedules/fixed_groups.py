"""Groups of tasks chosen beforehand, updated one after another."""

from collections.abc import Sequence
from typing import final

import torch

from counterpoint._checks import check_choice
from counterpoint.errors import OptionError
from counterpoint.registry import unknown
from counterpoint.schedules._base import Group, Schedule, permuted


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
        self._groups = [self._positions(group) for group in groups]
        if not self._groups:
            raise OptionError("FixedGroups: groups must have at least one group")
        names = self.tasks or range(self.num_tasks)
        left = [name for task, name in enumerate(names) if not any(task in group for group in self._groups)]
        if left and not partial:
            raise OptionError(
                f"FixedGroups: task {', '.join(map(repr, left))} is in no group and would not be trained; add it to "
                "one, or allow this with partial=True"
            )

    def _positions(self, group: Sequence[str | int]) -> Group:
        """Return the positions of the tasks of a group.

        Raises:
            OptionError: If the group is empty or has a task twice.
        """
        if isinstance(group, str) or not isinstance(group, Sequence) or not group:
            raise OptionError(f"FixedGroups: each group must be a list of at least one task, got {group!r}")
        names: Sequence[str | int] = self.tasks or ()
        positions: list[int] = []
        for task in group:
            known = names if isinstance(task, str) else range(self.num_tasks)
            if task not in known or isinstance(task, bool):
                hint = (
                    "; build the schedule with tasks=[...] to use names" if isinstance(task, str) and not names else ""
                )
                raise OptionError(f"FixedGroups: {unknown('task', str(task), map(str, known))}{hint}")
            positions.append(known.index(task))  # type: ignore[arg-type]
        if len(set(positions)) != len(positions):
            raise OptionError(f"FixedGroups: a group must have each task once, got {list(group)}")
        return tuple(sorted(positions))

    @property
    def num_passes(self) -> int:
        """The number of groups."""
        return len(self._groups)

    def _plan(self, present: Group) -> Sequence[Group]:  # noqa: ARG002
        if self.order == "fixed":
            return self._groups
        return [self._groups[at] for at in permuted(len(self._groups), self.generator)]
