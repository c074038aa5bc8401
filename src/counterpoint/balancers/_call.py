"""The options of one call of ``backward``, and what may watch it."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from counterpoint.balancers._losses import Step
from counterpoint.gradients.jacobian import Level

Measure = Iterable[Tensor] | Literal["shared", "last"]


class Monitor(Protocol):
    """What measures the gradients of each layer: :class:`counterpoint.diagnostics.ConflictMonitor` does."""

    def due(self) -> Mapping[str, Sequence[Tensor]] | None:
        """Count one step, and return the parameters of each layer if this one is to be measured."""

    def take(self, step: Step, grams: Mapping[str, Tensor]) -> None:
        """Take the Gram matrix (k, k) of each layer, of the tasks that are present."""


@dataclasses.dataclass(frozen=True)
class Call:
    """The options of one call of ``backward``."""

    shared: Iterable[Tensor] | None
    features: tuple[Tensor, ...]
    level: Level
    group: dist.ProcessGroup | None
    scaler: torch.amp.GradScaler | None
    measure: Measure | None = None
    more: tuple[Step, ...] = ()
    monitor: Monitor | None = None
    layers: Mapping[str, Sequence[Tensor]] | None = None  # to be measured in this call

    def scale(self, device: torch.device) -> float:
        """Return the loss scale; asking with a tensor makes a new scaler ready for ``scaler.step``."""
        return 1.0 if self.scaler is None else float(self.scaler.scale(torch.ones((), device=device)))
