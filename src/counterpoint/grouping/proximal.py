"""Proximal affinity: what the update of a group of tasks did to every loss, seen while training."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from counterpoint._checks import check_choice, check_range
from counterpoint.errors import OptionError, ShapeError
from counterpoint.grouping.affinity import AffinityMatrix
from counterpoint.grouping.affinity_propagation import affinity_propagation

Matrix = NDArray[np.float64]
Group = tuple[int, ...]

_NOTHING = 1e-12  # an effect of a task on itself this small cannot be divided by


def proximal_values(before: Sequence[float], after: Sequence[float], group: Group, *, clip: bool = False) -> Matrix:
    """Return what one update of a group says of each source (row) and target (column); NaN where it says nothing.

    With ``b_k = (1 - after_k / before_k) / |G|``, the share of one source in the drop of loss k, for a source s in G:
    ``b_t`` for a target t outside G; ``b_s`` for itself if that is not negative; for another t in G ``b_t`` if both
    losses moved the same way, else ``-max(b_s, b_t)``: one gained at the cost of the other.

    Args:
        before: Losses before the update, one per task; NaN for a task that was not measured.
        after: Losses after it, on the same batch.
        group: Positions of the tasks that were updated together.
        clip: Limit ``1 - after / before`` to [-1, 1], for losses that come near zero.

    Returns:
        (T, T) in float64. A loss that is not positive and finite before or after gives no ratio, so no entry in its
        column and row.

    References:
        Jeong, Yoon, "Selective Task Group Updates for Multi-Task Optimization", ICLR 2025, arXiv:2502.11986; the
        paper's method section could not be obtained, so this follows the definition behind the released code.
    """
    first, second = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        usable = np.isfinite(first) & np.isfinite(second) & (first > 0) & (second > 0)
        drop = np.where(usable, 1 - second / np.where(usable, first, 1.0), np.nan)
    if clip:
        drop = drop.clip(-1.0, 1.0)
    drop = drop / max(len(group), 1)
    values = np.full((len(drop), len(drop)), np.nan)
    for source in group:
        if np.isnan(drop[source]):
            continue
        values[source] = drop
        for target in group:
            if target == source:
                values[source, target] = drop[source] if drop[source] >= 0 else np.nan
            elif drop[target] * drop[source] < 0:
                values[source, target] = -max(drop[target], drop[source])
    return values


def relative_effects(matrix: Matrix) -> Matrix | None:
    """Return ``M[s, t] / M[t, t]``: effects relative to each target's effect on itself; ``None`` if no task has one.

    Where M[t, t] is zero the mean of the positive diagonal entries stands in for it (our reading; the released code
    divides by zero).

    Args:
        matrix: Effects, row = source, (T, T).
    """
    own = matrix.diagonal()
    positive = own[own > _NOTHING]
    return matrix / np.where(own > _NOTHING, own, positive.mean()) if len(positive) else None


def proximal_matrix(tasks: Sequence[str], matrix: Matrix) -> AffinityMatrix:
    """Return running affinities as a matrix for solvers, relative to each target's effect on itself.

    An entry that was never measured is 0, as it is in the running means.

    Args:
        tasks: Names of the T tasks.
        matrix: Effects, row = source, (T, T).

    Raises:
        OptionError: If no update lowered the loss of a task in it, so that there is nothing to relate to.
    """
    relative = relative_effects(matrix)
    if relative is None:
        raise OptionError(
            "proximal affinity: no update of a task was seen to lower its own loss yet, so there is nothing to relate "
            "the others to; train longer, or on losses that are positive"
        )
    return AffinityMatrix(
        tuple(tasks),
        relative,
        directed=True,
        diagonal="effect of a task on itself, which the others are relative to",
        source="proximal affinity, running mean of selective task group updates",
        cost="nothing beside the losses of the groups",
    )


def relative_affinity(matrix: Matrix, *, normalise: str = "column") -> Matrix | None:
    """Return the symmetric matrix of effects relative to each task's effect on itself; ``None`` if no task has one.

    The mean of :func:`relative_effects` and its transpose.

    Args:
        matrix: Effects, row = source, (T, T).
        normalise: ``"column"`` as above; ``"inplace"`` as the released code does on CPU: entries below the diagonal
            stay as they are, since by then the diagonal has become 1.
    """
    check_choice("relative_affinity: normalise", normalise, ("column", "inplace"))
    divided = relative_effects(matrix)
    if divided is None:
        return None
    if normalise == "inplace":
        divided = np.where(np.tri(len(matrix), k=-1, dtype=bool), matrix, divided)
    return (divided + divided.T) / 2


def form_groups(
    matrix: Matrix, *, normalise: str = "column", preference: float | None = None, seed: int = 0
) -> list[Group] | None:
    """Return groups of tasks that help each other, by affinity propagation on the relative effects.

    Their number is not given. Of symmetric similarities several clusterings can be equally good, and the seed decides.

    Args:
        matrix: Effects, row = source, (T, T).
        normalise: As in :func:`relative_affinity`.
        preference: Similarity of a task to itself; higher gives more groups. Default: the median of all entries.
        seed: Of the noise that breaks ties.

    Returns:
        The groups, or ``None`` if the clustering does not settle or there is nothing to cluster.

    Example:
        >>> import numpy as np
        >>> form_groups(np.array([[1.0, 0.8, -0.2], [0.7, 1.0, -0.1], [-0.3, -0.2, 1.0]]))
        [(0, 1), (2,)]

    References:
        Jeong, Yoon, ICLR 2025, arXiv:2502.11986: damping 0.5, at most 200 rounds, 50 of them unchanged. Differs from
        the released code: seeded; a clustering that does not settle is reported, where the code tries again with a
        stricter rule.
    """
    if len(matrix) == 1:
        return [(0,)]
    similarity = relative_affinity(matrix, normalise=normalise)
    if similarity is None or not np.isfinite(similarity).all():
        return None
    found = affinity_propagation(
        similarity, preference=preference, damping=0.5, max_iter=200, convergence_iter=50, seed=seed
    )
    return list(found.groups) if found.converged else None


class AffinityTracker:
    """A running matrix of proximal affinities, and the losses that the next measurement is compared with.

    Args:
        num_tasks: Number of tasks T.
        beta: Share of a new value in the running mean, in (0, 1].
        clip: As in :func:`proximal_values`.

    Attributes:
        matrix: (T, T), row = source, column = target; zero before the first measurement.
        previous: Losses at the last forward pass, (T,), NaN where there is none.
    """

    def __init__(self, num_tasks: int, *, beta: float = 1e-3, clip: bool = False) -> None:
        self.beta = check_range("AffinityTracker: beta", beta, low=0.0, low_open=True, high=1.0)
        self.clip = clip
        self.matrix: Matrix = np.zeros((num_tasks, num_tasks))
        self.previous: Matrix = np.full(num_tasks, np.nan)

    def forget(self) -> None:
        """Begin a batch: the next losses are compared with nothing."""
        self.previous = np.full(len(self.previous), np.nan)

    def observe(self, losses: Sequence[float], group: Group | None) -> None:
        """See the losses of a forward pass.

        Args:
            losses: One per task; NaN for a task without labels.
            group: The tasks that the change since the pass before is credited to; ``None`` if to nobody.

        Raises:
            ShapeError: If the number of losses is not T.
        """
        now = np.asarray(losses, dtype=np.float64)
        if now.shape != self.previous.shape:
            raise ShapeError(f"AffinityTracker: expected {len(self.previous)} losses, got shape {now.shape}")
        if group:
            values = proximal_values(self.previous, now, group, clip=self.clip)  # type: ignore[arg-type]
            measured = ~np.isnan(values)
            self.matrix[measured] += self.beta * (values[measured] - self.matrix[measured])
        self.previous = now
