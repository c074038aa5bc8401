"""What a monitor measured, as plain data: conflict and lengths of the task gradients by layer and time."""

import dataclasses
import itertools
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from counterpoint.diagnostics._record_file import read_record, write_record
from counterpoint.errors import OptionError
from counterpoint.registry import unknown

GRID = np.linspace(-1.0, 1.0, 201)  # the histogram of cosines counts how many are below each of these
MNIST_EDGES = (0.0, -0.01, -0.02, -0.03)
DENSE_EDGES = (0.0, -0.02, -0.04, -0.06, -0.08)


@dataclasses.dataclass(frozen=True)
class ConflictBins:
    """Bins of cosines: not below the first edge, from each edge (below it) to the next, and below the last.

    Attributes:
        edges: Falling, in [-1, 1].
        severe: A cosine strictly below this is a severe conflict.

    Raises:
        OptionError: If the edges do not fall, or a number is outside [-1, 1].
    """

    edges: tuple[float, ...]
    severe: float

    def __post_init__(self) -> None:
        falls = all(left > right for left, right in itertools.pairwise(self.edges))
        if not self.edges or not falls or not all(-1.0 <= value <= 1.0 for value in (*self.edges, self.severe)):
            raise OptionError(
                f"conflict bins: edges must fall and lie in [-1, 1], such as 0 -0.01 -0.02, got {list(self.edges)}"
            )

    def names(self) -> list[str]:
        """Return what to call each bin."""
        middle = [f"{low:g} to {high:g}" for high, low in itertools.pairwise(self.edges)]
        return [f"\u2265 {self.edges[0]:g}", *middle, f"< {self.edges[-1]:g}"]


PAPER_BINS = {
    "mnist": ConflictBins(MNIST_EDGES, -0.01),
    "cityscapes": ConflictBins(DENSE_EDGES, -0.02),
    "nyuv2": ConflictBins(DENSE_EDGES, -0.04),
    "pascal": ConflictBins(DENSE_EDGES, -0.02),
}


def conflict_bins(given: str | Sequence[float]) -> ConflictBins:
    """Return bins by the name of a data set of Recon's paper, or by their edges.

    Args:
        given: ``"mnist"``, ``"cityscapes"``, ``"nyuv2"``, ``"pascal"``, or falling edges, of which the second one (the
            only one) is the threshold of a severe conflict, as it is on Multi-Fashion+MNIST.

    Raises:
        UnknownNameError: If there is no such name; has the nearest ones.
        OptionError: If edges do not fall or lie outside [-1, 1].

    References:
        Shi et al., Recon, ICLR 2023, arXiv:2302.11289. The edges of NYUv2 and PASCAL-Context are our reading: those of
        CityScapes, with which the printed reductions come out.
    """
    if isinstance(given, str):
        if given not in PAPER_BINS:
            raise unknown("set of conflict bins", given, PAPER_BINS)
        return PAPER_BINS[given]
    edges = tuple(float(value) for value in given)
    return ConflictBins(edges, edges[min(1, len(edges) - 1)] if edges else 0.0)


