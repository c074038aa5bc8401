"""The base of methods that remember something for each task and coordinate of the shared parameters."""

from collections.abc import Sequence

import torch
from torch import Tensor

from counterpoint.balancers._base import JacobianBalancer
from counterpoint.balancers._losses import check_values
from counterpoint.errors import OptionError, ShapeError


class ColumnsBalancer(JacobianBalancer):
    """A balancer with lazy states (K, P): one row per task, one column per coordinate."""

    keeps_columns = True

    def _rows(self, name: str, jacobian: Tensor, present: tuple[int, ...]) -> Tensor:
        """Return the rows (k, P) of a lazy state for the tasks present, not to be changed; zeros before the first step.

        They are in the dtype of the gradients, or in float32 if that is narrower.

        Raises:
            OptionError: If the state has another number of columns.
        """
        state, dtype = getattr(self, name), torch.promote_types(torch.float32, jacobian.dtype)
        if not state.numel():
            return torch.zeros_like(jacobian, dtype=dtype)
        if state.shape[-1] != jacobian.shape[1]:
            raise OptionError(
                f"{self._owner}: the state is of {state.shape[-1]} shared coordinates, the gradients have "
                f"{jacobian.shape[1]}; pass the same parameters in the same order as shared=, or call reset()"
            )
        state = state.to(jacobian.device, dtype)
        return state if self._all(present) else state[list(present)]

    def _keep(self, name: str, rows: Tensor, present: tuple[int, ...]) -> None:
        """Replace the rows of the tasks present; ``rows`` must be new and belong to nobody else."""
        if not self._all(present):
            state = getattr(self, name)
            whole = state.to(rows) if state.numel() else rows.new_zeros(self.num_tasks, rows.shape[1])
            rows = whole.index_copy(0, torch.tensor(present, device=rows.device), rows)
        setattr(self, name, rows)

    def _all(self, present: tuple[int, ...]) -> bool:
        return present == tuple(range(self.num_tasks))

    def _read_losses(self, losses: Tensor | None, present: Sequence[int]) -> Tensor:
        """Return the losses (k,) in float64 on the CPU.

        Raises:
            OptionError: If they are not given, or negative where the method needs losses of at least 0.
            ShapeError: If their number is not that of the rows.
        """
        if losses is None:
            raise OptionError(f"{self._owner}: this method reads the losses; call combine(jacobian, losses)")
        values = losses.detach().to("cpu", torch.float64)
        if values.shape != (len(present),):
            raise ShapeError(f"{self._owner}: losses must be ({len(present)},), got {tuple(values.shape)}")
        check_values(self._owner, self._names_of(present), values, nonnegative=self.nonnegative_losses)
        return values
