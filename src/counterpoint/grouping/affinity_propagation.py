"""Affinity propagation: clusters from similarities, without their number given."""

import dataclasses
import functools

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from counterpoint._checks import check_choice, check_integer, check_range
from counterpoint.errors import NonFiniteError, ShapeError

Matrix = NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Clusters:
    """What :func:`affinity_propagation` found.

    Attributes:
        labels: Cluster of each point, numbered in the order of the exemplars; -1 for all of them if there is none.
        exemplars: The point that stands for each cluster, ascending.
        converged: Whether the exemplars stayed the same for long enough; if not, the labels are of the last round.
    """

    labels: tuple[int, ...]
    exemplars: tuple[int, ...]
    converged: bool

    @property
    def groups(self) -> tuple[tuple[int, ...], ...]:
        """The points of each cluster, ascending; empty if there is no cluster."""
        return tuple(
            tuple(point for point, label in enumerate(self.labels) if label == cluster)
            for cluster in range(len(self.exemplars))
        )


def affinity_propagation(
    similarity: Float[Tensor, "T T"] | ArrayLike,
    *,
    preference: str | float | None = "median",
    damping: float = 0.5,
    max_iter: int = 200,
    convergence_iter: int = 15,
    seed: int = 0,
) -> Clusters:
    """Return the clusters that messages between the points settle on.

    Each point sends to each candidate a responsibility (how well it suits, against the other candidates) and gets back
    an availability (how many others chose it). Points whose two messages to themselves sum to more than 0 are
    exemplars. Small noise breaks ties, which symmetric similarities always have: another seed may then give other
    clusters. With the same noise the labels are those of scikit-learn 1.9.

    Args:
        similarity: (T, T), entry (i, k) is how well k stands for i. Its diagonal is read by the median only.
        preference: Similarity of a point to itself: higher gives more clusters. ``"median"`` (or ``None``) is the
            median of all T^2 entries.
        damping: Share of the old message that is kept in each round, in [0.5, 1).
        max_iter: Rounds at most.
        convergence_iter: Rounds in which the exemplars must not change.
        seed: Of the noise, as in ``numpy.random.RandomState``.

    Raises:
        ShapeError: If the matrix is not square or has no entries.
        NonFiniteError: If an entry is NaN or infinite.
        OptionError: If an option is outside its range.

    Example:
        >>> affinity_propagation([[0, -1, -9], [-1, 0, -8], [-9, -8, 0]]).groups
        ((0, 1), (2,))

    References:
        Frey, Dueck, "Clustering by Passing Messages Between Data Points", Science 2007. Noise, stopping rule and the
        last refinement follow the public behavior of scikit-learn.
    """
    given = similarity.detach().cpu().numpy() if isinstance(similarity, Tensor) else similarity
    s = np.array(given, dtype=np.float64)  # a copy
    if s.ndim != 2 or s.shape[0] != s.shape[1] or not s.size:
        raise ShapeError(f"affinity_propagation: similarity must be a square matrix, got shape {s.shape}")
    if not np.isfinite(s).all():
        raise NonFiniteError("affinity_propagation: similarity has NaN or infinite entries")
    own = _preference(preference, s)
    check_range("affinity_propagation: damping", damping, low=0.5, high=1.0, high_open=True)
    check_integer("affinity_propagation: max_iter", max_iter, low=1)
    check_integer("affinity_propagation: convergence_iter", convergence_iter, low=1)
    count = len(s)
    between = s[~np.eye(count, dtype=bool)]
    if count == 1 or (between == between[0]).all():  # nothing to tell points apart by
        alone = count == 1 or own > between[0]
        exemplars = range(count if alone else 1)
        return Clusters(tuple(range(count)) if alone else (0,) * count, tuple(exemplars), converged=True)
    np.fill_diagonal(s, own)
    s += (np.finfo(np.float64).eps * s + 100 * np.finfo(np.float64).tiny) * _noise(count, seed)
    chosen, converged = _exchange(s, damping, max_iter, convergence_iter)
    if not chosen.any():
        return Clusters((-1,) * count, (), converged=False)
    labels, exemplars = _assign(s, np.flatnonzero(chosen))
    return Clusters(tuple(labels.tolist()), tuple(exemplars.tolist()), converged)


def _preference(preference: str | float | None, s: Matrix) -> float:
    if preference is None or isinstance(preference, str):
        check_choice("affinity_propagation: preference", preference or "median", ("median",))
        return float(np.median(s))
    return check_range("affinity_propagation: preference", float(preference), low=-1e300, high=1e300)


@functools.lru_cache(maxsize=4)
def _noise(count: int, seed: int) -> Matrix:
    return np.random.RandomState(seed).standard_normal((count, count))


def _exchange(s: Matrix, damping: float, max_iter: int, convergence_iter: int) -> tuple[NDArray[np.bool_], bool]:
    """Exchange messages; return which points are exemplars in the end, and whether that has settled."""
    count = len(s)
    at = np.arange(count)
    responsibility, availability = np.zeros_like(s), np.zeros_like(s)
    chosen, unchanged = np.zeros(count, dtype=bool), 0
    for round_ in range(max_iter):
        total = availability + s
        best = total.argmax(axis=1)
        first = total[at, best]
        total[at, best] = -np.inf
        new = s - first[:, None]
        new[at, best] = s[at, best] - total.max(axis=1)  # the best candidate competes with the second best
        responsibility *= damping
        responsibility += (1 - damping) * new

        votes = np.maximum(responsibility, 0.0)
        votes[at, at] = responsibility[at, at]
        new = votes.sum(axis=0) - votes  # without the vote of the one who asks
        own = new[at, at]
        new = np.minimum(new, 0.0)
        new[at, at] = own
        availability *= damping
        availability += (1 - damping) * new

        before, chosen = chosen, availability[at, at] + responsibility[at, at] > 0
        unchanged = unchanged + 1 if round_ and (before == chosen).all() else 1
        if round_ >= convergence_iter and unchanged >= convergence_iter and chosen.any():
            return chosen, True
    return chosen, False


def _assign(s: Matrix, exemplars: NDArray[np.intp]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Give each point to its exemplar, choose the best exemplar within each cluster, and give them once more."""
    labels = _nearest(s, exemplars)
    for cluster in range(len(exemplars)):
        members = np.flatnonzero(labels == cluster)
        exemplars[cluster] = members[s[np.ix_(members, members)].sum(axis=0).argmax()]
    found, labels = np.unique(exemplars[_nearest(s, exemplars)], return_inverse=True)
    return labels, found


def _nearest(s: Matrix, exemplars: NDArray[np.intp]) -> NDArray[np.intp]:
    labels = s[:, exemplars].argmax(axis=1)
    labels[exemplars] = np.arange(len(exemplars))
    return labels
