"""The three kinds of balancers: they read losses, the Gram matrix of the task gradients, or the task gradients."""

import dataclasses
from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal, get_args

import torch
import torch.distributed as dist
from torch import Tensor

from counterpoint import gradients, linalg
from counterpoint._checks import check_choice
from counterpoint.balancers._balancer import Balancer as Balancer
from counterpoint.balancers._balancer import Call, Measure
from counterpoint.balancers._losses import Step, check_values
from counterpoint.balancers._report import BalancerReport as BalancerReport
from counterpoint.balancers._report import make_report
from counterpoint.balancers._weighted import Own, WeightedPass
from counterpoint.errors import NonFiniteError, OptionError, ShapeError
from counterpoint.gradients.reduce import gather_columns, mean_over_ranks, together

Found = gradients.TaskGradients | gradients.ByLeaf
Engine = Literal["auto", "rows", "low_memory"]


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
        names = [str(task) if self._names is None else self._names[task] for task in positions]
        check_values(self._owner, names, losses, nonnegative=self.nonnegative_losses)
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


@dataclasses.dataclass(frozen=True)
class Balanced:
    """What a method decided.

    Attributes:
        weights: Factor of each task's gradient, (k,), where the method has such factors.
        direction: The combined row.
        private: Factor of each task's gradient for its own parameters; ``None`` for 1.
        own: Gradients of the balancer's own parameters.
    """

    weights: Tensor | None
    direction: Tensor | list[Tensor]
    private: Tensor | None = None
    own: Own = ()


