"""Estimators: fed by the training loop every few steps, then asked for a matrix."""

import abc
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from counterpoint._checks import check_integer, check_tasks
from counterpoint.errors import GraphError, NonFiniteError, OptionError
from counterpoint.grouping._base import Method
from counterpoint.grouping._preserve import Snapshot, preserved
from counterpoint.grouping.affinity import AffinityMatrix, Matrix
from counterpoint.registry import unknown

Compute = Callable[[], Any]


class Estimator(Method):
    """Measures an affinity matrix while a network trains; every observation leaves the training as it was.

    Attributes:
        steps: Calls of :meth:`observe` so far.
        measured: How many of them were measured.
    """

    role = "estimator"
    directed: ClassVar[bool]
    higher_is_better: ClassVar[bool] = True
    diagonal: ClassVar[str]

    def __init__(self, num_tasks: int | None, tasks: Sequence[str] | None, every: int) -> None:
        owner = type(self).__name__
        self.num_tasks = check_tasks(owner, num_tasks, tasks)
        self.tasks = None if tasks is None else tuple(tasks)
        self.every = check_integer(f"{owner}: every", every, low=1)
        self.steps = 0
        self.measured = 0
        self._sums: Matrix = np.zeros((self.num_tasks, self.num_tasks))
        self._counts: Matrix = np.zeros((self.num_tasks, self.num_tasks))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tasks; their numbers if they have none."""
        return self.tasks or tuple(str(task) for task in range(self.num_tasks))

    def observe(
        self,
        compute: Compute,
        model: nn.Module,
        optimizer: Optimizer | None = None,
        *,
        shared: Iterable[nn.Parameter] | None = None,
    ) -> bool:
        """Measure at the first call and every ``every`` calls after; return whether this one was measured.

        Args:
            compute: Returns what the estimator reads (``reads``), computed anew for the batch at each call.
            model: The network.
            optimizer: The optimizer of the real step.
            shared: Parameters that count as shared; default: those that two or more tasks reach.
        """
        # what the step tries changes parameters in place: observe before the forward pass of the real step
        due = self.steps % self.every == 0
        self.steps += 1
        if due:
            with preserved(model, optimizer) as snapshot:
                values = self._measure(compute, snapshot, None if shared is None else list(shared))
            known = ~np.isnan(values)
            self._sums[known] += values[known]
            self._counts += known
            self.measured += 1
        return due

    @abc.abstractmethod
    def _measure(self, compute: Compute, snapshot: Snapshot, shared: list[nn.Parameter] | None) -> Matrix:
        """Return one observation, NaN where there is none."""

    @property
    def counts(self) -> Matrix:
        """How often each entry was measured, (T, T)."""
        return self._counts.copy()

    def result(self) -> AffinityMatrix:
        """Return the mean of the observations; NaN where two tasks were never seen together.

        Raises:
            OptionError: If nothing was observed.
        """
        if not self.measured:
            raise OptionError(
                f"{type(self).__name__}: nothing was observed; call observe(...) in the training loop first"
            )
        return self._matrix(np.where(self._counts > 0, self._sums / np.maximum(self._counts, 1), np.nan))

    def _matrix(self, values: Matrix) -> AffinityMatrix:
        return AffinityMatrix(
            self.names,
            values,
            directed=self.directed,
            higher_is_better=self.higher_is_better,
            diagonal=self.diagonal,
            source=f"{self!r}, mean of {self.measured} observations",
            cost=f"{self.cost}; every {self.every} steps",
        )

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs, as plain data."""
        return {
            "steps": self.steps,
            "measured": self.measured,
            "sums": self._sums.tolist(),
            "counts": self._counts.tolist(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what :meth:`state_dict` returned.

        Raises:
            OptionError: If it is of another number of tasks.
        """
        sums = np.array(state["sums"], dtype=np.float64)
        if sums.shape != self._sums.shape:
            raise OptionError(f"{type(self).__name__}: the state is of {len(sums)} tasks, not {self.num_tasks}")
        self.steps, self.measured = state["steps"], state["measured"]
        self._sums, self._counts = sums, np.array(state["counts"], dtype=np.float64)

    def by_task(self, given: Any, what: str) -> list[Any]:
        """Return one entry per task in order, ``None`` for those that are absent.

        Raises:
            UnknownNameError: If a mapping has a task that there is not.
            OptionError: If the number does not fit.
        """
        if isinstance(given, Mapping):
            for task in given:
                if task not in self.names:
                    raise unknown("task", str(task), self.names)
            return [given.get(task) for task in self.names]
        entries = list(given)
        if len(entries) != self.num_tasks:
            raise OptionError(f"{type(self).__name__}: expected {self.num_tasks} {what}, got {len(entries)}")
        return entries

    def losses(self, compute: Compute) -> list[Tensor | None]:
        """Return the losses of one forward pass.

        Raises:
            NonFiniteError: If a loss is NaN or infinite.
            OptionError: If a loss is not one number.
        """
        losses = self.by_task(compute(), "losses")
        for name, loss in zip(self.names, losses, strict=True):
            if loss is None:
                continue
            if not isinstance(loss, Tensor) or loss.numel() != 1:
                raise OptionError(f"{type(self).__name__}: the loss of {name} must be one number; take its mean")
            if not torch.isfinite(loss):
                raise NonFiniteError(f"{type(self).__name__}: the loss of {name} is {float(loss.detach()):g}", (name,))
        return losses

    def positive(self, losses: Sequence[Tensor | None]) -> list[float]:
        """Return the losses as numbers, NaN for a task that is absent or whose loss is too near 0 for a ratio.

        Raises:
            OptionError: If a loss is negative.
        """
        values = [math.nan if loss is None else float(loss.detach()) for loss in losses]
        for name, value in zip(self.names, values, strict=True):
            if value < 0:
                raise OptionError(
                    f"{type(self).__name__}: the loss of {name} is {value:g}, and a ratio of losses means nothing "
                    "below 0; observe a loss that is not negative, or use gradient_cosine"
                )
        return [value if value > 1e-12 else math.nan for value in values]

    def differentiated(
        self, compute: Compute, snapshot: Snapshot, shared: list[nn.Parameter] | None
    ) -> tuple[list[Tensor | None], list[list[Tensor | None] | None], list[bool]]:
        """Return the losses of one forward pass, the gradients of each task, and which parameters are shared."""
        with torch.enable_grad():
            losses = self.losses(compute)
        grads = self.gradients(losses, snapshot)
        return losses, grads, self.is_shared(grads, snapshot, shared)

    def gradients(self, losses: Sequence[Tensor | None], snapshot: Snapshot) -> list[list[Tensor | None] | None]:
        """Return for each task its gradient on every parameter; ``None`` for an absent task.

        Raises:
            GraphError: If a loss has no graph.
        """
        parameters = [p for p in snapshot.parameters if p.requires_grad]
        found: list[list[Tensor | None] | None] = []
        for name, loss in zip(self.names, losses, strict=True):
            if loss is None:
                found.append(None)
                continue
            if not loss.requires_grad:
                raise GraphError(
                    f"{type(self).__name__}: the loss of {name} has no graph; compute it with gradients on"
                )
            by_parameter = dict(
                zip(
                    parameters, torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True), strict=True
                )
            )
            found.append([by_parameter.get(p) for p in snapshot.parameters])
        return found

    def is_shared(
        self, grads: Sequence[Sequence[Tensor | None] | None], snapshot: Snapshot, shared: list[nn.Parameter] | None
    ) -> list[bool]:
        """Return for each parameter whether it is shared.

        Raises:
            GraphError: If no parameter is.
        """
        if shared is not None:
            wanted = {id(p) for p in shared}
            flags = [id(p) in wanted for p in snapshot.parameters]
        else:
            present = [row for row in grads if row is not None]
            flags = [sum(row[at] is not None for row in present) > 1 for at in range(len(snapshot.parameters))]
            if len(present) < 2:  # a single task present: nothing tells shared from private
                flags = [any(row[at] is not None for row in present) for at in range(len(snapshot.parameters))]
        if not any(flags):
            raise GraphError(
                f"{type(self).__name__}: no parameter of the model is shared; pass shared=trunk.parameters()"
            )
        return flags