@dataclasses.dataclass(frozen=True, eq=False)
class ConflictRecord:
    """Cosines and lengths of the task gradients, of each layer and of all layers together, over time.

    There are I entries. With ``keep_cosines`` an entry is one measurement; without, it is several in a row, and holds
    their means and counts. NaN stands where there was nothing to measure: a task was absent or had a zero gradient.
    Pairs of tasks are in the order of ``itertools.combinations``.

    Attributes:
        tasks: Names of the K tasks.
        layers: Names of the n layers measured, those that two or more tasks reach, in the network's order.
        sizes: Number of parameters of every layer of the network by name.
        steps: Step of the first measurement of each entry, (I,).
        counts: Measurements in each entry, (I,).
        cosines: Cosine, or mean cosine, in [-1, 1], (I, n, pairs) in float32.
        measured: How many cosines that is, (I, n, pairs).
        norms: Length, or mean length, of the gradients, (I, n, K) in float32.
        whole_cosines: The same as ``cosines`` of all measured layers together, (I, pairs) in float32.
        whole_measured: How many cosines that is, (I, pairs).
        whole_norms: Length, or mean length, of the gradients of all measured layers together, (I, K) in float32.
        effective_rank: Effective rank, or its mean, of the matrix of whole gradients, from 1 to K, (I,).
        whole_below: How many cosines of the whole gradients were below -1.00, -0.99, ..., 1.00, (pairs, 201).
        thresholds: Thresholds whose conflicts were counted; empty if every cosine was kept.
        below: Cosines below each of them, (thresholds, I, n, pairs).
        exact: Whether every cosine was kept.
        kinds: Class of every layer of the network by name; empty if it is not known.
    """

    tasks: tuple[str, ...]
    layers: tuple[str, ...]
    sizes: Mapping[str, int]
    steps: np.ndarray
    counts: np.ndarray
    cosines: np.ndarray
    measured: np.ndarray
    norms: np.ndarray
    whole_cosines: np.ndarray
    whole_measured: np.ndarray
    whole_norms: np.ndarray
    effective_rank: np.ndarray
    whole_below: np.ndarray
    thresholds: tuple[float, ...]
    below: np.ndarray
    exact: bool
    kinds: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """The pairs of tasks, in the order of every axis of pairs."""
        return tuple(itertools.combinations(self.tasks, 2))

    @property
    def num_measurements(self) -> int:
        """How many times the monitor measured."""
        return int(self.counts.sum())

    def conflicts(self, threshold: float = 0.0) -> np.ndarray:
        """Return how many cosines were strictly below a threshold, (I, n, pairs).

        Raises:
            OptionError: If this threshold was not counted.
        """
        if self.exact:
            return (self.cosines < np.float32(threshold)).astype(np.int64)  # NaN is not below anything
        if threshold not in self.thresholds:
            raise OptionError(
                f"ConflictRecord: conflicts below {threshold:g} were not counted, only below "
                f"{', '.join(f'{value:g}' for value in self.thresholds)}; measure with thresholds=({threshold:g},), or "
                "with keep_cosines=True, which allows any"
            )
        return self.below[self.thresholds.index(threshold)].astype(np.int64)

    def scores(self, threshold: float = 0.0) -> dict[str, int]:
        """Return the S-conflict score of each layer: pairs and measurements with a cosine strictly below the threshold.

        Args:
            threshold: S; Recon's experiments have 0 and values down to -0.1.

        Raises:
            OptionError: If this threshold was not counted.

        References:
            Shi et al., "Recon: Reducing Conflicting Gradients from the Root for Multi-Task Learning", ICLR 2023,
            arXiv:2302.11289. A pair with an absent task or a zero gradient is never counted.
        """
        totals = self.conflicts(threshold).sum(axis=(0, 2))
        return dict(zip(self.layers, totals.tolist(), strict=True))

    def conflict_rate(
        self, threshold: float = 0.0, *, layer: str | None = None, pair: tuple[str, str] | None = None
    ) -> float:
        """Return the share of measured cosines strictly below a threshold; NaN if there are none.

        Args:
            threshold: In [-1, 1].
            layer: Name of a layer; ``None`` for the gradients of all measured layers together.
            pair: Two tasks in any order; ``None`` for all pairs.

        Raises:
            OptionError: If this threshold was not counted.
            UnknownNameError: If the layer was not measured, or a task is not known.
        """
        chosen = list(range(len(self.pairs))) if pair is None else [self.pair_index(pair)]
        if layer is None:
            below, measured = self.whole_conflicts(threshold)[chosen].sum(), self.whole_measured[:, chosen].sum()
        else:
            at = self.layer_index(layer)
            below = self.conflicts(threshold)[:, at, chosen].sum()
            measured = self.measured[:, at, chosen].sum()
        return float(below / measured) if measured else float("nan")

    def whole_conflicts(self, threshold: float = 0.0) -> np.ndarray:
        """Return how many cosines of the whole gradients were strictly below a threshold, by pair.

        Raises:
            OptionError: If not every cosine was kept and the threshold is not a multiple of 0.01.
        """
        if self.exact:
            return (self.whole_cosines < np.float32(threshold)).sum(axis=0)
        at = int(np.abs(GRID - threshold).argmin())
        if abs(GRID[at] - threshold) > 1e-9:
            raise OptionError(
                f"ConflictRecord: cosines of the whole gradients were counted in steps of 0.01, so not below "
                f"{threshold:g}; measure with keep_cosines=True"
            )
        return self.whole_below[:, at]

    def cosines_without(self, layers: Collection[str]) -> np.ndarray:
        """Return the cosines of the whole gradients as they would have been without some layers, (I, pairs).

        What would be left to conflict if these layers were split, on the way that training took as it was; a split
        network goes another way.

        Args:
            layers: Measured layers to leave out.

        Raises:
            OptionError: If not every cosine was kept.
            UnknownNameError: If a layer was not measured.
        """
        if not self.exact:
            raise OptionError("ConflictRecord.cosines_without: needs every cosine; measure with keep_cosines=True")
        kept = np.ones(len(self.layers), dtype=bool)
        kept[[self.layer_index(layer) for layer in layers]] = False
        first, second = np.triu_indices(len(self.tasks), k=1)
        norms = self.norms[:, kept].astype(np.float64)
        products = np.nan_to_num(self.cosines[:, kept] * norms[:, :, first] * norms[:, :, second]).sum(axis=1)
        lengths = np.sqrt(np.nan_to_num(norms**2).sum(axis=1))
        lengths[np.isnan(self.whole_norms) | (lengths == 0)] = np.nan
        return np.clip(products / (lengths[:, first] * lengths[:, second]), -1.0, 1.0)

    def distribution(self, edges: Sequence[float] = MNIST_EDGES) -> np.ndarray:
        """Return the share of (pair, measurement) events with a cosine of the whole gradients in each of some bins.

        Bins as in the paper: not below the first edge, then from each edge (below it) to the next (not below that),
        then below the last.

        Args:
            edges: Falling; default those of the paper for Multi-Fashion+MNIST.

        Returns:
            One more share than edges, adding up to 1; NaN if nothing was measured.

        References:
            Shi et al., Recon, ICLR 2023, arXiv:2302.11289.
        """
        if len(edges) == 0 or any(left <= right for left, right in itertools.pairwise(edges)):
            raise OptionError(f"ConflictRecord.distribution: edges must fall, got {list(edges)}")
        total = float(self.whole_measured.sum())
        below = [total, *(float(self.whole_conflicts(edge).sum()) for edge in edges), 0.0]
        shares = -np.diff(np.array(below))
        return shares / total if total else np.full(len(shares), np.nan)

    def layer_index(self, layer: str) -> int:
        """Return the position of a layer.

        Raises:
            UnknownNameError: If it was not measured.
        """
        if layer not in self.layers:
            raise unknown("layer of this record", layer, self.layers)
        return self.layers.index(layer)

    def pair_index(self, pair: Collection[str]) -> int:
        """Return the position of a pair of tasks, given in any order.

        Raises:
            UnknownNameError: If a task is not known.
            OptionError: If it is no pair.
        """
        for task in pair:
            if task not in self.tasks:
                raise unknown("task of this record", task, self.tasks)
        found = [at for at, tasks in enumerate(self.pairs) if set(tasks) == set(pair)]
        if not found:
            raise OptionError(f"ConflictRecord: a pair is two different tasks, got {list(pair)}")
        return found[0]

    def save(self, path: str | Path) -> None:
        """Write the record to a compact file; its name should end in ``.npz``.

        Raises:
            FileError: If it cannot be written.
        """
        write_record(path, self)

    @classmethod
    def load(cls, path: str | Path) -> "ConflictRecord":
        """Read a record that was saved.

        Raises:
            FileError: If the file is not there, or is damaged, or is no record.
        """
        return read_record(path, cls)


def reduction(record: ConflictRecord, base: ConflictRecord, *, severe: float = -0.01) -> float:
    """Return how much of the severe conflict of a base is gone: ``1 - mass / mass of the base``.

    The mass is the share of (pair, measurement) events whose cosine of the whole gradients is strictly below
    ``severe``. Negative if there is more; NaN if the base has none.

    Args:
        record: Of the network that was changed.
        base: Of the network as it was.
        severe: Threshold; in the paper -0.01 for Multi-Fashion+MNIST, -0.02 for CityScapes and PASCAL-Context, -0.04
            for NYUv2.

    References:
        Shi et al., Recon, ICLR 2023, arXiv:2302.11289.
    """
    return reduced_mass(record.conflict_rate(severe), base.conflict_rate(severe))


def reduced_mass(mass: float, base: float) -> float:
    """Return ``1 - mass / base``; NaN if the base is 0.

    Example:
        >>> round(reduced_mass(3.04 + 0.5 + 0.25, 9.26 + 2.05 + 1.25), 4)
        0.6982
    """
    return 1.0 - mass / base if base else float("nan")
