"""The report of one batch: which groups were updated, and what the balancer reported of each."""

import dataclasses

from counterpoint.balancers import BalancerReport


@dataclasses.dataclass(frozen=True)
class ScheduleReport:
    """What a schedule did with one batch.

    Attributes:
        groups: Positions of the tasks of each group in the order of the updates; tasks without labels in the batch are
            left out. Empty if nothing was updated.
        reports: Report of the balancer for each optimizer step, in the same order.
        num_forward: How often the losses were computed.
    """

    groups: tuple[tuple[int, ...], ...]
    reports: tuple[BalancerReport, ...]
    num_forward: int

    @property
    def num_backward(self) -> int:
        """Backward passes through the shared part of the network, over all groups."""
        return sum(report.num_backward for report in self.reports)
