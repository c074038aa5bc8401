"""The integer program of Wang, Pan and Yu, solved exactly by enumeration and dynamic programming."""

from collections.abc import Mapping, Sequence
from typing import Any, final

import numpy as np

from counterpoint._checks import check_choice, check_integer, check_per_task, check_range
from counterpoint.errors import OptionError, SolverError
from counterpoint.grouping._base import Solver, check_size
from counterpoint.grouping._partition import best_partition
from counterpoint.grouping._serve import infeasible, serve
from counterpoint.grouping.affinity import AffinityMatrix, Matrix, measured
from counterpoint.grouping.groups import Grouping
from counterpoint.grouping.scores import bits, group_scores, membership, own_worth, served_worth


@final
class IntegerProgram(Solver):
    """Groups that maximize ``sum_g (1 / |g|) sum_{i, k in g} S[i, k]`` under limits on each group.

    With ``score="sum_over_groups"`` exactly ``num_groups`` different groups come out. With ``"best_per_task"`` the
    score is that of ``branch_and_bound`` (each task counts once, in its best group), a task alone has score 0, and
    ``num_groups`` is a bound.

    Args:
        assignment: ``"partition"``: each task in exactly one group. ``"cover"``: in at least one, as in the released
            code, where a good group then counts once for each group that contains it.
        score: ``"sum_over_groups"`` or ``"best_per_task"``.
        max_size: Largest group.
        load: Load of each task (memory, time): a sequence, or a mapping by name.
        max_load: Largest sum of loads in a group.
        use_diagonal: Count S[i, i]; otherwise it is 0.

    References:
        Wang, Pan, Yu, "Towards Principled Task Grouping for Multi-Task Learning", arXiv:2402.15328. The released code
        has a commercial solver; the partition as default is our reading.
    """

    key = "integer_program"
    source = "Wang, Pan, Yu, arXiv:2402.15328"
    provenance = "program as in the released code; exact solution and default of ours"
    cost = "about 3^T operations for a partition, n 4^T for a cover; at most 12 and 10 tasks"

    def __init__(
        self,
        *,
        assignment: str = "partition",
        score: str = "sum_over_groups",
        max_size: int | None = None,
        load: Sequence[float] | Mapping[str, float] | None = None,
        max_load: float | None = None,
        use_diagonal: bool = False,
    ) -> None:
        self.assignment = check_choice("IntegerProgram: assignment", assignment, ("partition", "cover"))
        self.score = check_choice("IntegerProgram: score", score, ("sum_over_groups", "best_per_task"))
        self.max_size = None if max_size is None else check_integer("IntegerProgram: max_size", max_size, low=1)
        if (load is None) != (max_load is None):
            raise OptionError("IntegerProgram: load and max_load belong together; give both or neither")
        self.load = load
        self.max_load = None if max_load is None else check_range("IntegerProgram: max_load", max_load, low=0.0)
        self.use_diagonal = use_diagonal

    def solve(self, matrix: AffinityMatrix, num_groups: int) -> Grouping:
        """Return the best groups.

        Raises:
            NonFiniteError: If an entry was never measured.
            OptionError: If there are too many tasks.
            SolverError: If the limits leave no groups; the message names them.
        """
        cover = self.assignment == "cover"
        most = 10 if cover and self.score == "sum_over_groups" else 12
        check_size("IntegerProgram", matrix, num_groups, most=most, instead="agglomerative")
        values = measured(matrix, "IntegerProgram", diagonal=self.use_diagonal).copy()
        if not self.use_diagonal:
            np.fill_diagonal(values, 0.0)
        allowed = self._allowed(matrix)
        scores = np.where(allowed[:, None], group_scores(values, singleton=0.0), -np.inf)
        if self.score == "best_per_task":
            worth, owner = served_worth(scores) if cover else (own_worth(scores), np.arange(len(scores)))
            counts = range(1, min(num_groups, len(values)) + 1)
            total, sets = max((best_partition(worth, count) for count in counts), key=lambda found: found[0])
            if sets:
                return serve(matrix.tasks, [int(owner[mask]) for mask in sets], scores, self.key, total)
        else:
            member = membership(len(values)).astype(np.float64)
            size = np.maximum(member.sum(axis=1), 1)
            worth = np.where(allowed, np.einsum("gi,ij,gj->g", member, values, member) / size, -np.inf)
            if num_groups > np.isfinite(worth).sum():
                count = int(np.isfinite(worth).sum())
                raise SolverError(
                    f"IntegerProgram: there are {count} groups within {self._limits()}, not {num_groups} groups"
                )
            total, sets = best_cover(worth, num_groups) if cover else best_partition(worth, num_groups)
            if sets:
                return serve(matrix.tasks, sets, scores, self.key, total)
        if num_groups > len(values) and not cover:
            raise SolverError(f"IntegerProgram: {len(values)} tasks cannot be parted into {num_groups} groups")
        raise infeasible("IntegerProgram", num_groups, self._limits())

    def _allowed(self, matrix: AffinityMatrix) -> Any:
        member = membership(len(matrix.tasks))
        allowed = member.any(axis=1)
        if self.max_size is not None:
            allowed &= member.sum(axis=1) <= self.max_size
        if self.load is not None and self.max_load is not None:
            loads = check_per_task("IntegerProgram: load", self.load, len(matrix.tasks), matrix.tasks)
            for task, load in zip(matrix.tasks, loads, strict=True):
                if load > self.max_load:
                    raise SolverError(
                        f"IntegerProgram: max_load={self.max_load:g} is less than the load {load:g} of {task}"
                    )
            allowed &= member @ np.array(loads, dtype=np.float64) <= self.max_load + 1e-9
        return allowed

    def _limits(self) -> str:
        limits = {"max_size": self.max_size, "max_load": self.max_load}
        named = [f"{name}={value}" for name, value in limits.items() if value is not None]
        return ", ".join(named) or f"assignment={self.assignment!r}"


def best_cover(worth: Matrix, num_groups: int) -> tuple[float, tuple[int, ...]]:
    """Return the largest sum of worths of exactly ``num_groups`` different groups that cover all tasks, and the groups.

    A knapsack over the groups whose state is the tasks covered so far.

    Args:
        worth: (2^T,) by mask; minus infinity for groups that are not allowed.
        num_groups: Number of groups.

    Returns:
        Minus infinity and no groups if there are none.
    """
    masks = np.arange(len(worth))
    columns = sorted((int(mask) for mask in np.flatnonzero(np.isfinite(worth))), key=bits)
    best = np.full((num_groups + 1, len(worth)), -np.inf)
    best[0, 0] = 0.0
    parent = np.full((len(columns), num_groups + 1, len(worth)), -1, dtype=np.int16)
    for at, group in enumerate(columns):
        covered = masks | group
        for count in range(num_groups, 0, -1):  # downwards: each group once
            values = best[count - 1] + worth[group]
            reached = np.full(len(worth), -np.inf)
            np.maximum.at(reached, covered, values)
            better = reached > best[count] + 1e-12
            hit = better[covered] & (values == reached[covered])
            parent[at, count, covered[hit]] = masks[hit]
            best[count, better] = reached[better]
    mask = len(worth) - 1
    total = float(best[num_groups, mask])
    if total == -np.inf:
        return total, ()
    chosen: list[int] = []
    for at in reversed(range(len(columns))):
        left = num_groups - len(chosen)
        if left and parent[at, left, mask] >= 0:
            mask = int(parent[at, left, mask])
            chosen.append(columns[at])
    return total, tuple(reversed(chosen))
