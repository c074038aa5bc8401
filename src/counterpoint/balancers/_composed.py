"""What balancers made of other balancers have in common: they pass on what a training loop tells them."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from counterpoint.balancers._balancer import Balancer
from counterpoint.balancers._gradient import GradientBalancer
from counterpoint.balancers._losses import Losses, Step
from counterpoint.balancers._needs import LookAhead
from counterpoint.errors import OptionError, ShapeError


class ComposedBalancer(GradientBalancer):
    """A balancer that holds others; its facts are theirs. A subclass keeps each under its own name.

    Args:
        parts: The balancers, in the order of their work; the last one reads the task gradients, if any does.
    """

    def __init__(self, *parts: Balancer) -> None:
        last = parts[-1]
        for part in parts:
            if not isinstance(part, Balancer):
                raise OptionError(f"{self._owner}: is made of balancers, got {type(part).__name__}")
            if part.num_batches > 1 or part.loss_form != "task":
                raise OptionError(
                    f"{self._owner}: {type(part).__name__} reads more than one loss per task and step, and cannot be "
                    "composed with others"
                )
            if (part.num_tasks, part.tasks) != (last.num_tasks, last.tasks):
                raise OptionError(
                    f"{self._owner}: {type(part).__name__} is of {part.num_tasks} tasks {part.tasks or ''} and "
                    f"{type(last).__name__} of {last.num_tasks} {last.tasks or ''}; build both for the same tasks"
                )
        super().__init__(last.num_tasks, last.tasks)
        self.parts = parts
        self.reads = last.reads
        self.measure = getattr(last, "measure", "shared")
        self.task_gradients = last.task_gradients
        self.keeps_columns = last.keeps_columns
        self.needs = frozenset().union(*(part.needs for part in parts))
        self.nonnegative_losses = any(part.nonnegative_losses for part in parts)

    @property
    def tells_layers(self) -> bool:
        """No: what it differentiates may be no plain losses."""
        return False

    def end_epoch(self) -> None:
        """Pass it on."""
        for part in self.parts:
            part.end_epoch()

    def after_step(self, losses: Losses) -> None:
        """Pass it on."""
        for part in self.parts:
            part.after_step(losses)

    def observe_metrics(
        self,
        values: Mapping[str, float] | Sequence[float],
        *,
        higher_is_better: Mapping[str, bool] | Sequence[bool],
    ) -> None:
        """Pass it on."""
        for part in self.parts:
            part.observe_metrics(values, higher_is_better=higher_is_better)

    def look_ahead(self, ahead: LookAhead) -> None:
        """Pass it on."""
        for part in self.parts:
            part.look_ahead(ahead)

    def transform(self, features: Tensor, task: str | int) -> Tensor:
        """Pass it on."""
        for part in self.parts:
            features = part.transform(features, task)
        return features

    def weights(
        self, gram: Tensor | None, losses: Tensor | None = None, *, present: Sequence[int] | None = None
    ) -> Tensor:
        """Return the weights of the task gradients, (k,); no autograd. One call is one step of the state.

        Args:
            gram: Inner products of the task gradients, (k, k); not read if no part reads them.
            losses: Losses of the tasks that are present, (k,); may be left out if no part reads them.
            present: Which tasks they belong to; default all.

        Raises:
            OptionError: If a part gives no weights: use :meth:`combine`.
            ShapeError: If a part reads the losses and they are not given.
            NonFiniteError: If there is NaN or infinity; names the task.
        """
        self._expect("weights", "losses", "gram")
        if self.reads == "losses":
            if losses is None:
                raise ShapeError(f"{self._owner}: reads the losses; call weights(None, losses)")
            positions = self._positions(len(losses), present)
            self._check_pure_losses(losses, positions)
            return self._weigh(None, losses, positions, self._pure(losses, positions)).weights  # type: ignore[return-value]
        assert gram is not None
        positions, small, values = self._check_gram(gram, losses, present)
        with torch.no_grad():
            found = self._weigh(small, values, positions, self._pure(values, positions)).weights
        assert found is not None
        return found.to(gram.device, gram.dtype if gram.dtype.is_floating_point else torch.float64)

    def combine(
        self, jacobian: Tensor, losses: Tensor | None = None, *, present: Sequence[int] | None = None
    ) -> Tensor:
        """Return the combined gradient (P,) of the rows (k, P); no autograd. One call is one step of the state.

        Args:
            jacobian: One row per task.
            losses: Losses, (k,); may be left out if no part reads them.
            present: Which tasks the rows belong to; default all.

        Raises:
            OptionError: If all parts give weights: use :meth:`weights`.
            NonFiniteError: If there is NaN or infinity; names the task.
        """
        self._expect("combine", "jacobian")
        positions = self._check_rows(jacobian, losses, present)
        with torch.no_grad():
            values = None if losses is None else losses.detach().to(jacobian)
            return self._aggregate(jacobian.detach(), values, positions)

    def _aggregate(self, jacobian: Tensor, losses: Tensor | None, present: tuple[int, ...]) -> Tensor:
        """Return the combined row."""
        raise NotImplementedError

    def _expect(self, method: str, *reads: str) -> None:
        """Refuse a pure call of the other kind.

        Raises:
            OptionError: If it is.
        """
        if self.reads not in reads:
            other = "combine(jacobian, losses)" if self.reads == "jacobian" else "weights(gram, losses)"
            raise OptionError(f"{self._owner}: reads the {self.reads}; call {other} instead of {method}")

    def _pure(self, values: Tensor | None, present: tuple[int, ...]) -> Step:
        """Return what stands for the losses in a call without a graph."""
        names = self._names or tuple(map(str, range(self.num_tasks)))
        return Step(names, present, (), torch.empty(0) if values is None else values)
