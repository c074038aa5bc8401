"""What survives a step: buffers and parameters declared once, with reset and undo."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

Snapshot = tuple[dict[str, Tensor], Tensor | None]


class StatefulModule(nn.Module):
    """A module that declares its state once, so that it can be reset, and put back after a refused step.

    Args:
        generator: Source of randomness; part of the state.
    """

    def __init__(self, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.generator = generator
        self._initial: dict[str, Tensor] = {}
        self._initial_generator = None if generator is None else generator.get_state()

    def add_state(self, name: str, initial: Tensor) -> None:
        """Declare a tensor that survives a step (a buffer), and what :meth:`reset` sets it to."""
        self.register_buffer(name, initial.clone())
        self._initial[name] = initial.clone()

    def add_parameter(self, name: str, initial: Sequence[float]) -> None:
        """Declare one learnable scalar per task, so that an absent task's scalar gets no gradient at all."""
        self.register_module(name, nn.ParameterList([nn.Parameter(torch.tensor(float(value))) for value in initial]))
        self._initial.update({f"{name}.{i}": torch.tensor(float(value)) for i, value in enumerate(initial)})

    def reset(self) -> None:
        """Forget everything learned since construction."""
        self._restore((self._initial, self._initial_generator))

    def _snapshot(self) -> Snapshot:
        """Copy the state, for :meth:`_restore`."""
        tensors = {name: value.detach().clone() for name, value in [*self.named_buffers(), *self.named_parameters()]}
        return tensors, None if self.generator is None else self.generator.get_state()

    def _restore(self, snapshot: Snapshot) -> None:
        tensors, generator = snapshot
        with torch.no_grad():
            for name, value in [*self.named_buffers(), *self.named_parameters()]:
                value.copy_(tensors[name])
        if self.generator is not None and generator is not None:
            self.generator.set_state(generator)
