"""The three kinds of balancers: they read losses, the Gram matrix of the task gradients, or the task gradients."""

import dataclasses
from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.distributed as dist
from torch import Tensor

from counterpoint import gradients
from counterpoint.balancers._balancer import Balancer as Balancer
from counterpoint.balancers._call import Call
from counterpoint.balancers._gradient import Balanced, Found, GradientBalancer, own_factors
from counterpoint.balancers._losses import Step, check_values
from counterpoint.balancers._report import BalancerReport as BalancerReport
from counterpoint.balancers._report import make_report
from counterpoint.balancers._weighted import Own, WeightedPass
from counterpoint.errors import OptionError, ShapeError
from counterpoint.gradients.reduce import gather_columns, together


class LossBalancer(WeightedPass):
    """A balancer that reads losses only: one scalar objective, one backward pass."""

    reads: str = "losses"
    task_gradients: str = "weighted"
    cost: ClassVar[str] = "1 backward pass"

    @abstractmethod
    def objective(self, losses: Tensor, *, present: Sequence[int] | None = None) -> Tensor:
        """Return the scalar to minimize; differentiable in the losses. One call is one step of the state.

        Args:
            losses: Losses of the tasks that are present, (k,).
            present: Which tasks they belong to; default all.
        """

    def weights(self, gram: Tensor | None, losses: Tensor, *, present: Sequence[int] | None = None) -> Tensor:  # noqa: ARG002
        """Return the derivative of the objective by each loss, (k,); one call is one step of the state.

        Args:
            gram: Not read; there so that all kinds are called alike.
            losses: Losses of the tasks that are present, (k,).
            present: Which tasks they belong to; default all.

        Raises:
            ShapeError: If ``losses`` is no vector of k real numbers.
            NonFiniteError: If one is NaN or infinite.
            OptionError: If one is negative and the method needs losses of at least 0.
        """
        if losses.ndim != 1 or not losses.is_floating_point():
            shown = f"{tuple(losses.shape)} {losses.dtype}"
            raise ShapeError(f"{self._owner}: losses must be (k,) and of a floating-point dtype, got {shown}")
        positions = self._positions(len(losses), present)
        check_values(self._owner, self._names_of(positions), losses, nonnegative=self.nonnegative_losses)
        return self._differentiate(losses, positions)[0]

    def _differentiate(self, losses: Tensor, present: tuple[int, ...]) -> tuple[Tensor, list[Tensor | None]]:
        """Return the derivatives of the objective by the losses and by the balancer's own parameters."""
        leaf = losses.detach().clone().requires_grad_()
        own = list(self.parameters())
        with torch.enable_grad():
            total = self.objective(leaf, present=present)
        by_loss, *by_own = torch.autograd.grad(total, [leaf, *own], allow_unused=True)
        return torch.zeros_like(leaf) if by_loss is None else by_loss, list(by_own)

    def _own_gradients(self, values: Tensor, present: tuple[int, ...], step: Step) -> tuple[Tensor, Own]:
        """Return the derivatives of the objective by the losses, and the gradients of the balancer's own parameters."""
        weights, own = self._differentiate(values, present)
        if not gradients.all_finite([weights, *own]):
            bad = [position for position, weight in enumerate(weights) if not gradients.all_finite([weight])]
            raise self._nonfinite(step, bad, "weight")
        pairs = zip(self.parameters(), own, strict=True)
        return weights, [(parameter, gradient) for parameter, gradient in pairs if gradient is not None]

    def _backward(self, step: Step, call: Call) -> BalancerReport:
        with together(self._owner, call.group):
            weights, own = self._own_gradients(step.values, step.present, step)
        overflow = self._write_weighted(step, call, weights, None, own)
        return make_report(step, weights, None, "parameters", 1, skipped=overflow)


