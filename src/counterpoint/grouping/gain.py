"""What groups are predicted to bring, for 1 to n networks."""

import dataclasses

from counterpoint._checks import check_integer
from counterpoint.grouping._base import Solver
from counterpoint.grouping.affinity import AffinityMatrix
from counterpoint.grouping.branch_and_bound import BranchAndBound
from counterpoint.grouping.groups import Grouping


@dataclasses.dataclass(frozen=True)
class PredictedGain:
    """Prediction for one number of networks, in the unit of the affinity; higher is better.

    Attributes:
        num_groups: The budget.
        grouping: The groups, at most that many.
        tasks: Task -> its score in the group that serves it.
        total: Mean over the tasks.
        over_joint: ``total`` minus that of one network for all tasks.
    """

    num_groups: int
    grouping: Grouping
    tasks: dict[str, float]
    total: float
    over_joint: float


def predicted_gains(
    matrix: AffinityMatrix, *, max_groups: int | None = None, solver: Solver | None = None
) -> list[PredictedGain]:
    """Return the best groups and their predicted gain for 1, 2, ... networks.

    Args:
        matrix: What an estimator measured.
        max_groups: Largest number of networks; more than tasks counts as the number of tasks. Default: the tasks.
        solver: Default: ``BranchAndBound(singleton=0.0)``, so that a task alone neither gains nor loses.
    """
    most = len(matrix.tasks)
    if max_groups is not None:
        most = min(most, check_integer("predicted_gains: max_groups", max_groups, low=1))
    solver = solver or BranchAndBound(singleton=0.0)
    gains: list[PredictedGain] = []
    for count in range(1, most + 1):
        grouping = solver.solve(matrix, count)
        scores = dict(zip(grouping.tasks, grouping.task_scores, strict=True))
        total = sum(scores.values()) / len(scores)
        joint = gains[0].total if gains else total
        gains.append(PredictedGain(count, grouping, scores, total, total - joint))
    return gains
