"""Groups of tasks drawn at random, updated one after another."""

from collections.abc import Mapping, Sequence
from typing import Any, final

import torch

from counterpoint._checks import check_integer
from counterpoint.errors import OptionError
from counterpoint.schedules._base import Group, Schedule, permuted


@final
class RandomGroups(Schedule):
    """A random partition of the tasks into groups as equal in size as possible, each with an optimizer step of its own.

    The baseline that any choice of groups has to beat.

    Args:
        num_tasks: Number of tasks K; may be left out if ``tasks`` is given.
        tasks: Names of the tasks.
        generator: Source of the groups and of their order.
        num_groups: Number of groups, at most K; default two, or one for a single task.
        regroup_every: Batches until new groups are drawn. The order is drawn for each batch.

    Example:
        >>> RandomGroups(num_tasks=5, num_groups=3).num_passes
        3
    """

    key = "random_groups"
    source = "baseline in Jeong and Yoon, Selective Task Group Updates, ICLR 2025"
    provenance = "our definition; the paper's way of drawing the groups could not be obtained"
    cost = "M forward passes, the balancer's backward passes on each group, M optimizer steps, for M groups"

    def __init__(
        self,
        num_tasks: int | None = None,
        *,
        tasks: Sequence[str] | None = None,
        generator: torch.Generator | None = None,
        num_groups: int | None = None,
        regroup_every: int = 1,
    ) -> None:
        super().__init__(num_tasks, tasks, generator, random=True)
        self.num_groups = num_groups
        self.regroup_every = check_integer("RandomGroups: regroup_every", regroup_every, low=1)
        if num_groups is not None and check_integer("RandomGroups: num_groups", num_groups, low=1) > self.num_tasks:
            raise OptionError(
                f"RandomGroups: num_groups must be at most num_tasks = {self.num_tasks}, got {num_groups}; a group "
                "needs a task"
            )
        self._groups: list[Group] = []
        self._age = 0  # batches since the groups were drawn

    @property
    def num_passes(self) -> int:
        """The number of groups."""
        return min(2, self.num_tasks) if self.num_groups is None else self.num_groups

    def _plan(self, present: Group) -> Sequence[Group]:  # noqa: ARG002
        if not self._groups or self._age >= self.regroup_every:
            order = permuted(self.num_tasks, self.generator)
            self._groups = [tuple(sorted(order[at :: self.num_passes])) for at in range(self.num_passes)]
            self._age = 0
        self._age += 1
        return [self._groups[at] for at in permuted(len(self._groups), self.generator)]

    def state_dict(self) -> dict[str, Any]:
        """Return names, generator, the present groups and their age."""
        return {**super().state_dict(), "groups": [list(group) for group in self._groups], "age": self._age}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        super().load_state_dict(state)
        self._groups, self._age = [tuple(group) for group in state["groups"]], state["age"]
