"""Trying something and leaving no trace: parameters, gradients, buffers, modes, optimizer state, random numbers."""

import contextlib
import copy
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer


class Snapshot:
    """What a look ahead may change; :meth:`restore` puts it back into the same tensors, bit for bit."""

    def __init__(self, model: nn.Module, optimizer: Optimizer | None) -> None:
        self.optimizer = optimizer
        self._modes = [(module, module.training) for module in model.modules()]
        parameters = dict.fromkeys(model.parameters())
        if optimizer is not None:
            parameters.update(dict.fromkeys(p for group in optimizer.param_groups for p in group["params"]))
        self.parameters: list[nn.Parameter] = list(parameters)
        self._tensors = [(kept, kept.detach().clone()) for kept in [*self.parameters, *model.buffers()]]
        self._grads = [(p, p.grad, None if p.grad is None else p.grad.detach().clone()) for p in self.parameters]
        self._random = random_state()
        if optimizer is not None:
            self._state = {
                p: {key: (value, copy.deepcopy(value)) for key, value in state.items()}
                for p, state in optimizer.state.items()
            }
            self._groups = [dict(group) for group in optimizer.param_groups]

    def rewind(self) -> None:
        """Make the next forward pass draw the same random numbers."""
        set_random_state(self._random)

    def set_eval(self) -> None:
        """Switch the network to evaluation; :meth:`restore` puts the modes back."""
        for module, _ in self._modes:
            module.training = False

    def restore(self) -> None:
        """Put everything back."""
        with torch.no_grad():
            for kept, before in self._tensors:
                kept.data.copy_(before)  # data: a graph built before still has to be differentiated after this
            for p, grad, before in self._grads:
                p.grad = grad
                if grad is not None and before is not None:
                    grad.copy_(before)
        for module, training in self._modes:
            module.training = training
        self.rewind()
        if self.optimizer is not None:
            self._restore_optimizer(self.optimizer)

    def _restore_optimizer(self, optimizer: Optimizer) -> None:
        for p in [p for p in optimizer.state if p not in self._state]:
            del optimizer.state[p]
        for p, state in self._state.items():
            kept: dict[str, Any] = optimizer.state[p]
            kept.clear()
            for key, (value, before) in state.items():
                if isinstance(value, Tensor):
                    value.detach().copy_(before)
                    kept[key] = value
                else:
                    kept[key] = copy.deepcopy(before)
        for group, before in zip(optimizer.param_groups, self._groups, strict=True):
            group.clear()
            group.update(before)


@contextlib.contextmanager
def preserved(model: nn.Module, optimizer: Optimizer | None = None) -> Iterator[Snapshot]:
    """Put everything back at the end, after an error too."""
    snapshot = Snapshot(model, optimizer)
    try:
        yield snapshot
    finally:
        snapshot.restore()


def random_state() -> tuple[Any, ...]:
    """Return the state of the global generators."""
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return torch.get_rng_state(), np.random.get_state(), random.getstate(), devices


def set_random_state(state: tuple[Any, ...]) -> None:
    """Put back what :func:`random_state` returned."""
    torch.set_rng_state(state[0])
    np.random.set_state(state[1])
    random.setstate(state[2])
    if state[3]:
        torch.cuda.set_rng_state_all(state[3])
