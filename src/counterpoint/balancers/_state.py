"""What survives a step: buffers and parameters declared once, with reset and undo."""

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

Tensors = list[tuple[nn.Module, str, Tensor]]
Snapshot = tuple[Tensors, list[tuple[torch.Generator, Tensor]], Sequence[tuple[nn.Module, str, Any]]]


class StatefulModule(nn.Module):
    """A module that declares its state once, so that it can be reset, and put back after a refused step.

    Args:
        generator: Source of randomness; part of the state.
    """

    _undone: ClassVar[tuple[str, ...]] = ()  # attributes, no tensors, that a refused step must put back as well

    def __init__(self, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.generator = generator
        self._initial: dict[str, Tensor] = {}
        self._lazy: set[str] = set()
        self._initial_generator = None if generator is None else generator.get_state()

    def add_state(self, name: str, initial: Tensor) -> None:
        """Declare a tensor that survives a step (a buffer), and what :meth:`reset` sets it to."""
        self.register_buffer(name, initial.clone())
        self._initial[name] = initial.clone()

    def add_lazy_state(self, name: str) -> None:
        """Declare a large tensor whose shape is known at the first step only, such as one row per task (K, P).

        It is empty until then. Set it to a new tensor at each step and never change it in place: undoing a refused
        step then needs no copy.
        """
        self.add_state(name, torch.zeros(0))
        self._lazy.add(name)

    def add_parameter(self, name: str, initial: Sequence[float]) -> None:
        """Declare one learnable scalar per task, so that an absent task's scalar gets no gradient at all."""
        self.register_module(name, nn.ParameterList([nn.Parameter(torch.tensor(float(value))) for value in initial]))
        self._initial.update({f"{name}.{i}": torch.tensor(float(value)) for i, value in enumerate(initial)})

    def reset(self) -> None:
        """Forget everything learned since construction, in the balancers that this one holds as well."""
        for module in self._stateful():
            if module.generator is not None and module._initial_generator is not None:
                module.generator.set_state(module._initial_generator)
            own = dict([*module.named_buffers(), *module.named_parameters()])
            with torch.no_grad():
                for name, initial in module._initial.items():
                    if name in module._lazy:
                        setattr(module, name, initial.to(own[name].device))
                    else:
                        own[name].copy_(initial)

    def _stateful(self) -> Iterator["StatefulModule"]:
        return (module for module in self.modules() if isinstance(module, StatefulModule))

    def _owned(self) -> Iterator[tuple[nn.Module, str, Tensor]]:
        """Yield every tensor of the state with the module that has it."""
        for module in self.modules():
            for name, value in [*module.named_buffers(recurse=False), *module.named_parameters(recurse=False)]:
                yield module, name, value

    def _snapshot(self) -> Snapshot:
        """Keep the state, for :meth:`_restore`."""
        tensors = [
            (module, name, value if _is_lazy(module, name) else value.detach().clone())
            for module, name, value in self._owned()
        ]
        generators = [module.generator for module in self._stateful() if module.generator is not None]
        other = [(module, name, getattr(module, name)) for module in self._stateful() for name in module._undone]
        return tensors, [(generator, generator.get_state()) for generator in generators], other

    @staticmethod
    def _restore(snapshot: Snapshot) -> None:
        tensors, generators, other = snapshot
        with torch.no_grad():
            for module, name, kept in tensors:
                if _is_lazy(module, name):
                    setattr(module, name, kept)
                else:
                    getattr(module, name).copy_(kept)
        for generator, state in generators:
            generator.set_state(state)
        for module, name, value in other:
            setattr(module, name, value)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        for name in self._lazy:
            saved = state_dict.get(prefix + name)
            if saved is not None:  # its shape was not known here until now
                setattr(self, name, torch.empty_like(saved, device=getattr(self, name).device))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _is_lazy(module: nn.Module, name: str) -> bool:
    return isinstance(module, StatefulModule) and name in module._lazy
