"""One batch on its way through a schedule: forward passes, updates, and what balancers and monitoring ask for."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from counterpoint.balancers import Balancer, BalancerReport, LookAhead
from counterpoint.diagnostics import ConflictMonitor
from counterpoint.tasks import Task
from counterpoint.training.replay import Replay
from counterpoint.training.step import conflict_gram, forward, scalar_losses, update

Losses = Mapping[str, Tensor | None]


@dataclasses.dataclass(frozen=True)
class Parts:
    """What updates are made with.

    Attributes:
        model: The network as it is called.
        raw_model: The same without the wrapper of a device or precision.
        optimizer: The optimizer as it is stepped.
        raw_optimizer: The same without its wrapper.
        balancer: Turns losses into gradients.
        tasks: Tasks to train.
        level: As in :func:`~counterpoint.training.step.training_step`.
        shared: Shared parameters, for balancers with a state for each.
    """

    model: nn.Module
    raw_model: nn.Module
    optimizer: Optimizer
    raw_optimizer: Optimizer
    balancer: Balancer
    tasks: Sequence[Task]
    level: str | None
    shared: Sequence[Tensor] | None


class Visit:
    """Gives a schedule the losses of a batch, and takes the optimizer steps that it asks for.

    Args:
        parts: What updates are made with.
        batch: What the steps are taken on.
        others: Further batches of the training split, for methods that read them.
        monitor: Measure the Gram matrix of all tasks before the first step.
        watch: Measures the gradients of each layer, of a scalar loss of each task, before the first step.

    Attributes:
        gram: What was measured, (K, K), NaN for absent tasks.
        seconds: What measuring took, where the balancer did not know it anyway.
    """

    def __init__(
        self,
        parts: Parts,
        batch: Any,
        others: Sequence[Any],
        *,
        monitor: bool,
        watch: ConflictMonitor | None = None,
    ) -> None:
        self.parts, self.batch, self.others, self.monitor, self.watch = parts, batch, others, monitor, watch
        self.gram: Tensor | None = None
        self.seconds = 0.0
        self._replay: Replay | None = None

    def losses(self) -> dict[str, Tensor | None]:
        """Run the network on the batch and return the losses of all tasks."""
        parts, needs = self.parts, self.parts.balancer.needs
        self._replay = Replay(parts.raw_model) if needs & {"losses_after_step", "look_ahead"} else None
        if "look_ahead" in needs:
            self._look_ahead(self.others[0])
        self._losses, self._output = forward(parts.model, parts.tasks, self.batch, parts.balancer.loss_form)
        further = self.others[: parts.balancer.num_batches - 1]
        self._more = [forward(parts.model, parts.tasks, other)[0] for other in further]
        return self._losses

    def update(self, losses: Losses) -> BalancerReport:
        """Take one optimizer step.

        Args:
            losses: Those that :meth:`losses` returned last, with ``None`` for the tasks outside the group.
        """
        parts, balancer = self.parts, self.parts.balancer
        outside = {name for name, loss in self._losses.items() if loss is not None and losses[name] is None}
        known = balancer.reports_gram and parts.level != "features" and not outside and _any_of(losses)
        monitor, self.monitor = self.monitor, False
        watch, self.watch = self.watch, None
        plain = (parts.level, parts.shared) == (None, None) and not outside and _any_of(losses)
        told = balancer.tells_layers and plain
        if watch is not None and not told:
            begin = time.perf_counter()
            watch.observe(scalar_losses(self._losses, [task.name for task in parts.tasks], balancer.loss_form))
            self.seconds += time.perf_counter() - begin
        if monitor and not known:
            begin = time.perf_counter()
            self.gram = conflict_gram(
                self._losses, [task.name for task in parts.tasks], self._output, parts.balancer.loss_form
            )
            self.seconds += time.perf_counter() - begin
        more = [_without(other, outside) for other in self._more]
        report = update(
            losses,
            self._output,
            balancer,
            parts.optimizer,
            level=parts.level,
            shared=parts.shared,
            more=more,
            monitor=watch if told else None,
        )
        if monitor and known:
            self.gram = report.gram
        if "losses_after_step" in balancer.needs:
            assert self._replay is not None
            with self._replay(), torch.no_grad():
                balancer.after_step(
                    _without(forward(parts.model, parts.tasks, self.batch, balancer.loss_form)[0], outside)
                )
        return report

    def _look_ahead(self, other: Any) -> None:
        """Let a balancer try steps before the real one."""
        parts, replay = self.parts, self._replay
        assert replay is not None

        def losses_of(given: Any) -> dict[str, Tensor | None]:
            with replay():
                return forward(parts.model, parts.tasks, given, parts.balancer.loss_form)[0]

        parameters = [parameter for parameter in parts.raw_model.parameters() if parameter.requires_grad]
        parts.balancer.look_ahead(
            LookAhead(lambda: losses_of(self.batch), lambda: losses_of(other), parameters, parts.raw_optimizer)
        )


def _any_of(losses: Losses) -> bool:
    """Tell whether any task has labels."""
    return any(loss is not None for loss in losses.values())


def _without(losses: Losses, outside: set[str]) -> dict[str, Tensor | None]:
    return {name: None if name in outside else loss for name, loss in losses.items()}
