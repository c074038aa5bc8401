"""From masks of groups to a :class:`~counterpoint.grouping.Grouping`."""

from collections.abc import Sequence

import numpy as np

from counterpoint.errors import SolverError
from counterpoint.grouping.affinity import Matrix
from counterpoint.grouping.groups import Grouping
from counterpoint.grouping.scores import bits


def serve(tasks: Sequence[str], masks: Sequence[int], scores: Matrix, solver: str, score: float | None) -> Grouping:
    """Let each task be served by its best group; groups in lexicographic order, the first wins a tie.

    Args:
        tasks: Names of the tasks.
        masks: The groups.
        scores: (2^T, T) score of each task in each group.
        solver: Key of the method.
        score: What it maximized; ``None``: the mean over tasks of their scores.
    """
    ordered = sorted({int(mask) for mask in masks}, key=bits)
    member = np.array([[bool(mask >> task & 1) for task in range(len(tasks))] for mask in ordered])
    of_task = np.where(member, scores[ordered], -np.inf)
    best = np.where(member, np.maximum(of_task, -1e300), -np.inf).argmax(axis=0)  # a group not allowed can be a server
    own = of_task[best, np.arange(len(tasks))]
    return Grouping(
        tasks=tuple(tasks),
        groups=tuple(tuple(tasks[task] for task in bits(mask)) for mask in ordered),
        serves=tuple(int(at) for at in best),
        score=float(own.mean()) if score is None else float(score),
        task_scores=tuple(float(value) for value in own) if np.isfinite(own).all() else (),
        solver=solver,
    )


def infeasible(owner: str, num_groups: int, limits: str) -> SolverError:
    """Build the error for a budget that no groups meet."""
    return SolverError(
        f"{owner}: no {num_groups} groups cover all tasks within {limits or 'the singleton rule'}; allow more or "
        "larger groups, or give tasks that are alone a score with singleton=0.0"
    )
