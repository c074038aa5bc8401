"""What every schedule has: its tasks, its state, and ``step``, which takes a batch through the groups of tasks."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from counterpoint._checks import check_tasks
from counterpoint.balancers import Balancer, BalancerReport
from counterpoint.errors import OptionError, ShapeError
from counterpoint.registry import Rebuildable, unknown
from counterpoint.schedules._groups import Group
from counterpoint.schedules._report import ScheduleReport

Losses = Mapping[str, Tensor | None] | Sequence[Tensor | None] | Tensor


class Schedule(Rebuildable, ABC):
    """Base of all schedules: decides which tasks are updated together, in which order, and drives the optimizer.

    A batch goes through one or more groups of tasks: for each a forward pass, the balancer on the losses of the group,
    an optimizer step. A task outside the group counts as absent: its own parameters get no gradient. Inside a group
    any balancer works.

    Args:
        num_tasks: Number of tasks K; may be left out if ``tasks`` is given.
        tasks: Names of the tasks. Without them the first mapping of losses fixes the names.
        generator: Source of randomness; part of the state. Default: a new one seeded from torch's global one.
    """

    key: ClassVar[str]
    source: ClassVar[str]
    provenance: ClassVar[str]
    cost: ClassVar[str]  # forward passes, backward passes and optimizer steps for each batch

    def __init__(
        self,
        num_tasks: int | None = None,
        tasks: Sequence[str] | None = None,
        generator: torch.Generator | None = None,
        *,
        random: bool = False,
    ) -> None:
        self.num_tasks = check_tasks(type(self).__name__, num_tasks, tasks)
        self.tasks = None if tasks is None else tuple(tasks)
        if random and generator is None:
            generator = torch.Generator().manual_seed(int(torch.randint(2**63 - 1, ())))
        self.generator = generator
        self._names = self.tasks  # also learned from the first mapping

    # --- what a schedule decides -------------------------------------------------------------------------------

    @property
    @abstractmethod
    def num_passes(self) -> int:
        """Forward passes, and optimizer steps, for a batch that has labels of all tasks."""

    @abstractmethod
    def _plan(self, present: Group) -> Sequence[Group]:
        """Return the groups of this batch in the order of their updates; tasks that are not present may be in them."""

    def _begin(self, optimizer: Optimizer, model: nn.Module | None) -> None:
        """Prepare for a batch, before its first forward pass (which moves the running statistics of norms)."""

    def _observe(self, losses: Sequence[Tensor | None], after: Group | None) -> None:
        """See the losses of all tasks at each forward pass of a batch, and the group updated since the one before."""

    def _finish(self, groups: Sequence[Group], optimizer: Optimizer, model: nn.Module | None) -> None:
        """Do what is due after the last update of a batch, given the groups that were updated."""

    @property
    def _looks_back(self) -> bool:
        """Whether the losses are computed once more, without a graph, after the last update of a batch."""
        return False

    def record(self) -> dict[str, Any]:
        """Return what is worth writing down at the end of an epoch, as plain data; most schedules have nothing."""
        return {}

    def end_epoch(self, optimizer: Optimizer, *, model: nn.Module | None = None) -> None:
        """Bring the parameters to what should be evaluated; most schedules have nothing to do.

        Args:
            optimizer: The optimizer of :meth:`step`.
            model: The network, for its buffers.
        """

    # --- one batch ---------------------------------------------------------------------------------------------

    def step(
        self,
        compute_losses: Callable[[], Losses],
        optimizer: Optimizer,
        balancer: Balancer,
        *,
        model: nn.Module | None = None,
        update: Callable[[Any], BalancerReport] | None = None,
    ) -> ScheduleReport:
        """Train on one batch: forward, balancer and optimizer step for each group in turn.

        Args:
            compute_losses: Runs the network on the batch and returns the losses of all tasks, as
                :meth:`Balancer.backward` takes them: by name, or in order; ``None`` for a task without labels in the
                batch, which is left out of its group. A group without tasks is skipped. Called once for each group.
            optimizer: Over all parameters. Its gradients are cleared (set to ``None``) before each group.
            balancer: Turns the losses of a group into gradients; gets ``None`` for the tasks outside of it.
            model: The network; only a schedule that moves parameters by itself reads it, for the buffers.
            update: Replaces "clear the gradients, ``balancer.backward(losses)``, optimizer step" for losses in which
                the tasks outside the group are ``None``; for loops that do more, such as passing ``features=`` or a
                ``scaler=``.

        Raises:
            ShapeError: If the number of losses is not ``num_tasks``.
            UnknownNameError: If a mapping has a task that the schedule does not know.
        """
        update = update or _plain_update(optimizer, balancer)
        before = self.state_dict()
        reports: list[BalancerReport] = []
        groups: list[Group] = []
        try:
            self._begin(optimizer, model)
            losses = compute_losses()
            by_task = self._align(losses)
            num_forward = 1
            present = tuple(task for task, loss in enumerate(by_task) if loss is not None)
            self._observe(by_task, None)
            planned = [tuple(task for task in group if task in present) for group in self._plan(present)]
            for group in filter(None, planned):
                if groups:
                    losses = compute_losses()
                    by_task = self._align(losses)
                    num_forward += 1
                    self._observe(by_task, groups[-1])
                reports.append(update(self._only(losses, by_task, group)))
                groups.append(group)
        except Exception:
            if not groups:
                self.load_state_dict(before)  # a batch that is refused at once leaves no trace
            raise
        if groups and self._looks_back:
            with torch.no_grad():
                self._observe(self._align(compute_losses()), groups[-1])
            num_forward += 1
        if groups:
            self._finish(groups, optimizer, model)
        else:
            reports.append(update(self._only(losses, by_task, ())))
        return ScheduleReport(tuple(groups), tuple(reports), num_forward)

    def _only(self, losses: Losses, by_task: Sequence[Tensor | None], group: Group) -> Losses:
        """Return the losses with ``None`` for the tasks outside a group, untouched if there are none."""
        if all(loss is None or task in group for task, loss in enumerate(by_task)):
            return losses
        kept = [loss if task in group else None for task, loss in enumerate(by_task)]
        if isinstance(losses, Mapping):
            assert self._names is not None
            return dict(zip(self._names, kept, strict=True))
        return kept

    def _align(self, losses: Losses) -> list[Tensor | None]:
        """Return the loss of each task in the order of the tasks.

        Raises:
            ShapeError: If their number does not fit.
            UnknownNameError: If a name is not known.
        """
        owner = type(self).__name__
        if not isinstance(losses, Mapping):
            with torch.enable_grad():
                given = list(losses.unbind() if isinstance(losses, Tensor) else losses)
            if len(given) != self.num_tasks:
                raise ShapeError(f"{owner}: expected num_tasks = {self.num_tasks} losses, got {len(given)}")
            return given
        if self._names is None:
            if len(losses) != self.num_tasks:
                raise ShapeError(
                    f"{owner}: expected the losses of num_tasks = {self.num_tasks} tasks, got {list(losses)}; build "
                    "the schedule with tasks=[...] if some may be missing from a batch"
                )
            self._names = tuple(losses)
        for name in losses:
            if name not in self._names:
                error = unknown(f"task of {owner}", str(name), self._names)
                raise error
        return [losses.get(name) for name in self._names]

    # --- state -------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the next batch depends on: names of the tasks, generator, and what a method keeps."""
        return {
            "tasks": None if self._names is None else list(self._names),
            "generator": None if self.generator is None else self.generator.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned.

        Raises:
            OptionError: If the state is of other tasks.
        """
        names = None if state["tasks"] is None else tuple(state["tasks"])
        if names is not None and (len(names) != self.num_tasks or self.tasks not in (None, names)):
            own = self.num_tasks if self.tasks is None else list(self.tasks)
            raise OptionError(
                f"{type(self).__name__}: the state is of tasks {list(names)}, this schedule of {own}; build it with "
                "the same tasks"
            )
        self._names = names if self.tasks is None else self.tasks
        if self.generator is not None and state["generator"] is not None:
            self.generator.set_state(state["generator"].cpu())


def _plain_update(optimizer: Optimizer, balancer: Balancer) -> Callable[[Losses], BalancerReport]:
    def update(losses: Losses) -> BalancerReport:
        optimizer.zero_grad()
        report = balancer.backward(losses)
        optimizer.step()
        return report

    return update


def permuted(count: int, generator: torch.Generator | None) -> list[int]:
    """Return the numbers below ``count`` in a random order."""
    return torch.randperm(count, generator=generator).tolist()
