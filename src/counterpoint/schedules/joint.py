"""Joint training: all tasks in one update, as everywhere else."""

from collections.abc import Sequence
from typing import final

from counterpoint.schedules._base import Group, Schedule


@final
class Joint(Schedule):
    """All tasks in one group: one forward pass, the balancer, one optimizer step.

    Args:
        num_tasks: Number of tasks K; may be left out if ``tasks`` is given.
        tasks: Names of the tasks.

    Example:
        >>> import torch
        >>> from counterpoint.balancers import Equal
        >>> x = torch.nn.Parameter(torch.tensor(1.0))
        >>> schedule = Joint(num_tasks=2)
        >>> report = schedule.step(lambda: [x.square(), 3 * x], torch.optim.SGD([x], lr=0.1), Equal(2))
        >>> report.groups, round(x.item(), 6)
        (((0, 1),), 0.5)
    """

    key = "joint"
    source = "Caruana, Multitask Learning, Machine Learning 1997"
    provenance = "textbook"
    cost = "1 forward pass, the balancer's backward passes, 1 optimizer step"

    def __init__(self, num_tasks: int | None = None, *, tasks: Sequence[str] | None = None) -> None:
        super().__init__(num_tasks, tasks)

    @property
    def num_passes(self) -> int:
        """One."""
        return 1

    def _plan(self, present: Group) -> Sequence[Group]:
        return [present]
