"""What the two kinds that read task gradients have in common: getting them, checking them, writing the update."""

import dataclasses
from abc import abstractmethod
from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.distributed as dist
from torch import Tensor

from counterpoint import gradients, linalg
from counterpoint._checks import check_choice
from counterpoint.balancers._call import Call, Measure
from counterpoint.balancers._losses import Step, check_values
from counterpoint.balancers._report import BalancerReport, make_report
from counterpoint.balancers._weighted import Own, WeightedPass
from counterpoint.errors import NonFiniteError, OptionError, ShapeError
from counterpoint.gradients.reduce import mean_over_ranks, together

Found = gradients.TaskGradients | gradients.ByLeaf
Engine = Literal["auto", "rows", "low_memory"]


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


def own_factors(weights: Tensor, gram: Tensor) -> Tensor:
    """Return the factors of the gradients of the tasks' own parameters, where these are weighted.

    They are the weights. Only a task without a gradient in what is balanced, which a method leaves out with weight 0,
    has factor 1: it takes no part in the balance, and would not be trained at all.
    """
    left_out = (weights == 0) & ~linalg.nonzero_rows(gram).to(weights.device)
    return torch.where(left_out, 1.0, weights)


class GradientBalancer(WeightedPass):
    """What the two kinds that read task gradients have in common.

    Attributes:
        engine: How the Gram matrix of the parameters' gradients is made, for methods that read no more; the result is
            the same but for rounding. ``"auto"`` takes what is fastest, ``"rows"`` forms every gradient,
            ``"low_memory"`` keeps little more than one backward pass does, mostly for the time of a further pass. In a
            process group, and where the network cannot be divided, it is ``"rows"``, with a warning where
            ``"low_memory"`` was asked for. May be set at any time.
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
        if call.monitor is not None and call.layers is not None:
            assert isinstance(found, gradients.TaskGradients | gradients.LayerGradients)  # see tells_layers
            call.monitor.take(step, found.group_grams(call.layers))
        private = [1.0] * len(step.losses)
        if overflow:
            weights = torch.ones(len(step.losses))  # what is written is not finite, so that the scaler sees it
            balanced = Balanced(weights, found.combine(weights))
        else:
            with together(self._owner, call.group):
                balanced = self._balance(found, gram, step, call)
                pieces = [balanced.direction] if isinstance(balanced.direction, Tensor) else balanced.direction
                if not (gradients.all_finite([balanced.weights]) and gradients.all_finite(pieces, fresh=True)):
                    raise self._nonfinite(step, [], "combined gradient")
            if balanced.private is not None:
                private = balanced.private.tolist()

        def check(written: Sequence[Tensor]) -> None:
            nonlocal overflow
            self._average(written, call.group)
            overflow = overflow or not gradients.all_finite(written, fresh=True)
            if overflow and call.scaler is None:
                raise self._nonfinite(step, [])

        found.write(balanced.direction, private, check, weights=balanced.weights, scale=scale)  # type: ignore[arg-type]
        gradients.accumulate((parameter, gradient * scale) for parameter, gradient in balanced.own)
        shown = None if bad else balanced.weights
        return make_report(step, shown, gram, call.level, found.num_backward, skipped=overflow)

    @property
    def tells_layers(self) -> bool:
        """Whether a plain call, with losses only, gets the gradient of each loss by every shared parameter."""
        whole = isinstance(self.measure, str) and self.measure == "shared"
        return whole and self.num_batches == 1 and not (self.reads == "gram" and self.engine == "low_memory")

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
        if self.reads == "gram" and call.level == "parameters" and self.engine == "low_memory":
            where = "in a process group" if call.group is not None else "for this network"
            count = len(step.losses)
            self.warn_once("engine", f"engine='low_memory' is not possible {where}; all {count} gradients are kept")
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
        if not gradients.all_finite([gradient for own in other for gradient in own], fresh=True):
            bad |= {position for position, own in enumerate(other) if not gradients.all_finite(own)}
        return sorted(bad)

    @abstractmethod
    def _balance(self, found: Found, gram: Tensor | None, step: Step, call: Call) -> Balanced:
        """Return what the method makes of the task gradients."""

    def _weigh(self, gram: Tensor | None, values: Tensor | None, present: tuple[int, ...], step: Step) -> Balanced:
        """Return what a method that reads the Gram matrix makes of it, without a direction."""
        raise NotImplementedError

    def _check_gram(
        self, gram: Tensor, losses: Tensor | None, present: Sequence[int] | None
    ) -> tuple[tuple[int, ...], Tensor, Tensor | None]:
        """Return which tasks the rows belong to, and matrix and losses in float64 on the CPU.

        Raises:
            ShapeError: If a shape does not fit.
            NonFiniteError: If the matrix or a loss has NaN or infinity.
            OptionError: If a loss is negative and the method needs losses of at least 0.
        """
        if gram.ndim != 2 or gram.shape[0] != gram.shape[1]:
            raise ShapeError(f"{self._owner}: gram must be (K, K) with K = num_tasks, got {tuple(gram.shape)}")
        positions = self._positions(len(gram), present)
        small = gram.detach().to("cpu", torch.float64)
        finite = torch.isfinite(small)
        if not bool(finite.all()):  # a bad gradient spoils its column, too: the diagonal tells whose it is
            lengths = finite.diagonal()
            self._refuse_rows("gram", finite.all(dim=1) if bool(lengths.all()) else lengths, positions)
        if losses is not None:
            losses = losses.detach().to("cpu", torch.float64)
            self._check_pure_losses(losses, positions)
        return positions, small, losses

    def _check_rows(self, jacobian: Tensor, losses: Tensor | None, present: Sequence[int] | None) -> tuple[int, ...]:
        """Return which tasks the rows belong to.

        Raises:
            ShapeError: If a shape does not fit.
            NonFiniteError: If a row or a loss has NaN or infinity.
        """
        if jacobian.ndim != 2:
            raise ShapeError(f"{self._owner}: jacobian must be (K, P), got {tuple(jacobian.shape)}")
        positions = self._positions(len(jacobian), present)
        if not gradients.all_finite([jacobian]):
            self._refuse_rows("jacobian", torch.isfinite(jacobian).all(dim=1), positions)
        if losses is not None:
            self._check_pure_losses(losses, positions)
        return positions

    def _check_pure_losses(self, losses: Tensor, present: tuple[int, ...]) -> None:
        """Refuse losses that cannot be used.

        Raises:
            ShapeError: If their number does not fit.
            NonFiniteError: If one is NaN or infinite.
            OptionError: If one is negative and the method needs losses of at least 0.
        """
        if losses.shape != (len(present),):
            raise ShapeError(f"{self._owner}: losses must be ({len(present)},), got {tuple(losses.shape)}")
        check_values(self._owner, self._names_of(present), losses.detach(), nonnegative=self.nonnegative_losses)

    def _refuse_rows(self, what: str, finite: Tensor, present: tuple[int, ...]) -> None:
        """Raise for the tasks whose part of an argument is not finite.

        Raises:
            NonFiniteError: Always.
        """
        kept = finite.tolist()
        bad = self._names_of([task for task, good in zip(present, kept, strict=True) if not good])
        shown = ", ".join(map(repr, bad))
        raise NonFiniteError(f"{self._owner}: {what} must be finite, and the gradient of task {shown} is not", bad)

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
