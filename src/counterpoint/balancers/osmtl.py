"""OSMTL and SMTL: each model also learns from the data of tasks that it already does well on."""

from collections.abc import Mapping, Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from counterpoint._checks import check_choice, check_range
from counterpoint.balancers._base import LossBalancer
from counterpoint.balancers._losses import Losses, align
from counterpoint.errors import ShapeError


def osmtl_relation(
    log_eta: Float[Tensor, "K K"], cross: Float[Tensor, "K K"], *, temperature: float
) -> Float[Tensor, "K K"]:
    """Return the logarithm of the relation after one round, ``eta_km exp(-l_km / lambda)`` with the row sums of before.

    Args:
        log_eta: Logarithm of the relation before; -inf for a pair that is never related.
        cross: Loss l_km of model k on the data of task m.
        temperature: lambda, above 0: large values hardly move the relation, small ones move it to the smallest loss.

    Returns:
        The logarithm of the relation after.

    Example:
        >>> osmtl_relation(torch.full((2, 2), 0.5).log(), torch.tensor([[0.0, 1.0], [1.0, 0.0]]), temperature=0.5).exp()
        tensor([[0.8808, 0.1192],
                [0.1192, 0.8808]])

    References:
        Murugesan, Liu, Carbonell, Yang, "Adaptive Smoothed Online Multi-Task Learning", NeurIPS 2016, the update of the
        relation after each round; written from memory of the paper.
    """
    moved = log_eta - cross / temperature
    return moved - moved.logsumexp(dim=1, keepdim=True) + log_eta.logsumexp(dim=1, keepdim=True)


@final
class OSMTL(LossBalancer):
    """OSMTL: the head of each task is also trained on the labels of tasks that its predictions fit already.

    For tasks that share a label space. The loss of task k given to ``backward`` is a vector (K,): the loss of the
    prediction of head k against the labels of each task m, l_km; entries of tasks without labels are not read. The head
    and the trunk minimize ``sum_k sum_m mu_km l_km`` with ``mu_k = alpha e_k + (1 - alpha) eta_k``, where the relation
    eta is learned: online by multiplicative updates after each step, or, for ``"batch"`` (SMTL), in closed form from
    the losses of the batch. Rows of eta and mu sum to 1 over the tasks that are present; mass moves only among these.

    Args:
        num_tasks: Number of tasks K.
        tasks: Names of the tasks.
        update: ``"online"`` (OSMTL) or ``"batch"`` (SMTL).
        temperature: lambda, above 0: how little a loss moves the relation. The paper chooses it by validation.
        alpha: Weight of a task's own labels, from 0 to 1; 1 is equal weighting.
        include_self: Whether the relation has mass on the task itself.

    References:
        Murugesan, Liu, Carbonell, Yang, "Adaptive Smoothed Online Multi-Task Learning", NeurIPS 2016: one linear
        model per task and hinge losses. Here heads on a shared trunk take the place of the models. Formulas and
        the place of the own task are from memory of the paper, and the use in deep networks is our reading.
    """

    key = "osmtl"
    equation = "sum_km (alpha [k = m] + (1 - alpha) eta_km) l_km,  eta_km <- eta_km exp(-l_km / lambda) / sum"
    source = "Murugesan et al., Adaptive Smoothed Online Multi-Task Learning, NeurIPS 2016"
    provenance = "paper, from memory; heads on a shared trunk in place of linear models are our reading"
    scale = "sum over tasks of weighted means over label sets"
    avoid = (
        "Where tasks do not share one label space: the labels of other tasks mean nothing to a head then. Where they "
        "do and the tasks differ, a head also learns what is wrong for it as long as alpha is below 1."
    )
    cost = "1 backward pass, K^2 losses"
    loss_form = "cross"

    log_eta: Tensor

    def __init__(
        self,
        num_tasks: int | None = None,
        *,
        tasks: Sequence[str] | None = None,
        update: str = "online",
        temperature: float = 1.0,
        alpha: float = 0.5,
        include_self: bool = True,
    ) -> None:
        super().__init__(num_tasks, tasks)
        self.update = check_choice("OSMTL: update", update, ("online", "batch"))
        self.temperature = check_range("OSMTL: temperature", temperature, low=0.0, low_open=True, high_open=True)
        self.alpha = check_range("OSMTL: alpha", alpha, low=0.0, high=1.0)
        self.include_self = include_self
        start = torch.zeros(self.num_tasks, self.num_tasks, dtype=torch.float64)
        if not include_self and self.num_tasks > 1:
            start.fill_diagonal_(-torch.inf)
        self.add_state("log_eta", start.log_softmax(dim=1))  # logarithms: no entry can get stuck at 0

    def scalars(self, losses: Losses) -> Losses:
        """Return the loss of each task, ``sum_m mu_km l_km`` over the tasks present; one call is one step of the state.

        Raises:
            ShapeError: If a loss is no vector with one entry for each task.
        """
        names, given = align(self._owner, self.num_tasks, self._names, losses)
        present = [task for task, loss in enumerate(given) if loss is not None]
        if not present:
            return losses
        at = torch.tensor(present)
        rows = [self._row(names[task], given[task])[present] for task in present]
        cross = torch.stack([row.detach().to("cpu", torch.float64) for row in rows])
        weights = self._weights(at, cross).to(self.log_eta)
        found: list[Tensor | None] = [None] * self.num_tasks
        for task, row, weight in zip(present, rows, weights, strict=True):
            found[task] = weight.to(row) @ row
        return dict(zip(names, found, strict=True)) if isinstance(losses, Mapping) else found

    def _row(self, name: str, loss: Tensor | None) -> Tensor:
        """Return the losses of one head.

        Raises:
            ShapeError: If it is no vector (K,).
        """
        if not isinstance(loss, Tensor) or loss.shape != (self.num_tasks,):
            shown = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise ShapeError(
                f"{self._owner}: the loss of task {name!r} must be ({self.num_tasks},), the loss of its prediction "
                f"against the labels of each task, got {shown}; pass None for a task without labels"
            )
        return loss

    def _weights(self, at: Tensor, cross: Tensor) -> Tensor:
        """Return mu over the tasks present, and move the relation."""
        rows, columns = at[:, None], at[None, :]
        before = self.log_eta.cpu()[rows, columns]
        finite = bool(torch.isfinite(cross).all())  # else the step is refused when the losses are read
        if len(at) == 1 and not bool(torch.isfinite(before).all()):
            return torch.ones(1, 1, dtype=cross.dtype)  # nobody else to learn from
        after = osmtl_relation(before, cross, temperature=self.temperature) if finite else before
        if self.update == "batch":
            used = after
        else:
            used = before
            self.log_eta[rows, columns] = after.to(self.log_eta)
        return self.alpha * torch.eye(len(at), dtype=cross.dtype) + (1 - self.alpha) * used.softmax(dim=1)

    def objective(self, losses: Tensor, *, present: Sequence[int] | None = None) -> Tensor:
        """Return the sum of the losses of the tasks, which :meth:`scalars` gives."""
        self._positions(len(losses), present)
        return losses.sum()
