"""The monitor: measures the conflict between tasks in every layer while a network trains."""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from counterpoint._checks import check_integer, check_range, check_tasks
from counterpoint.balancers._losses import Losses, Step, read_losses
from counterpoint.diagnostics._bins import Bins
from counterpoint.diagnostics.record import GRID, ConflictRecord
from counterpoint.diagnostics.spectrum import effective_rank
from counterpoint.errors import OptionError, ShapeError
from counterpoint.gradients import group_grams
from counterpoint.registry import unknown
from counterpoint.splitting.layers import find_layers, layer_parameters, sizes

_BINS = 128  # entries of a record that does not keep every cosine are at most this many
_ZERO = 1e-12  # a gradient this much shorter than the longest of its layer counts as zero


class ConflictMonitor:
    """Measures cosines and lengths of the task gradients, layer by layer, every few steps.

    Call :meth:`observe` with the losses of each step, before the balancer's ``backward``, or give the monitor to
    ``backward(losses, monitor=monitor)``: a balancer that differentiates each loss anyway tells it what it knows.

    A layer is one module with parameters of its own, weight and bias together, as in
    :func:`counterpoint.splitting.find_layers`; layers that fewer than two tasks reach are left out. The gradients are
    of the plain losses, whatever the balancer makes of them, and of this process's batch only. A measurement costs
    about one backward pass per task.

    Args:
        module: The network, or the part of it that is of interest.
        tasks: Names of the tasks.
        num_tasks: Number of tasks K, if they have no names.
        every: Measure at the first call of ``observe`` and then at every so-many-th.
        thresholds: Values S for which conflicts (cosines strictly below S) are counted. With ``keep_cosines`` any can
            be asked for later.
        keep_cosines: Keep every cosine, 4 bytes per measurement, layer and pair of tasks. Otherwise means and counts
            over time, in at most 128 bins.

    Raises:
        OptionError: If an option is outside its range, or the module has no parameters.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from counterpoint.diagnostics import ConflictMonitor
        >>> net = nn.Linear(2, 1, bias=False)
        >>> monitor = ConflictMonitor(net, tasks=["up", "down"])
        >>> y = net(torch.ones(1, 2)).sum()
        >>> monitor.observe({"up": -y, "down": 2 * y})
        True
        >>> monitor.record().conflict_rate()
        1.0
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        tasks: Sequence[str] | None = None,
        num_tasks: int | None = None,
        every: int = 1,
        thresholds: Sequence[float] = (0.0,),
        keep_cosines: bool = False,
    ) -> None:
        self.num_tasks = check_tasks("ConflictMonitor", num_tasks, tasks)
        self.every = check_integer("ConflictMonitor: every", every, low=1)
        self.thresholds = tuple(
            check_range("ConflictMonitor: thresholds", float(value), low=-1.0, high=1.0) for value in thresholds
        )
        self.keep_cosines = keep_cosines
        self._names = None if tasks is None else tuple(tasks)
        self._groups = layer_parameters(module)
        self._sizes = dict(sizes(module))
        self._kinds = {name: layer.kind for name, layer in find_layers(module).items()}
        if not self._groups:
            kind = type(module).__name__
            raise OptionError(f"ConflictMonitor: {kind} has no parameters; pass the network that is trained")
        self._layers = list(self._groups)
        self._calls = 0
        self._bins = Bins(None if keep_cosines else _BINS)
        self._reached = np.zeros(len(self._layers), dtype=bool)
        num_pairs = self.num_tasks * (self.num_tasks - 1) // 2
        self._histogram = np.zeros((num_pairs, len(GRID)), dtype=np.int64)

    def observe(self, losses: Losses, *, step: int | None = None, scaler: torch.amp.GradScaler | None = None) -> bool:
        """Measure, if it is time to; keeps the graph and writes nothing to ``.grad``.

        Args:
            losses: As for a balancer's ``backward``: a mapping from task name, a sequence, or a 1-D tensor with a
                graph; ``None``, or a missing name, is an absent task.
            step: Number of the step, for the record; default the number of calls before this one.
            scaler: Gradient scaler of mixed precision: the losses are scaled during the backward passes.

        Returns:
            Whether it measured.

        Raises:
            ShapeError, UnknownNameError, GraphError, NonFiniteError: If the losses are none, as in ``backward``.
        """
        layers = self.due()
        if layers is None:
            return False
        read = read_losses("ConflictMonitor", self.num_tasks, self._names, losses)
        self._names = read.names
        if len(read.present) < 2:
            return False
        scale = 1.0 if scaler is None or not scaler.is_enabled() else float(scaler.get_scale())
        self.take(read, group_grams(read.losses, layers, scale=scale), at=step)
        return True

    def due(self) -> Mapping[str, Sequence[Tensor]] | None:
        """Count one step, and return the parameters of each layer if it is time to measure; a balancer calls this."""
        self._calls += 1
        return None if (self._calls - 1) % self.every else self._groups

    def take(self, step: Step, grams: Mapping[str, Tensor], *, at: int | None = None) -> None:
        """Take a measurement; a balancer calls this.

        Args:
            step: The losses of the step.
            grams: Layer -> inner products of the task gradients, (k, k), of the k tasks that are present.
            at: Number of the step; default the number of calls before this one.

        Raises:
            ShapeError: If the step is of another number of tasks.
            UnknownNameError: If it is of other tasks.
        """
        self._add(self._calls - 1 if at is None else at, grams, self._positions(step))

    def next_step(self, step: int) -> None:
        """Say which step comes next, counted from 0: after a checkpoint, or where some steps are not shown to it."""
        self._calls = check_integer("ConflictMonitor.next_step: step", step, low=0)

    def _positions(self, step: Step) -> list[int]:
        """Return which of the monitor's tasks are present in a step, whose order may be another one."""
        if len(step.names) != self.num_tasks:
            raise ShapeError(
                f"ConflictMonitor: built for {self.num_tasks} tasks, and the balancer has {len(step.names)}: "
                f"{list(step.names)}; build it with the same tasks"
            )
        numbers = tuple(map(str, range(self.num_tasks)))  # what stands for names where there are none
        if self._names in (None, numbers):
            self._names = step.names
        if numbers in (self._names, step.names):  # by position
            return list(step.present)
        for name in step.names:
            if name not in self._names:
                raise unknown("task of ConflictMonitor", name, self._names)
        return [self._names.index(step.names[position]) for position in step.present]

    def _add(self, step: int, grams: Mapping[str, Tensor], present: Sequence[int]) -> None:
        stacked = np.full((len(self._layers) + 1, self.num_tasks, self.num_tasks), np.nan)
        at = np.ix_(present, present)
        whole = np.zeros((len(present), len(present)))
        for place, name in enumerate(self._layers):
            if name in grams:
                self._reached[place] = True
                found = grams[name].numpy()
                stacked[place][at] = found
                whole = whole + found
        stacked[-1][at] = whole
        norms, cosines = _measures(stacked)
        for edge, below in zip(GRID.astype(np.float32), self._histogram.T, strict=True):
            below += cosines[-1] < edge
        rank = effective_rank(torch.from_numpy(stacked[-1])) if np.isfinite(whole).all() else float("nan")
        self._bins.add(step, self._sums(cosines, norms, np.array(rank)))

    def _sums(self, cosines: np.ndarray, norms: np.ndarray, rank: np.ndarray) -> dict[str, np.ndarray]:
        if self.keep_cosines:
            return {"cosines": cosines, "norms": norms.astype(np.float32), "rank": rank}
        found = {
            f"num_{name}": (~np.isnan(value)).astype(np.int32)
            for name, value in (("cosines", cosines), ("norms", norms), ("rank", rank))
        }
        below = (
            np.stack([cosines[:-1] < np.float32(value) for value in self.thresholds])
            if self.thresholds
            else (np.zeros((0, *cosines[:-1].shape)))
        )
        return {
            "cosines": np.nan_to_num(cosines.astype(np.float64)),
            "norms": np.nan_to_num(norms),
            "rank": np.nan_to_num(rank),
            "below": below.astype(np.int32),
            **found,
        }

    def record(self) -> ConflictRecord:
        """Return what was measured so far."""
        sums = self._bins.stacked()
        num_pairs = self._histogram.shape[0]
        if not sums:
            sums = {
                "cosines": np.zeros((0, len(self._layers) + 1, num_pairs), dtype=np.float32),
                "norms": np.zeros((0, len(self._layers) + 1, self.num_tasks), dtype=np.float32),
                "rank": np.zeros(0),
                "below": np.zeros((0, len(self.thresholds), len(self._layers), num_pairs), dtype=np.int32),
            }
        cosines, norms, rank = (_mean(sums, name) for name in ("cosines", "norms", "rank"))
        measured = sums.get("num_cosines", (~np.isnan(cosines)).astype(np.int32))
        here = self._reached
        entries = len(cosines)
        below = np.zeros((0, entries, int(here.sum()), num_pairs), dtype=np.int32)
        if not self.keep_cosines:
            below = sums["below"].swapaxes(0, 1)[:, :, here]
        return ConflictRecord(
            tasks=self._names or tuple(str(task) for task in range(self.num_tasks)),
            layers=tuple(itertools.compress(self._layers, here)),
            sizes=self._sizes,
            steps=np.array(self._bins.steps, dtype=np.int64),
            counts=np.array(self._bins.counts, dtype=np.int64),
            cosines=cosines[:, :-1][:, here],
            measured=measured[:, :-1][:, here],
            norms=norms[:, :-1][:, here],
            whole_cosines=cosines[:, -1],
            whole_measured=measured[:, -1],
            whole_norms=norms[:, -1],
            effective_rank=rank,
            whole_below=self._histogram.copy(),
            thresholds=() if self.keep_cosines else self.thresholds,
            below=below,
            exact=self.keep_cosines,
            kinds=self._kinds,
        )


def _measures(grams: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return lengths (n, K) and cosines (n, pairs) in float32 of stacked Gram matrices; NaN where none."""
    squares = np.diagonal(grams, axis1=1, axis2=2)
    with np.errstate(invalid="ignore", divide="ignore"):
        norms = np.sqrt(np.maximum(squares, 0.0))
        norms[~np.isfinite(squares)] = np.nan
        longest = np.fmax.reduce(norms, axis=1, initial=0.0)
        lengths = np.where(norms > _ZERO * longest[:, None], norms, np.nan)
        rows, columns = np.triu_indices(grams.shape[1], k=1)
        cosines = grams[:, rows, columns] / (lengths[:, rows] * lengths[:, columns])
    return norms, np.clip(cosines, -1.0, 1.0).astype(np.float32)


def _mean(sums: dict[str, np.ndarray], name: str) -> np.ndarray:
    """Return the means of sums, NaN where there is nothing in them."""
    total, number = sums[name], sums.get(f"num_{name}")
    if number is None:
        return total.astype(np.float32)
    return np.where(number > 0, total / np.maximum(number, 1), np.nan).astype(np.float32)
