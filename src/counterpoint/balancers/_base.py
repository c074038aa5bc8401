"""What a balancer is: the three kinds, ``backward``, the report, absent tasks, state.

A balancer turns the losses of K tasks into one update of the shared parameters. The kinds differ in what they read:
losses, the Gram matrix of the task gradients, or the task gradients themselves.
"""

import dataclasses
import inspect
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from counterpoint import gradients
from counterpoint._checks import check_choice
from counterpoint.errors import GraphError, NonFiniteError, OptionError, ShapeError
from counterpoint.gradients.reduce import mean_over_ranks, require_same_on_ranks
from counterpoint.registry import unknown

Losses = Mapping[str, Tensor | None] | Sequence[Tensor | None] | Tensor
Level = Literal["parameters", "features"]


@dataclasses.dataclass(frozen=True)
class BalancerReport:
    """What one step did, for logging; nothing here costs anything more.

    Attributes:
        tasks: Names of the K tasks; their positions, as text, where they have no names.
        present: Which tasks took part, (K,).
        losses: Loss of each task, (K,); NaN for an absent one.
        weights: Weight of each task's gradient in the shared update, (K,), 0 for an absent one; ``None`` for
            methods that do not weight whole tasks.
        gram: Inner products of the task gradients, (K, K) in float64, NaN for an absent task; ``None`` if the
            method does not need them. At ``level="features"`` of the gradients of the features.
        level: What ``gram`` was measured on.
        num_backward: Backward passes through the shared part of the network.
        skipped: True if a gradient scaler was given and found an overflow.
    """

    tasks: tuple[str, ...]
    present: Tensor
    losses: Tensor
    weights: Tensor | None
    gram: Tensor | None
    level: Level
    num_backward: int
    skipped: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers by task name, for a logger (waits for the device)."""
        present = self.present.tolist()
        names = [task for task, here in zip(self.tasks, present, strict=True) if here]
        values: dict[str, Any] = {
            "losses": {task: float(self.losses[self.tasks.index(task)]) for task in names},
            "num_backward": self.num_backward,
        }
        if self.weights is not None:
            values["weights"] = {task: float(self.weights[self.tasks.index(task)]) for task in names}
        return values


@dataclasses.dataclass(frozen=True)
class _Step:
    """The losses of one call, checked."""

    names: tuple[str, ...]  # of all K tasks
    present: tuple[int, ...]
    losses: tuple[Tensor, ...]  # of the tasks that are present
    values: Tensor  # the same, detached, (k,)


class Balancer(nn.Module, ABC):
    """Base of all balancers: reads the losses of a step, writes the balanced gradient, keeps the state.

    Learnable weights are parameters, everything else that survives a step is a buffer declared with
    :meth:`add_state`, so ``.to()``, ``state_dict``, copies and :meth:`reset` work; a generator and the names of the tasks
    travel in the state dict as well.

    Args:
        num_tasks: Number of tasks K; may be left out if ``tasks`` is given.
        tasks: Names of the tasks. Without them the first mapping given to :meth:`backward` fixes the names.
        generator: Source of randomness; part of the state. Default: a new one seeded from torch's global one.
    """

    key: ClassVar[str]
    equation: ClassVar[str]  # one line of plain text
    source: ClassVar[str]  # citation
    provenance: ClassVar[str]  # released code, paper, or our reading
    scale: ClassVar[str]  # of the update, in the paper's own convention
    cost: ClassVar[str]
    reads: ClassVar[str]
    task_gradients: str = "raw"  # what task parameters get: "raw", or "weighted" by the task's weight
    nonnegative_losses: ClassVar[bool] = False
    needs_epochs: ClassVar[bool] = False  # wants end_epoch()

    def __init__(
        self,
        num_tasks: int | None = None,
        tasks: Sequence[str] | None = None,
        generator: torch.Generator | None = None,
        *,
        random: bool = False,
    ) -> None:
        super().__init__()
        owner = type(self).__name__
        if isinstance(tasks, str):
            raise OptionError(f"{owner}: tasks must be a sequence of names, got the single name {tasks!r}")
        if tasks is not None and len(set(tasks)) != len(tasks):
            raise OptionError(f"{owner}: tasks must be different names, got {list(tasks)}")
        if num_tasks is None:
            if tasks is None:
                raise OptionError(f"{owner}: give num_tasks, or the names of the tasks with tasks=[...]")
            num_tasks = len(tasks)
        if isinstance(num_tasks, bool) or not isinstance(num_tasks, int) or num_tasks < 1:
            raise OptionError(f"{owner}: num_tasks must be a whole number of at least 1, got {num_tasks!r}")
        if tasks is not None and len(tasks) != num_tasks:
            raise OptionError(f"{owner}: num_tasks = {num_tasks} but {len(tasks)} names in tasks: {list(tasks)}")
        self.num_tasks = num_tasks
        self.tasks = None if tasks is None else tuple(tasks)
        self._names = self.tasks  # also learned from the first mapping
        self._initial: dict[str, Tensor] = {}
        self.generator = generator
        if random and generator is None:
            self.generator = torch.Generator().manual_seed(int(torch.randint(2**63 - 1, ())))
        self._initial_generator = None if self.generator is None else self.generator.get_state()
        self._warned: set[str] = set()

    # --- state -------------------------------------------------------------------------------------------------

    def add_state(self, name: str, initial: Tensor) -> None:
        """Declare a tensor that survives a step (a buffer), and what :meth:`reset` sets it to."""
        self.register_buffer(name, initial.clone())
        self._initial[name] = initial.clone()

    def add_parameter(self, name: str, initial: Sequence[float]) -> None:
        """Declare one learnable scalar per task, so that an absent task's scalar gets no gradient at all."""
        self.register_module(name, nn.ParameterList([nn.Parameter(torch.tensor(float(value))) for value in initial]))
        self._initial.update({f"{name}.{i}": torch.tensor(float(value)) for i, value in enumerate(initial)})

    def reset(self) -> None:
        """Forget everything learned since construction, names learned from a mapping included."""
        with torch.no_grad():
            for name, value in [*self.named_buffers(), *self.named_parameters()]:
                value.copy_(self._initial[name])
        self._names = self.tasks
        if self.generator is not None and self._initial_generator is not None:
            self.generator.set_state(self._initial_generator)

    def end_epoch(self) -> None:
        """Tell the balancer that an epoch of training ended; only methods with ``needs_epochs`` do anything."""
        return

    def get_extra_state(self) -> dict[str, Any]:
        """Return what is no tensor of the module: names of the tasks and the generator's state."""
        state = None if self.generator is None else self.generator.get_state()
        return {"tasks": None if self._names is None else list(self._names), "generator": state}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`get_extra_state` returned."""
        names = None if state["tasks"] is None else tuple(state["tasks"])
        if self.tasks is not None and names is not None and names != self.tasks:
            raise OptionError(f"{self._owner}: the state is of tasks {list(names)}, this balancer of {list(self.tasks)}")
        self._names = names if self.tasks is None else self.tasks
        if self.generator is not None and state["generator"] is not None:
            self.generator.set_state(state["generator"].cpu())

    def options(self) -> dict[str, Any]:
        """Return the constructor arguments that rebuild this balancer (without the generator)."""
        arguments = (name for name in inspect.signature(type(self)).parameters if name != "generator")
        return {name: getattr(self, name) for name in arguments}

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self.options().items())
        return f"{self._owner}({arguments})"

    def warn_once(self, topic: str, message: str, category: type[Warning] = RuntimeWarning) -> None:
        """Warn on the first call with this topic; later ones are silent."""
        if topic not in self._warned:
            self._warned.add(topic)
            warnings.warn(f"{self._owner}: {message}", category, stacklevel=3)

    @property
    def _owner(self) -> str:
        return type(self).__name__

    # --- one step ----------------------------------------------------------------------------------------------

    def backward(
        self,
        losses: Losses,
        *,
        shared: Iterable[Tensor] | None = None,
        features: Tensor | Sequence[Tensor] | None = None,
        level: Level = "parameters",
        process_group: dist.ProcessGroup | None = None,
        scaler: torch.amp.GradScaler | None = None,
    ) -> BalancerReport:
        """Replace ``sum(losses).backward()``: add the balanced gradient to ``.grad``.

        Shared parameters get the balanced gradient, task parameters the gradient of their own loss (times the
        task's weight, if ``task_gradients`` is ``"weighted"``). Nothing is written before every check has passed, and neither
        ``zero_grad`` nor ``step`` is called. The graph is freed, as by ``loss.backward()``.

        Args:
            losses: One scalar per task: a mapping from task name, a sequence, or a 1-D tensor. ``None``, or a name
                missing from a mapping, is a task without labels in this batch: it takes no part and its state does not move.
            shared: Parameters to balance. Default: those that two or more tasks of this call reach. Parameters
                reached but not balanced get the plain sum. Loss balancers weight whole losses and ignore it.
            features: Tensor or tensors where the heads begin: each head is then differentiated once.
            level: ``"features"`` measures and balances the gradients of the features (one trunk backward in all; for
                MGDA known as MGDA-UB) instead of the parameters'. The weights differ from those of ``"parameters"``.
            process_group: Average losses and gradients over these processes before balancing. All of them must
                have the same tasks in the batch. Do not also average the gradients yourself.
            scaler: Gradient scaler of mixed precision: losses are given unscaled, ``.grad`` holds scaled gradients for
                ``scaler.step``. An overflow is then not an error, it makes the scaler skip the step.

        Raises:
            ShapeError: If the number of losses is not ``num_tasks``, or one is no scalar.
            UnknownNameError: If a mapping has a task that the balancer does not know.
            GraphError: If a loss has no graph.
            NonFiniteError: If a loss or a gradient is NaN or infinite; names the task.
            OptionError: If ``level`` is unknown or lacks ``features``, or a loss is negative where it must not be.
        """
        check_choice(f"{self._owner}: level", level, ("parameters", "features"))
        parts = () if features is None else (features,) if isinstance(features, Tensor) else tuple(features)
        if level == "features" and not parts:
            raise OptionError(f"{self._owner}: level='features' needs features=, the output of the trunk")
        step = self._read(losses)
        if process_group is not None:
            presence = [int(task in step.present) for task in range(self.num_tasks)]
            device = step.values.device
            require_same_on_ranks(self._owner, "tasks in the batch", presence, process_group, device)
        if not step.present:
            return self._report(step, None, None, level, 0)
        if process_group is not None:
            step = dataclasses.replace(step, values=mean_over_ranks(step.values, process_group))
        return self._backward(step, shared, parts, level, process_group, 1.0 if scaler is None else scaler.get_scale(), scaler)

    @abstractmethod
    def _backward(
        self,
        step: _Step,
        shared: Iterable[Tensor] | None,
        features: tuple[Tensor, ...],
        level: Level,
        group: dist.ProcessGroup | None,
        scale: float,
        scaler: torch.amp.GradScaler | None,
    ) -> BalancerReport:
        """Compute and write the gradients of the checked losses."""

    def _read(self, losses: Losses) -> _Step:
        """Check the losses of a call and sort them by task."""
        names, given = self._align(losses)
        present = tuple(task for task, loss in enumerate(given) if loss is not None)
        found = tuple(loss for loss in given if loss is not None)
        for task, loss in zip(present, found, strict=True):
            label = f"{self._owner}: the loss of task {names[task]!r}"
            if not isinstance(loss, Tensor):
                raise ShapeError(f"{label} must be a scalar tensor, got {type(loss).__name__}")
            if loss.numel() != 1:
                raise ShapeError(f"{label} must be a scalar, got shape {tuple(loss.shape)}; reduce it with .mean()")
            if not loss.requires_grad:
                raise GraphError(
                    f"{label} has no graph (requires_grad is False); compute it from the model's output outside "
                    "torch.no_grad() and without .detach() or .item(), or pass None for a task without labels"
                )
        self._names = None if isinstance(losses, Tensor | Sequence) and self._names is None else names
        if not found:
            return _Step(names, (), (), torch.zeros(0))
        device, dtype = found[0].device, torch.promote_types(torch.float32, found[0].dtype)
        values = torch.stack([loss.detach().reshape(()).to(device, dtype) for loss in found])
        self._check_values(names, present, values)
        return _Step(names, present, tuple(loss.reshape(()) for loss in found), values)

    def _align(self, losses: Losses) -> tuple[tuple[str, ...], list[Tensor | None]]:
        """Return the names of all tasks and the loss of each."""
        count = f"num_tasks = {self.num_tasks}"
        if isinstance(losses, Mapping):
            names = self._names
            if names is None:
                if len(losses) != self.num_tasks:
                    raise ShapeError(
                        f"{self._owner}: expected the losses of {count} tasks, got {len(losses)}: {list(losses)}; build "
                        "the balancer with tasks=[...] if some tasks may be missing from a batch"
                    )
                names = tuple(losses)
            for name in losses:
                if name not in names:
                    raise unknown(f"task of {self._owner}", name, names)
            return names, [losses.get(name) for name in names]
        names = self._names or tuple(str(task) for task in range(self.num_tasks))
        if isinstance(losses, Tensor):
            if losses.ndim != 1:
                raise ShapeError(f"{self._owner}: a tensor of losses must be 1-D, got shape {tuple(losses.shape)}")
            given: list[Tensor | None] = list(losses.unbind())
        else:
            given = list(losses)
        if len(given) != self.num_tasks:
            raise ShapeError(
                f"{self._owner}: expected {count} losses, got {len(given)}; build the balancer with "
                f"num_tasks={len(given)}, or pass None for a task without labels in this batch"
            )
        return names, given

    def _check_values(self, names: tuple[str, ...], present: tuple[int, ...], values: Tensor) -> None:
        listed = values.tolist()
        bad = tuple(names[task] for task, value in zip(present, listed, strict=True) if not _is_finite(value))
        if bad:
            shown = ", ".join(f"{name!r}" for name in bad)
            raise NonFiniteError(
                f"{self._owner}: the loss of task {shown} is not finite ({dict(zip(names, listed, strict=False))}); "
                "nothing was written to .grad; lower the learning rate, check the batch, or pass None for this task",
                bad,
            )
        if self.nonnegative_losses:
            for task, value in zip(present, listed, strict=True):
                if value < 0:
                    raise OptionError(
                        f"{self._owner}: the loss of task {names[task]!r} is {value:g}, and this method needs losses "
                        "of at least 0; add a constant to the loss or take another method"
                    )

    def _nonfinite(self, step: _Step, bad: Iterable[int], what: str = "gradient") -> NonFiniteError:
        """Build the error for tasks (positions among the present ones) whose gradient is not finite."""
        tasks = tuple(step.names[step.present[position]] for position in bad)
        shown = ", ".join(repr(task) for task in tasks) or f"one of {list(step.names)}"
        return NonFiniteError(
            f"{self._owner}: the {what} of task {shown} is not finite, though every loss is; nothing was written to "
            ".grad; look for a division by zero or the square root of zero in its loss, or pass None for this task",
            tasks,
        )

    def _report(
        self, step: _Step, weights: Tensor | None, gram: Tensor | None, level: Level, num_backward: int, *, skipped: bool = False
    ) -> BalancerReport:
        """Spread what was measured on the present tasks over all tasks."""
        device = step.values.device
        index = torch.tensor(step.present, device=device, dtype=torch.long)
        present = torch.zeros(self.num_tasks, dtype=torch.bool, device=device)
        present[index] = True
        losses = torch.full((self.num_tasks,), float("nan"), dtype=step.values.dtype, device=device)
        losses[index] = step.values
        if weights is not None:
            spread = torch.zeros(self.num_tasks, dtype=weights.dtype, device=weights.device)
            spread[index.to(weights.device)] = weights
            weights = spread
        if gram is not None and len(step.present) < self.num_tasks:
            at = index.to(gram.device)
            spread = torch.full((self.num_tasks, self.num_tasks), float("nan"), dtype=gram.dtype, device=gram.device)
            spread[at[:, None], at[None, :]] = gram
            gram = spread
        return BalancerReport(step.names, present, losses, weights, gram, level, num_backward, skipped)

    def _positions(self, count: int, present: Sequence[int] | None) -> tuple[int, ...]:
        """Return which tasks the rows of an argument belong to.

        Raises:
            ShapeError: If their number does not fit.
        """
        if present is None:
            if count != self.num_tasks:
                raise ShapeError(
                    f"{self._owner}: expected num_tasks = {self.num_tasks} tasks, got {count}; build the balancer with "
                    f"num_tasks={count}, or say with present= which tasks the rows belong to"
                )
            return tuple(range(self.num_tasks))
        if len(present) != count or any(not 0 <= task < self.num_tasks for task in present):
            raise ShapeError(f"{self._owner}: present must name {count} tasks of 0..{self.num_tasks - 1}, got {list(present)}")
        return tuple(present)


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

    def weights(self, gram: Tensor | None, losses: Tensor, *, present: Sequence[int] | None = None) -> Tensor:
        """Return the derivative of the objective by each loss, (k,); one call is one step of the state.

        Args:
            gram: Not read; there so that all kinds are called alike.
            losses: Losses of the tasks that are present, (k,).
            present: Which tasks they belong to; default all.
        """
        return self._differentiate(losses, self._positions(len(losses), present))[0]

    def _differentiate(self, losses: Tensor, present: tuple[int, ...]) -> tuple[Tensor, list[Tensor | None]]:
        """Return the derivatives of the objective by the losses and by the balancer's own parameters."""
        leaf = losses.detach().clone().requires_grad_()
        own = list(self.parameters())
        with torch.enable_grad():
            total = self.objective(leaf, present=present)
        by_loss, *by_own = torch.autograd.grad(total, [leaf, *own], allow_unused=True)
        return torch.zeros_like(leaf) if by_loss is None else by_loss, list(by_own)

    def _backward(
        self,
        step: _Step,
        shared: Iterable[Tensor] | None,  # noqa: ARG002 - whole losses are weighted
        features: tuple[Tensor, ...],  # noqa: ARG002
        level: Level,  # noqa: ARG002
        group: dist.ProcessGroup | None,
        scale: float,
        scaler: torch.amp.GradScaler | None,
    ) -> BalancerReport:
        weights, own = self._differentiate(step.values, step.present)
        if not bool(torch.isfinite(weights).all()):
            bad = [position for position, weight in enumerate(weights.tolist()) if not _is_finite(weight)]
            raise self._nonfinite(step, bad, "weight")
        scope = gradients.find_scope(step.losses)
        leaves = list(dict.fromkeys([*scope.shared, *(leaf for private in scope.private for leaf in private)]))
        overflow = False

        def check(found: Sequence[Tensor]) -> None:
            nonlocal overflow
            if group is not None:
                for gradient in found:
                    gradient.copy_(mean_over_ranks(gradient, group))
            if _all_finite(found):
                return
            if scaler is not None:
                overflow = True
                return
            bad = [
                position
                for position, private in enumerate(scope.private)
                if not _all_finite([leaf.grad for leaf in private if leaf.grad is not None])
            ]
            raise self._nonfinite(step, bad)

        seeds = [(weight * scale).to(loss) for weight, loss in zip(weights, step.losses, strict=True)]
        gradients.backward_into(step.losses, seeds, leaves, check)
        for parameter, gradient in zip(self.parameters(), own, strict=True):
            if gradient is not None:
                gradients.accumulate(parameter, gradient * scale)
        return self._report(step, weights, None, "parameters", 1, skipped=overflow)


class _GradientBalancer(Balancer):
    """What the two kinds that read task gradients have in common."""

    def _backward(
        self,
        step: _Step,
        shared: Iterable[Tensor] | None,
        features: tuple[Tensor, ...],
        level: Level,
        group: dist.ProcessGroup | None,
        scale: float,
        scaler: torch.amp.GradScaler | None,
    ) -> BalancerReport:
        found = gradients.task_gradients(step.losses, shared=shared, features=features, level=level, scale=scale)
        if group is not None:
            self._average(found, level, group)
        gram = found.gram() if self.reads == "gram" else None
        if gram is not None and group is not None and level == "features":
            # the batch is spread over the processes: features are stacked, and each loss is the mean over processes
            gram = mean_over_ranks(gram, group) / dist.get_world_size(group)
        lengths = found.jacobian.abs().amax(dim=1) if gram is None and found.jacobian.numel() else gram
        rows = torch.ones(len(step.losses)) if lengths is None else lengths if lengths.ndim == 1 else lengths.diagonal()
        bad = [position for position, value in enumerate(rows.tolist()) if not _is_finite(value)]
        private = [[gradient for gradient in own if gradient is not None] for own in found.private]
        if not _all_finite([gradient for own in private for gradient in own]):
            bad += [position for position, own in enumerate(private) if not _all_finite(own)]
        if bad:
            if scaler is None:
                raise self._nonfinite(step, sorted(set(bad)))
            ones = torch.ones(len(step.losses))
            found.write(found.combine(ones), ones.tolist(), lambda _: None, weights=ones, scale=scale)
            return self._report(step, None, gram, level, found.num_backward, skipped=True)
        weights, direction = self._balance(found, gram, step)

        def check(written: Sequence[Tensor]) -> None:
            if group is not None:
                for gradient in written:
                    gradient.copy_(mean_over_ranks(gradient, group))
            if scaler is None and not _all_finite(written):
                raise self._nonfinite(step, [])

        private_weights = [1.0] * len(step.losses)
        if weights is not None and self.task_gradients == "weighted":
            private_weights = weights.tolist()
        found.write(direction, private_weights, check, weights=weights, scale=scale)
        return self._report(step, weights, gram, level, found.num_backward)

    def _average(self, found: gradients.TaskGradients, level: Level, group: dist.ProcessGroup) -> None:
        """Average the private gradients, and the rows if they are gradients of parameters, over a group."""
        device = found.jacobian.device
        sizes = [sum(leaf.numel() for leaf in found.scope.shared), sum(len(own) for own in found.private)]
        require_same_on_ranks(self._owner, "numbers of shared elements and task parameters", sizes, group, device)
        if level == "parameters":
            found.jacobian = mean_over_ranks(found.jacobian, group)
        for leaves, own in zip(found.scope.private, found.private, strict=True):
            for position, leaf in enumerate(leaves):
                gradient = own[position]
                own[position] = mean_over_ranks(torch.zeros_like(leaf) if gradient is None else gradient, group)

    @abstractmethod
    def _balance(
        self, found: gradients.TaskGradients, gram: Tensor | None, step: _Step
    ) -> tuple[Tensor | None, Tensor]:
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
        self, found: gradients.TaskGradients, gram: Tensor | None, step: _Step
    ) -> tuple[Tensor | None, Tensor]:
        assert gram is not None
        weights = self.weights(gram, step.values, present=step.present)
        return weights, found.combine(weights)


class JacobianBalancer(_GradientBalancer):
    """A balancer that reads every coordinate of the task gradients and gives the combined gradient."""

    reads: ClassVar[str] = "jacobian"
    cost: ClassVar[str] = "K backward passes (1 at level='features'), memory for K gradients"

    def combine(self, jacobian: Tensor, losses: Tensor | None = None, *, present: Sequence[int] | None = None) -> Tensor:
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
        self, found: gradients.TaskGradients, gram: Tensor | None, step: _Step  # noqa: ARG002 - no weights
    ) -> tuple[Tensor | None, Tensor]:
        with torch.no_grad():
            return None, self.aggregate(found.jacobian, step.values, step.present)


def _is_finite(value: float) -> bool:
    return value - value == 0.0


def _all_finite(tensors: Sequence[Tensor | None]) -> bool:
    """Return whether every entry is finite, waiting for the device once."""
    dense = [t.coalesce().values() if t.is_sparse else t for t in tensors if t is not None and t.numel()]
    return not dense or bool(torch.isfinite(get_total_norm(dense, norm_type=float("inf"))))
