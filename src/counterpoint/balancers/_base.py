"""The three kinds of balancers: they read losses, the Gram matrix of the task gradients, or the task gradients."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal, get_args

import torch
import torch.distributed as dist
from torch import Tensor

from counterpoint import gradients
from counterpoint._checks import check_choice
from counterpoint.balancers._balancer import Balancer as Balancer
from counterpoint.balancers._balancer import Call
from counterpoint.balancers._losses import Step, check_values
from counterpoint.balancers._report import BalancerReport as BalancerReport
from counterpoint.balancers._report import make_report
from counterpoint.errors import NonFiniteError, ShapeError
from counterpoint.gradients.reduce import gather_columns, mean_over_ranks, together

Found = gradients.TaskGradients | gradients.ByLeaf
Engine = Literal["auto", "rows", "low_memory"]


class LossBalancer(Balancer):
    """A balancer that reads losses only: one scalar objective, one backward pass."""

    reads: ClassVar[str] = "losses"
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

    def _backward(self, step: Step, call: Call) -> BalancerReport:
        scale = call.scale(step.values.device)
        with together(self._owner, call.group):
            weights, own = self._differentiate(step.values, step.present)
            if not gradients.all_finite([weights, *own]):
                bad = [position for position, weight in enumerate(weights) if not gradients.all_finite([weight])]
                raise self._nonfinite(step, bad, "weight")
            leaves = gradients.find_leaves(step.losses)
        overflow = False

        def check(found: Sequence[Tensor]) -> None:
            nonlocal overflow
            self._average(found, call.group)
            overflow = not gradients.all_finite(found)
            if overflow and call.scaler is None:
                private = enumerate(gradients.find_scope(step.losses).private)
                raise self._nonfinite(
                    step, [at for at, own in private if not gradients.all_finite([leaf.grad for leaf in own])]
                )

        seeds = [(weight * scale).to(loss) for weight, loss in zip(weights, step.losses, strict=True)]
        gradients.backward_into(step.losses, seeds, leaves, check)
        for parameter, gradient in zip(self.parameters(), own, strict=True):
            if gradient is not None:
                gradients.accumulate(parameter, gradient * scale)
        return make_report(step, weights, None, "parameters", 1, skipped=overflow)


class _GradientBalancer(Balancer):
    """What the two kinds that read task gradients have in common.

    Attributes:
        engine: How the Gram matrix of the parameters' gradients is made, for methods that read no more; the result is
            the same but for rounding. ``"auto"`` takes what is fastest, ``"rows"`` forms every gradient,
            ``"low_memory"`` keeps little more than one backward pass does, for the time of one further pass. In a
            process group, and where the network cannot be divided, it is ``"rows"``. May be set at any time.
            Only ``"rows"`` leaves a ``.grad`` worth reading on a tensor inside the network that was told to retain it.
    """

    engine: Engine = "auto"

    def _backward(self, step: Step, call: Call) -> BalancerReport:
        scale = call.scale(step.values.device)
        with together(self._owner, call.group):
            found = self._task_gradients(step, call, scale)
        self._average_rows(found, call)
        gram = self._gram(found, call)
        bad = self._bad_rows(found, gram, call)
        if bad and call.scaler is None:
            raise self._nonfinite(step, bad)
        overflow = bool(bad)
        weights, private_weights = None, [1.0] * len(step.losses)
        if overflow:
            weights = torch.ones(len(step.losses))  # what is written is not finite, so that the scaler sees it
            direction = found.combine(weights)
        else:
            with together(self._owner, call.group):
                weights, direction = self._balance(found, gram, step, call)
                pieces = [direction] if isinstance(direction, Tensor) else direction
                if not gradients.all_finite(pieces if weights is None else [weights, *pieces]):
                    raise self._nonfinite(step, [], "combined gradient")
            if weights is not None and self.task_gradients == "weighted":
                private_weights = weights.tolist()

        def check(written: Sequence[Tensor]) -> None:
            nonlocal overflow
            self._average(written, call.group)
            overflow = overflow or not gradients.all_finite(written)
            if overflow and call.scaler is None:
                raise self._nonfinite(step, [])

        found.write(direction, private_weights, check, weights=weights, scale=scale)  # type: ignore[arg-type]
        shown = None if bad else weights
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
    def _balance(
        self, found: Found, gram: Tensor | None, step: Step, call: Call
    ) -> tuple[Tensor | None, Tensor | list[Tensor]]:
        """Return task weights, if the method has any, and the combined row."""


class GramBalancer(_GradientBalancer):
    """A balancer that reads the Gram matrix of the task gradients, and the losses, and gives task weights."""

    reads: ClassVar[str] = "gram"
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
        with torch.no_grad():
            found = self.solve(small, losses, positions)
        return found.to(gram.device, gram.dtype if gram.dtype.is_floating_point else torch.float64)

    @abstractmethod
    def solve(self, gram: Tensor, losses: Tensor | None, present: tuple[int, ...]) -> Tensor:
        """Return the weights for a checked Gram matrix in float64 on the CPU; :meth:`weights` calls this."""

    def _balance(
        self,
        found: Found,
        gram: Tensor | None,
        step: Step,
        call: Call,  # noqa: ARG002
    ) -> tuple[Tensor | None, Tensor | list[Tensor]]:
        assert gram is not None
        weights = self.weights(gram, step.values, present=step.present)
        return weights, found.combine(weights)


class JacobianBalancer(_GradientBalancer):
    """A balancer that reads every coordinate of the task gradients and gives the combined gradient."""

    reads: ClassVar[str] = "jacobian"
    cost: ClassVar[str] = "K backward passes (1 at level='features'), memory for K gradients"

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
            return self.aggregate(jacobian.detach(), losses, positions)

    @abstractmethod
    def aggregate(self, jacobian: Tensor, losses: Tensor | None, present: tuple[int, ...]) -> Tensor:
        """Return the combined row of a checked matrix; :meth:`combine` calls this."""

    def _balance(
        self,
        found: Found,
        gram: Tensor | None,  # noqa: ARG002 - no Gram matrix is made
        step: Step,
        call: Call,
    ) -> tuple[Tensor | None, Tensor | list[Tensor]]:
        assert isinstance(found, gradients.TaskGradients)
        with torch.no_grad():
            if call.group is None or call.level == "parameters":
                return None, self.aggregate(found.jacobian, step.values, step.present)
            whole, mine = gather_columns(found.jacobian, call.group)
            size = dist.get_world_size(call.group)  # each loss is the mean over processes
            return None, self.aggregate(whole / size, step.values, step.present)[mine] * size
