"""What every balancer has: its tasks, its state, and ``backward``, which reads the losses and reports the step."""

import dataclasses
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor

from counterpoint._checks import check_choice, check_tasks
from counterpoint.balancers._call import Call, Measure, Monitor
from counterpoint.balancers._losses import Losses, Step, read_losses
from counterpoint.balancers._needs import NEEDS, LookAhead
from counterpoint.balancers._report import BalancerReport, make_report
from counterpoint.balancers._state import StatefulModule
from counterpoint.errors import NonFiniteError, OptionError, ShapeError
from counterpoint.gradients.backward import full_precision
from counterpoint.gradients.by_group import group_grams
from counterpoint.gradients.columns import Leaves
from counterpoint.gradients.jacobian import Level, Workspace
from counterpoint.gradients.reduce import (
    average_over_ranks,
    mean_over_ranks,
    require_same_on_ranks,
    synchronize_generator,
    together,
)
from counterpoint.registry import Rebuildable


class Balancer(Rebuildable, StatefulModule, ABC):
    """Base of all balancers: reads the losses of a step, writes the balanced gradient, keeps the state.

    Learnable weights are parameters, everything else that survives a step is a buffer declared with
    :meth:`add_state`, so ``.to()``, ``state_dict``, copies and :meth:`reset` work; a generator and the names of the
    tasks travel in the state dict as well. A step that is refused, or that a scaler skips, leaves the state as it was.

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
    avoid: ClassVar[str]  # when not to use it: one to three sentences, "Where ..."
    cost: ClassVar[str]
    reads: str
    task_gradients: str = "raw"  # what task parameters get: "raw", or "weighted" by the task's weight
    nonnegative_losses: bool = False
    needs: frozenset[str] = frozenset()  # keys of NEEDS: what the training loop has to serve
    loss_form: str = "task"  # "task": one scalar each; "instance": (N,); "cross": (K,), one prediction for each target
    num_batches: int = 1  # of one step; the losses of the others are given as ``more``
    ignores_scale: bool = False  # the shared update does not change if a task's gradient is multiplied by a number
    keeps_columns: bool = False  # has a state per coordinate, so ``shared`` must mean the same at every step

    def __init__(
        self,
        num_tasks: int | None = None,
        tasks: Sequence[str] | None = None,
        generator: torch.Generator | None = None,
        *,
        random: bool = False,
    ) -> None:
        num_tasks = check_tasks(type(self).__name__, num_tasks, tasks)
        if random and generator is None:
            generator = torch.Generator().manual_seed(int(torch.randint(2**63 - 1, ())))
        super().__init__(generator)
        for need in self.needs:
            check_choice(f"{self._owner}: needs", need, NEEDS)  # what no loop serves would silently never come
        self.num_tasks = num_tasks
        self.tasks = None if tasks is None else tuple(tasks)
        self._names = self.tasks  # also learned from the first mapping
        self._warned: set[str] = set()
        self._workspace = Workspace()
        self._layout = Leaves()

    # --- state -------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Forget everything learned since construction, names learned from a mapping included."""
        super().reset()
        for balancer in self._stateful():
            if isinstance(balancer, Balancer):
                balancer._names = balancer.tasks
                balancer._layout = Leaves()

    # --- what a training loop serves, if the class says so in ``needs`` ------------------------------------------

    def end_epoch(self) -> None:
        """Tell the balancer that an epoch of training ended; serves ``"epochs"``, others do nothing."""
        return

    def observe_metrics(
        self,
        values: Mapping[str, float] | Sequence[float],  # noqa: ARG002
        *,
        higher_is_better: Mapping[str, bool] | Sequence[bool],  # noqa: ARG002
    ) -> None:
        """Give the primary metric of each task on the validation split; serves ``"metrics"``.

        Args:
            values: Metric by task name, or in the order of the tasks; NaN for a task without one.
            higher_is_better: Direction of each metric.
        """
        return

    def after_step(self, losses: Losses) -> None:  # noqa: ARG002
        """Give the losses of the same batch once more, after the optimizer step; serves ``"losses_after_step"``.

        Args:
            losses: As given to :meth:`backward`; only the values are read. Compute them without a graph, in the same
                mode and with the same random numbers (dropout), and leave the running statistics of norms alone;
                :class:`counterpoint.training.Replay` does that.
        """
        return

    def look_ahead(self, ahead: LookAhead) -> None:  # noqa: ARG002
        """Try steps before the real one; serves ``"look_ahead"``. Call it before the forward pass of the step."""
        return

    def transform(self, features: Tensor, task: str | int) -> Tensor:  # noqa: ARG002
        """Return what the head of a task reads instead of the features; serves ``"transform"``."""
        return features

    def scalars(self, losses: Losses) -> Losses:
        """Return one scalar a task from the losses of a call; methods with another ``loss_form`` reduce them here."""
        return losses

    def get_extra_state(self) -> dict[str, Any]:
        """Return what is no tensor of the module: names of the tasks and the generator's state."""
        state = None if self.generator is None else self.generator.get_state()
        return {"tasks": None if self._names is None else list(self._names), "generator": state}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`get_extra_state` returned.

        Raises:
            OptionError: If the state is of other tasks.
        """
        names = None if state["tasks"] is None else tuple(state["tasks"])
        if self.tasks is not None and names is not None and names != self.tasks:
            raise OptionError(
                f"{self._owner}: the state is of tasks {list(names)}, this balancer of {list(self.tasks)}; "
                "build it with the same tasks"
            )
        if names is not None and len(names) != self.num_tasks:
            raise OptionError(
                f"{self._owner}: the state is of {len(names)} tasks {list(names)}, this balancer of {self.num_tasks}; "
                f"build it with num_tasks={len(names)}"
            )
        self._names = names if self.tasks is None else self.tasks
        if self.generator is not None and state["generator"] is not None:
            self.generator.set_state(state["generator"].cpu())

    def warn_once(self, topic: str, message: str, category: type[Warning] = RuntimeWarning) -> None:
        """Warn on the first call with this topic; later ones are silent."""
        if topic not in self._warned:
            self._warned.add(topic)
            warnings.warn(f"{self._owner}: {message}", category, stacklevel=3)

    @property
    def reports_gram(self) -> bool:
        """Whether the report of every step has the Gram matrix of all shared parameters' gradients."""
        return self.reads == "gram" and getattr(self, "measure", "shared") == "shared"

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
        measure: Measure | None = None,
        more: Sequence[Losses] = (),
        monitor: Monitor | None = None,
    ) -> BalancerReport:
        """Replace ``sum(losses).backward()``: add the balanced gradient to ``.grad``.

        Shared parameters get the balanced gradient, task parameters the gradient of their own loss (times the
        task's weight, if ``task_gradients`` is ``"weighted"``). Nothing is written before every check has passed, and
        neither ``zero_grad`` nor ``step`` is called. The graph is freed, as by ``loss.backward()``.

        Args:
            losses: One scalar per task: a mapping from task name, a sequence, or a 1-D tensor. ``None``, or a name
                missing from a mapping, is a task without labels in this batch: it takes no part and its state does
                not move. Of a 1-D tensor only ``torch.stack`` of scalars still shows which loss reaches what; below
                any other every parameter counts as shared.
                A task whose loss reaches nothing that is balanced, and that is left out with weight 0, trains its own
                parameters with its plain gradient.
            shared: Parameters to balance. Default: those that two or more tasks of this call reach. Parameters
                reached but not balanced get the plain sum. Loss balancers weight whole losses and ignore it.
            features: Tensor or tensors where the heads begin: each head is then differentiated once. One may depend
                on another, as the stages of a backbone do.
            level: ``"features"`` measures and balances the gradients of the features (one trunk backward in all; for
                MGDA known as MGDA-UB) instead of the parameters'. The weights differ from those of ``"parameters"``.
            process_group: Average losses and gradients over these processes before balancing. All of them must
                have the same tasks in the batch. Random numbers are those of the first process. An error in one
                process is an error in all. Do not also average the gradients yourself.
            scaler: Gradient scaler of mixed precision: losses are given unscaled, ``.grad`` holds scaled gradients for
                ``scaler.step``. A gradient that overflows is then not an error, it makes the scaler skip the step.
            measure: Parameters whose gradients the weights are computed from, some of the shared ones: ``"last"`` for
                the last shared layer, ``"shared"`` for all (the default of most methods). The weights then apply to
                all, in one backward pass. Only for methods that read the Gram matrix.
            more: Losses of further batches, for methods with ``num_batches`` above 1: one less than that number.
            monitor: A :class:`~counterpoint.diagnostics.ConflictMonitor`, in place of ``monitor.observe(losses)``
                before: a method that differentiates each loss by the shared parameters anyway tells it what it
                knows, at hardly any cost; with others it measures by itself.

        Raises:
            ShapeError: If the number of losses is not ``num_tasks``, or one is no scalar.
            UnknownNameError: If a mapping has a task that the balancer does not know.
            GraphError: If a loss has no graph.
            NonFiniteError: If a loss or a gradient is NaN or infinite; names the task.
            OptionError: If ``level`` is unknown or lacks ``features``, a loss is negative where it must not be,
                ``more`` has not as many batches as the method reads, or the method cannot do what ``measure`` asks.
            CounterpointError: If another process of the group raised.
        """
        check_choice(f"{self._owner}: level", level, ("parameters", "features"))
        parts = () if features is None else (features,) if isinstance(features, Tensor) else tuple(features)
        if level == "features" and not parts:
            raise OptionError(f"{self._owner}: level='features' needs features=, the output of the trunk")
        self._check_call(level, measure, more)
        # a generator such as model.parameters() can be read once, and these are read more often
        given = None if shared is None else tuple(shared)
        measured = measure if measure is None or isinstance(measure, str) else tuple(measure)
        call = Call(given, parts, level, process_group, scaler, measured, monitor=monitor)
        before = self._snapshot()
        finished = False
        try:
            step = self._read(self.scalars(losses), process_group)
            call = self._read_more(call, step, more)
            call = self._serve_monitor(call, step)
            with full_precision(step.values.device):
                report = self._backward(step, call) if step.present else make_report(step, None, None, level, 0)
            finished = not report.skipped
        finally:
            if not finished:
                self._restore(before)
        if isinstance(losses, Mapping):
            for balancer in self._stateful():
                if isinstance(balancer, Balancer):
                    balancer._names = step.names
        return report

    def _check_call(self, level: Level, measure: Measure | None, more: Sequence[Losses]) -> None:
        """Refuse what the method cannot do.

        Raises:
            OptionError: If it cannot; says what to do.
        """
        if len(more) != self.num_batches - 1:
            raise OptionError(
                f"{self._owner}: this method reads {self.num_batches} batches a step; give the losses of "
                f"{self.num_batches - 1} further batches as more=[...], got {len(more)}"
            )
        if self.keeps_columns and level == "features":
            raise OptionError(
                f"{self._owner}: this method has a state for each coordinate, and the features of the next batch are "
                "other coordinates; use level='parameters'"
            )
        if measure is None or measure == "shared":
            return
        if isinstance(measure, str):
            check_choice(f"{self._owner}: measure", measure, ("shared", "last"))
        if self.reads != "gram" or self.num_batches > 1 or level == "features":
            raise OptionError(
                f"{self._owner}: measure= is for methods that read the Gram matrix of one batch, at level='parameters'"
            )

    def _serve_monitor(self, call: Call, step: Step) -> Call:
        """Measure the layers, if it is time to, unless this call will know their gradients itself."""
        layers = None if call.monitor is None else call.monitor.due()
        if layers is None or len(step.present) < 2:
            return call
        if self._knows_layers(call):
            return dataclasses.replace(call, layers=layers)
        assert call.monitor is not None
        # nothing of this is between processes: one of them alone may have a monitor
        call.monitor.take(step, group_grams(step.losses, layers, scale=call.scale(step.values.device)))
        return call

    @property
    def tells_layers(self) -> bool:
        """Whether a plain call, with losses only, gets the gradient of each loss by every shared parameter."""
        return False

    def _knows_layers(self, call: Call) -> bool:
        """Return whether a call gets the gradient of each plain loss by every parameter that tasks share."""
        plain = (call.group, call.shared, call.features) == (None, None, ()) and call.measure in (None, "shared")
        return self.tells_layers and plain

    def _read_more(self, call: Call, step: Step, more: Sequence[Losses]) -> Call:
        """Check the losses of further batches, which must be of the same tasks.

        Raises:
            ShapeError: If another task is present.
        """
        steps = tuple(self._read(self.scalars(losses), call.group) for losses in more)
        for number, other in enumerate(steps, 2):
            if other.present != step.present:
                raise ShapeError(
                    f"{self._owner}: batch {number} has the tasks {[other.names[i] for i in other.present]}, the first "
                    f"{[step.names[i] for i in step.present]}; all batches of a step must have the same tasks"
                )
        return dataclasses.replace(call, more=steps)

    @abstractmethod
    def _backward(self, step: Step, call: Call) -> BalancerReport:
        """Compute and write the gradients of the checked losses."""

    def _read(self, losses: Losses, group: dist.ProcessGroup | None) -> Step:
        """Check the losses; in a group, average them and draw the same random numbers everywhere."""
        with together(self._owner, group):
            step = read_losses(self._owner, self.num_tasks, self._names, losses, nonnegative=self.nonnegative_losses)
        if group is None:
            return step
        presence = [int(task in step.present) for task in range(self.num_tasks)]
        require_same_on_ranks(self._owner, "tasks in the batch", presence, group)
        for module in self._stateful():
            if module.generator is not None:
                synchronize_generator(module.generator, group)
        return dataclasses.replace(step, values=mean_over_ranks(step.values, group)) if step.present else step

    def _average(self, tensors: Sequence[Tensor], group: dist.ProcessGroup | None) -> None:
        """Average tensors in place over a group, if there is one."""
        if group is not None:
            sizes = [len(tensors), sum(tensor.numel() for tensor in tensors)]
            require_same_on_ranks(self._owner, "numbers of gradients and of their elements", sizes, group)
            average_over_ranks(tensors, group)

    def _nonfinite(self, step: Step, bad: Sequence[int], what: str = "gradient") -> NonFiniteError:
        """Build the error for tasks (positions among the present ones) whose gradient is not finite."""
        tasks = step.names_of(bad)
        shown = f"task {', '.join(map(repr, tasks))}"
        if not tasks:
            among = step.names_of(range(len(step.present)))
            shown = f"the shared parameters, from one or more of the tasks {', '.join(map(repr, among))},"
        return NonFiniteError(
            f"{self._owner}: the {what} of {shown} is not finite, though every loss is; nothing was written to .grad; "
            "look for a division by zero or the square root of zero (torch.autograd.set_detect_anomaly finds the "
            "operation), or pass None for this task",
            tasks,
        )

    def _names_of(self, tasks: Sequence[int]) -> tuple[str, ...]:
        """Return the names of tasks, or their positions while they have none."""
        return tuple(str(task) if self._names is None else self._names[task] for task in tasks)

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
        known = set(range(self.num_tasks))
        if len(present) != count or len(set(present)) != count or not known.issuperset(present):
            raise ShapeError(
                f"{self._owner}: present must be {count} different tasks below {self.num_tasks}, got {list(present)}"
            )
        return tuple(present)