class GramBalancer(GradientBalancer):
    """A balancer that reads the Gram matrix of the task gradients, and the losses, and gives task weights."""

    reads: str = "gram"
    cost: ClassVar[str] = "K backward passes (1 at level='features')"

    def weights(self, gram: Tensor, losses: Tensor | None = None, *, present: Sequence[int] | None = None) -> Tensor:
        """Return the weights of the task gradients, (k,); no autograd. One call is one step of the state.

        Args:
            gram: Inner products of the task gradients, (k, k), symmetric positive semi-definite. The work is done
                in float64 on the CPU; the result has the dtype and the device of ``gram``.
            losses: Losses, (k,); only some methods read them.
            present: Which tasks the rows belong to; default all.

        Raises:
            ShapeError: If ``gram`` is not (k, k) with k = ``num_tasks`` or the length of ``present``.
            NonFiniteError: If it, or a loss, has NaN or infinity; names the task.
            OptionError: If a loss is negative and the method needs losses of at least 0.
        """
        positions, small, losses = self._check_gram(gram, losses, present)
        with torch.no_grad():
            found = self.solve(small, losses, positions)
        return found.to(gram.device, gram.dtype if gram.dtype.is_floating_point else torch.float64)

    @abstractmethod
    def solve(self, gram: Tensor, losses: Tensor | None, present: tuple[int, ...]) -> Tensor:
        """Return the weights for a checked Gram matrix in float64 on the CPU; :meth:`weights` calls this."""

    def _weigh(self, gram: Tensor | None, values: Tensor | None, present: tuple[int, ...], step: Step) -> Balanced:  # noqa: ARG002
        assert gram is not None
        weights = self.weights(gram, values, present=present)
        return Balanced(weights, [], own_factors(weights, gram) if self.task_gradients == "weighted" else None)

    def _balance(self, found: Found, gram: Tensor | None, step: Step, call: Call) -> Balanced:  # noqa: ARG002
        assert gram is not None
        balanced = self._weigh(gram, step.values, step.present, step)
        assert balanced.weights is not None
        return dataclasses.replace(balanced, direction=found.combine(balanced.weights))


class JacobianBalancer(GradientBalancer):
    """A balancer that reads every coordinate of the task gradients and gives the combined gradient."""

    reads: str = "jacobian"
    cost: ClassVar[str] = "K backward passes (1 at level='features'), memory for K gradients"
    _undone = ("_layout",)

    def combine(
        self, jacobian: Tensor, losses: Tensor | None = None, *, present: Sequence[int] | None = None
    ) -> Tensor:
        """Return the combined gradient (P,) of the rows (k, P); no autograd. One call is one step of the state.

        Args:
            jacobian: One row per task.
            losses: Losses, (k,); only some methods read them.
            present: Which tasks the rows belong to; default all.

        Raises:
            ShapeError: If the number of rows does not fit.
            NonFiniteError: If there is NaN or infinity, in the losses, too; names the task.
            OptionError: If a loss is negative and the method needs losses of at least 0.
        """
        positions = self._check_rows(jacobian, losses, present)
        with torch.no_grad(), gradients.full_precision(jacobian.device):
            return _direction(self.aggregate(jacobian.detach(), losses, positions))

    @abstractmethod
    def aggregate(
        self, jacobian: Tensor, losses: Tensor | None, present: tuple[int, ...]
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Return the combined row of a checked matrix; :meth:`combine` calls this.

        A method whose combined row is a weighted sum of the rows, or of their running means, returns the row and the
        weights (k,).
        """

    def _task_gradients(self, step: Step, call: Call, scale: float) -> Found:
        """Differentiate each loss once; with ``keeps_columns`` into the same columns at every step.

        Raises:
            OptionError: If the columns cannot be known, since a task is absent, or are not those of the steps before.
        """
        if not self.keeps_columns:
            return super()._task_gradients(step, call, scale)
        layout, given = self._layout.get(), list(dict.fromkeys(call.shared or ()))
        if layout and given and set(layout) != set(given):
            raise OptionError(
                f"{self._owner}: this method has a state for each coordinate of the shared parameters, and shared= has "
                f"{len(given)} parameters that are not the {len(layout)} of the steps before; pass the same ones at "
                "every step, or call reset() to start over"
            )
        layout = layout or given
        if not layout and len(step.present) < self.num_tasks:
            raise OptionError(
                f"{self._owner}: this method has a state for each coordinate of the shared parameters, and a batch "
                f"without {self.num_tasks - len(step.present)} of the tasks does not show which those are; pass shared="
            )
        found = super()._task_gradients(step, dataclasses.replace(call, shared=layout or None), scale)
        assert isinstance(found, gradients.TaskGradients)
        layout = layout or list(found.scope.shared)
        self._layout = gradients.Leaves(layout)
        return gradients.in_columns(found, layout)

    def _balance(self, found: Found, gram: Tensor | None, step: Step, call: Call) -> Balanced:  # noqa: ARG002
        assert isinstance(found, gradients.TaskGradients)
        with torch.no_grad():
            if call.group is None or call.level == "parameters":
                result = self.aggregate(found.jacobian, step.values, step.present)
                direction = _direction(result)
            else:
                whole, mine = gather_columns(found.jacobian, call.group)
                size = dist.get_world_size(call.group)  # each loss is the mean over processes
                result = self.aggregate(whole / size, step.values, step.present)
                direction = _direction(result)[mine] * size
        weights = None if isinstance(result, Tensor) else result[1]
        return Balanced(weights, direction, weights if self.task_gradients == "weighted" else None)


def _direction(result: Tensor | tuple[Tensor, Tensor]) -> Tensor:
    return result if isinstance(result, Tensor) else result[0]