class GradientBalancer(WeightedPass):
    """What the two kinds that read task gradients have in common.

    Attributes:
        engine: How the Gram matrix of the parameters' gradients is made, for methods that read no more; the result is
            the same but for rounding. ``"auto"`` takes what is fastest, ``"rows"`` forms every gradient,
            ``"low_memory"`` keeps little more than one backward pass does, for the time of one further pass. In a
            process group, and where the network cannot be divided, it is ``"rows"``. May be set at any time.
            Only ``"rows"`` leaves a ``.grad`` worth reading on a tensor inside the network that was told to retain it.
        measure: What the Gram matrix is of, where the call does not say.
    """

    engine: Engine = "auto"
    measure: Measure = "shared"

    def _backward(self, step: Step, call: Call) -> BalancerReport:
        with together(self._owner, call.group):
            measured = self._measured(step, call)
        if measured is not None:
            return self._backward_measured(step, call, measured)
        scale = call.scale(step.values.device)
        with together(self._owner, call.group):
            found = self._task_gradients(step, call, scale)
        self._average_rows(found, call)
        gram = self._gram(found, call)
        bad = self._bad_rows(found, gram, call)
        if bad and call.scaler is None:
            raise self._nonfinite(step, bad)
        overflow = bool(bad)
        private = [1.0] * len(step.losses)
        if overflow:
            weights = torch.ones(len(step.losses))  # what is written is not finite, so that the scaler sees it
            balanced = Balanced(weights, found.combine(weights))
        else:
            with together(self._owner, call.group):
                balanced = self._balance(found, gram, step, call)
                pieces = [balanced.direction] if isinstance(balanced.direction, Tensor) else balanced.direction
                if not gradients.all_finite(
                    pieces if balanced.weights is None else [balanced.weights, *pieces],
                ):
                    raise self._nonfinite(step, [], "combined gradient")
            if balanced.private is not None:
                private = balanced.private.tolist()

        def check(written: Sequence[Tensor]) -> None:
            nonlocal overflow
            self._average(written, call.group)
            overflow = overflow or not gradients.all_finite(written)
            if overflow and call.scaler is None:
                raise self._nonfinite(step, [])

        found.write(balanced.direction, private, check, weights=balanced.weights, scale=scale)  # type: ignore[arg-type]
        for parameter, gradient in balanced.own:
            gradients.accumulate(parameter, gradient * scale)
        shown = None if bad else balanced.weights
        return make_report(step, shown, gram, call.level, found.num_backward, skipped=overflow)

    def _task_gradients(self, step: Step, call: Call, scale: float) -> Found:
        """Differentiate each loss once; without forming all gradients where the Gram matrix is enough and that pays."""
        check_choice(f"{self._owner}: engine", self.engine, get_args(Engine))
        if self.reads == "gram" and call.group is None and call.level == "parameters" and self.engine != "rows":
            where = {"shared": call.shared, "features": call.features, "scale": scale}
            if self.engine == "low_memory":
                found = gradients.low_memory_gradients(step.losses, **where)
            else:
                found = gradients.layer_gradients(step.losses, **where, workspace=self._workspace)
            if found is not None:
                return found
        return gradients.task_gradients(
            step.losses,
            shared=call.shared,
            features=call.features,
            level=call.level,
            scale=scale,
            workspace=self._workspace,
        )

    def _average_rows(self, found: Found, call: Call) -> None:
        """Average the private gradients, and the rows if they are gradients of parameters, over a group."""
        if call.group is None or isinstance(found, gradients.ByLeaf):
            return
        for leaves, own in zip(found.scope.private, found.private, strict=True):
            for position, (leaf, gradient) in enumerate(zip(leaves, own, strict=True)):
                dense = torch.zeros_like(leaf) if gradient is None else gradient
                own[position] = dense.to_dense().clone() if dense.is_sparse else dense.clone()
        rows = [found.jacobian] if call.level == "parameters" else [row for rows in found.bypass for row in rows]
        private = [gradient for own in found.private for gradient in own if gradient is not None]
        self._average([*rows, *private], call.group)

    def _gram(self, found: Found, call: Call) -> Tensor | None:
        """Return the Gram matrix, of the whole batch if it is spread over a group, for methods that read it."""
        if self.reads != "gram":
            return None
        gram = found.gram()
        if call.group is not None and call.level == "features":
            # the features of the processes stand side by side, and each loss is the mean over processes
            gram = mean_over_ranks(gram, call.group) / dist.get_world_size(call.group)
        return gram

    def _bad_rows(self, found: Found, gram: Tensor | None, call: Call) -> list[int]:
        """Return the positions of the tasks whose gradient is not finite anywhere."""
        peaks = torch.zeros(len(found.private))
        if gram is not None:
            peaks = gram.diagonal()
        elif isinstance(found, gradients.TaskGradients) and found.jacobian.numel():
            peaks = torch.stack([row.sum() for row in found.jacobian])  # not finite if an entry is not
            if not gradients.all_finite([peaks]):
                peaks = found.jacobian.abs().amax(dim=1)
            if call.group is not None and call.level == "features":
                peaks = mean_over_ranks(peaks, call.group)
        bad = {position for position, peak in enumerate(peaks.tolist()) if peak - peak != 0.0}
        other = [[*own, *rows] for own, rows in zip(found.private, found.bypass or [[]] * len(peaks), strict=True)]
        if not gradients.all_finite([gradient for own in other for gradient in own]):
            bad |= {position for position, own in enumerate(other) if not gradients.all_finite(own)}
        return sorted(bad)

    @abstractmethod
    def _balance(self, found: Found, gram: Tensor | None, step: Step, call: Call) -> Balanced:
        """Return what the method makes of the task gradients."""

    def _weigh(self, gram: Tensor | None, values: Tensor, present: tuple[int, ...], step: Step) -> Balanced:
        """Return what a method that reads the Gram matrix makes of it, without a direction."""
        raise NotImplementedError

    def _check_gram(
        self, gram: Tensor, losses: Tensor | None, present: Sequence[int] | None
    ) -> tuple[tuple[int, ...], Tensor, Tensor | None]:
        """Return which tasks the rows belong to, and matrix and losses in float64 on the CPU.

        Raises:
            ShapeError: If a shape does not fit.
            NonFiniteError: If the matrix has NaN or infinity.
        """
        if gram.ndim != 2 or gram.shape[0] != gram.shape[1]:
            raise ShapeError(f"{self._owner}: gram must be (K, K) with K = num_tasks, got {tuple(gram.shape)}")
        positions = self._positions(len(gram), present)
        small = gram.detach().to("cpu", torch.float64)
        if not bool(torch.isfinite(small).all()):
            raise NonFiniteError(f"{self._owner}: gram must be finite, got {small.tolist()}")
        if losses is not None:
            losses = losses.detach().to("cpu", torch.float64)
            if losses.shape != (len(gram),):
                raise ShapeError(f"{self._owner}: losses must be ({len(gram)},), got {tuple(losses.shape)}")
        return positions, small, losses

    def _measured(self, step: Step, call: Call) -> list[Tensor] | None:
        """Return the leaves that the Gram matrix is of, or ``None`` for all shared ones.

        Raises:
            OptionError: If the balancer measures some only, which is not defined for features.
        """
        measure = self.measure if call.measure is None else call.measure
        if isinstance(measure, str) and measure == "shared":
            return None
        if call.level == "features":
            raise OptionError(
                f"{self._owner}: measures the gradients of some parameters, so it cannot balance at level='features'; "
                "build it with measure='shared'"
            )
        if not isinstance(measure, str):
            leaves = list(measure)
            if not leaves:
                raise OptionError(f"{self._owner}: measure= is an empty list; pass shared parameters, or 'last'")
            return leaves
        return gradients.last_layer(step.losses, shared=call.shared, features=call.features)

    def _backward_measured(self, step: Step, call: Call, leaves: Sequence[Tensor]) -> BalancerReport:
        """Weigh the tasks by their gradients of some leaves, then run one weighted backward pass."""
        scale = call.scale(step.values.device)
        with together(self._owner, call.group):
            rows = gradients.subset_rows(step.losses, leaves, scale=scale, workspace=self._workspace)
        self._average([rows], call.group)
        with together(self._owner, call.group):
            gram = linalg.gram(rows)
            bad = [position for position, square in enumerate(gram.diagonal().tolist()) if square - square != 0.0]
            if bad and call.scaler is None:
                raise self._nonfinite(step, bad)
            ones = torch.ones_like(step.values)
            balanced = Balanced(ones, []) if bad else self._weigh(gram, step.values, step.present, step)
        assert balanced.weights is not None
        private = ones if balanced.private is None else balanced.private
        overflow = self._write_weighted(step, call, balanced.weights.to(ones), private.to(ones), balanced.own)
        return make_report(step, None if bad else balanced.weights, gram, call.level, 1, skipped=overflow)


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
            NonFiniteError: If it has NaN or infinity.
        """
        positions, small, losses = self._check_gram(gram, losses, present)
        with torch.no_grad():
            found = self.solve(small, losses, positions)
        return found.to(gram.device, gram.dtype if gram.dtype.is_floating_point else torch.float64)

    @abstractmethod
    def solve(self, gram: Tensor, losses: Tensor | None, present: tuple[int, ...]) -> Tensor:
        """Return the weights for a checked Gram matrix in float64 on the CPU; :meth:`weights` calls this."""

    def _weigh(self, gram: Tensor | None, values: Tensor, present: tuple[int, ...], step: Step) -> Balanced:  # noqa: ARG002
        assert gram is not None
        weights = self.weights(gram, values, present=present)
        return Balanced(weights, [], weights if self.task_gradients == "weighted" else None)

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
            NonFiniteError: If there is NaN or infinity.
        """
        if jacobian.ndim != 2:
            raise ShapeError(f"{self._owner}: jacobian must be (K, P), got {tuple(jacobian.shape)}")
        positions = self._positions(len(jacobian), present)
        if not bool(torch.isfinite(jacobian).all()):
            raise NonFiniteError(f"{self._owner}: jacobian must be finite")
        with torch.no_grad():
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
