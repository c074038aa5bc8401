"""Sequential Reptile: one trajectory over randomly drawn tasks, of which the parameters follow a part."""

from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from counterpoint._checks import check_choice, check_integer, check_per_task, check_range
from counterpoint.errors import OptionError
from counterpoint.schedules._base import Group, Schedule


@final
class SequentialReptile(Schedule):
    """Inner steps ``theta <- theta - alpha grad L_t(theta)`` on drawn tasks t, then ``phi <- phi + eta (theta - phi)``.

    Each batch is one inner step, of the caller's optimizer, on one task; after ``inner_steps`` of them the outer step
    is taken. Mixing tasks in one trajectory adds, in expectation, the gradient of the inner products of their
    gradients, so that these align. ``eta=1`` with ``reset_optimizer=False`` is plain sequential training. Between
    outer steps the network holds the inner parameters: call :meth:`end_epoch` before evaluating, which takes the outer
    step early.

    Args:
        num_tasks: Number of tasks K; may be left out if ``tasks`` is given.
        tasks: Names of the tasks.
        generator: Source of the draws.
        inner_steps: Inner steps of an outer one; default five times the number of tasks.
        eta: Share of the way to the end of the trajectory, in (0, 1].
        probabilities: How often each task is drawn, such as the sizes of their data sets; need not sum to one. Default
            all alike. Tasks without labels in the batch are not drawn.
        reset_optimizer: Forget the state of the inner optimizer (momentum, Adam's moments) at each outer step.
        buffers: What becomes of floating-point buffers, such as running statistics, if ``step`` is given the model:
            ``"interpolate"`` treats them as parameters, ``"copy"`` keeps those of the last inner step.

    References:
        Lee, Lee, Lee, Hwang, "Sequential Reptile: Inter-Task Gradient Alignment for Multilingual Learning", ICLR 2022,
        arXiv:2110.02600. The number of inner steps for small problems, the outer step at the end of an epoch, the
        treatment of buffers and of absent tasks are our choices.
    """

    key = "sequential_reptile"
    source = "Lee, Lee, Lee, Hwang, Sequential Reptile, ICLR 2022, arXiv:2110.02600"
    provenance = "paper; no released code was read, default steps and eta are from memory and ours"
    cost = "1 forward pass, 1 backward pass, 1 optimizer step; a copy of the parameters"

    def __init__(
        self,
        num_tasks: int | None = None,
        *,
        tasks: Sequence[str] | None = None,
        generator: torch.Generator | None = None,
        inner_steps: int | None = None,
        eta: float = 0.1,
        probabilities: Sequence[float] | Mapping[str, float] | None = None,
        reset_optimizer: bool = True,
        buffers: str = "interpolate",
    ) -> None:
        super().__init__(num_tasks, tasks, generator, random=True)
        if inner_steps is not None:
            check_integer("SequentialReptile: inner_steps", inner_steps, low=1)
        self.inner_steps = inner_steps
        self.eta = check_range("SequentialReptile: eta", eta, low=0.0, low_open=True, high=1.0)
        self.probabilities = probabilities
        self.reset_optimizer = reset_optimizer
        self.buffers = check_choice("SequentialReptile: buffers", buffers, ("interpolate", "copy"))
        given = 1.0 if probabilities is None else probabilities
        shares = check_per_task("SequentialReptile: probabilities", given, self.num_tasks, self.tasks)
        for share in shares:
            check_range("SequentialReptile: each of probabilities", share, low=0.0, high=float("inf"), high_open=True)
        if not any(shares):
            raise OptionError("SequentialReptile: probabilities must have at least one above 0")
        self._shares = torch.tensor(shares, dtype=torch.float64)
        self._count = 0  # inner steps since the last outer one
        self._phi: list[Tensor] = []  # where the trajectory began; empty between outer steps
        self._phi_buffers: dict[str, Tensor] = {}

    @property
    def num_passes(self) -> int:
        """One."""
        return 1

    def _plan(self, present: Group) -> Sequence[Group]:
        draw = torch.rand((), generator=self.generator, dtype=torch.float64)
        drawn = [task for task in present if self._shares[task] > 0]
        if not drawn:
            return []
        bounds = self._shares[drawn].cumsum(0)
        at = int(torch.searchsorted(bounds, draw * bounds[-1], right=True))
        return [(drawn[min(at, len(drawn) - 1)],)]  # rounding may put the draw on the last bound

    def _begin(self, optimizer: Optimizer, model: nn.Module | None) -> None:
        if self._count:
            return
        self._phi = [parameter.detach().clone() for parameter in _trained(optimizer)]
        self._phi_buffers = {name: buffer.detach().clone() for name, buffer in self._moved_buffers(model)}
        if self.reset_optimizer:
            optimizer.state.clear()

    def _finish(self, groups: Sequence[Group], optimizer: Optimizer, model: nn.Module | None) -> None:  # noqa: ARG002
        self._count += 1
        if self._count >= (5 * self.num_tasks if self.inner_steps is None else self.inner_steps):
            self.end_epoch(optimizer, model=model)

    @torch.no_grad()
    def end_epoch(self, optimizer: Optimizer, *, model: nn.Module | None = None) -> None:
        """Take the outer step from where the trajectory is; nothing if it has not begun.

        Args:
            optimizer: The optimizer of :meth:`step`.
            model: The network, for its buffers.
        """
        if not self._count:
            return
        for parameter, start in zip(_trained(optimizer), self._phi, strict=True):
            parameter.copy_(torch.lerp(start.to(parameter), parameter, self.eta))
        for name, buffer in self._moved_buffers(model):
            if name in self._phi_buffers:
                buffer.copy_(torch.lerp(self._phi_buffers[name].to(buffer), buffer, self.eta))
        self._count, self._phi, self._phi_buffers = 0, [], {}

    def _moved_buffers(self, model: nn.Module | None) -> list[tuple[str, Tensor]]:
        if model is None or self.buffers == "copy":
            return []
        return [(name, buffer) for name, buffer in model.named_buffers() if buffer.is_floating_point()]

    def state_dict(self) -> dict[str, Any]:
        """Return names, generator, the number of inner steps taken and where the trajectory began."""
        return {
            **super().state_dict(),
            "count": self._count,
            "phi": list(self._phi),
            "phi_buffers": dict(self._phi_buffers),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        super().load_state_dict(state)
        self._count = state["count"]
        self._phi, self._phi_buffers = list(state["phi"]), dict(state["phi_buffers"])


def _trained(optimizer: Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
