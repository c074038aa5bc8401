"""Auto-Lambda: task weights that lower the losses of another batch after a step that is tried first."""

from collections.abc import Callable, Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from counterpoint._checks import check_choice, check_range
from counterpoint.balancers._base import LossBalancer
from counterpoint.balancers._losses import Losses, read_losses, read_values
from counterpoint.balancers._needs import LookAhead
from counterpoint.balancers._virtual import virtual_step
from counterpoint.errors import NonFiniteError, OptionError
from counterpoint.gradients import all_finite
from counterpoint.registry import unknown
from counterpoint.solvers.adam import Moments, adam_step

_LENGTH = 0.01  # of the finite difference, as in the paper's code and in DARTS
_FORMS = {"free": (0.1, 1e-4), "softmax": (None, 1e-3)}  # first value, learning rate


@torch.no_grad()
def directional_derivatives(
    losses: Callable[[], Float[Tensor, " K"]], parameters: Sequence[Tensor], direction: Sequence[Tensor]
) -> Float[Tensor, " K"]:
    """Return the inner product of each loss's gradient with a direction u, by a central difference.

    ``h_j = (L_j(theta + e u) - L_j(theta - e u)) / (2 e)`` with ``e = 0.01 / |u|``; the error is of order e^2. The
    parameters are put back bit for bit, also after an error.

    Args:
        losses: Returns the losses at the present values of the parameters.
        parameters: What the losses depend on; changed during the call.
        direction: The direction u, one tensor a parameter; zeros give zeros.

    Example:
        >>> x = torch.tensor([1.0, 2.0], dtype=torch.float64)
        >>> u = torch.tensor([1.0, 0.0], dtype=torch.float64)
        >>> directional_derivatives(lambda: torch.stack([x.sum(), (x * x).sum()]), [x], [u])
        tensor([1.0000, 2.0000], dtype=torch.float64)
    """
    length = _norm(direction)
    step = _LENGTH / length if length > 0 else 0.0
    kept = [parameter.detach().clone() for parameter in parameters]
    found = []
    try:
        for sign in (step, -step):
            for parameter, start, along in zip(parameters, kept, direction, strict=True):
                parameter.copy_(start + sign * along)
            found.append(losses().double())
    finally:
        _put_back(parameters, kept)
    return torch.zeros_like(found[0]) if step == 0 else (found[0] - found[1]) / (2 * step)


@final
class AutoLambda(LossBalancer):
    """Auto-Lambda: task weights that lower the losses of another batch after a step that is tried first.

    With the weights w of the tasks, before each step: (1) try the optimizer's step on ``sum_j w_j L_j`` of the coming
    batch; (2) there, take the gradient u of the sum of the primary tasks' losses on another batch;
    (3) back at the start, ``h_j = u . grad L_j`` by a finite difference (:func:`directional_derivatives`); (4) the
    gradient for w_j is ``-lr h_j``, and Adam takes a step; (5) the real step uses the new weights. With several
    learning rates each part of u is multiplied by its own. Momentum's buffers are read and not changed.

    The tried step is the optimizer's own for ``torch.optim.SGD`` (weight decay, momentum, Nesterov); for any other
    optimizer it is the plain step ``-lr gradient``.

    Needs :meth:`look_ahead` before the forward pass of each step; the training loop calls it, with another batch of
    the training split. Without it the weights stay at their start.

    Args:
        num_tasks: Number of tasks K.
        tasks: Names of the tasks.
        primary: The tasks that the other batch is judged by, by name or position; default all.
        parametrization: ``"free"`` (the paper's code: the weights themselves are learned and may become negative) or
            ``"softmax"`` (LibMTL: the weights are the softmax of what is learned).
        initial: First value of what is learned. Default 0.1 for ``"free"``, 1 / K for ``"softmax"``.
        learning_rate: Of Adam, above 0. Default 1e-4 for ``"free"`` (dense prediction in the paper's code), 1e-3 for
            ``"softmax"``.

    Raises:
        UnknownNameError: If a primary task does not exist.
        OptionError: If an option is out of range, or ``primary`` is empty.
    """

    key = "auto_lambda"
    equation = "min over w of sum_primary L_i'(theta - lr grad sum_j w_j L_j(theta)),  ' another batch"
    source = "Liu, James, Davison, Johns, Auto-Lambda: Disentangling Dynamic Task Relationships, TMLR 2022"
    provenance = (
        "released code; softmax as in LibMTL; optimizers other than SGD as a plain step, and absent tasks: ours"
    )
    scale = "the learned weights themselves: free, or summing to 1 with softmax"
    avoid = (
        "Where a step may not cost three backward and five forward passes, or where the learning rate is so "
        "small that the trial step changes nothing; with an optimizer other than SGD the trial step is only "
        "like the real one."
    )
    cost = "3 backward passes, 5 forward passes"
    needs = frozenset({"look_ahead"})

    learned: Tensor
    first: Tensor
    second: Tensor
    count: Tensor

    def __init__(
        self,
        num_tasks: int | None = None,
        *,
        tasks: Sequence[str] | None = None,
        primary: Sequence[str | int] | None = None,
        parametrization: str = "free",
        initial: float | None = None,
        learning_rate: float | None = None,
    ) -> None:
        super().__init__(num_tasks, tasks)
        self.parametrization = check_choice("AutoLambda: parametrization", parametrization, _FORMS)
        self.primary = primary
        self._primary = self._chosen(primary)
        start, rate = _FORMS[parametrization]
        start = 1 / self.num_tasks if start is None else start
        self.initial = initial
        self.learning_rate = learning_rate
        if initial is not None:
            start = check_range("AutoLambda: initial", initial, low_open=True, high_open=True)
        if learning_rate is not None:
            rate = check_range("AutoLambda: learning_rate", learning_rate, low=0.0, low_open=True, high_open=True)
        self._rate = rate
        zeros = torch.zeros(self.num_tasks, dtype=torch.float64)
        self.add_state("learned", zeros + start)
        self.add_state("first", zeros)
        self.add_state("second", zeros)
        self.add_state("count", zeros.long())

    def _chosen(self, primary: Sequence[str | int] | None) -> frozenset[int]:
        """Return the positions of the primary tasks.

        Raises:
            OptionError: If there is none, or a position does not exist.
            UnknownNameError: If a name does not exist.
        """
        if primary is None:
            return frozenset(range(self.num_tasks))
        if isinstance(primary, str) or not primary:
            raise OptionError(f"AutoLambda: primary must be a sequence of at least one task, got {primary!r}")
        for task in primary:
            if isinstance(task, str) and task not in (self.tasks or ()):
                raise unknown("task of AutoLambda", task, self.tasks or ())
            if not isinstance(task, str) and task not in range(self.num_tasks):
                raise OptionError(
                    f"AutoLambda: primary must be names, or positions below {self.num_tasks}, got {task!r}"
                )
        return frozenset(self.tasks.index(t) if isinstance(t, str) and self.tasks else int(t) for t in primary)

    def _weights(self, present: Sequence[int]) -> Tensor:
        """Return the weights of the tasks that are present."""
        learned = self.learned[torch.tensor(tuple(present), device=self.learned.device)]
        return learned.softmax(dim=0) if self.parametrization == "softmax" else learned

    def objective(self, losses: Tensor, *, present: Sequence[int] | None = None) -> Tensor:
        """Return the weighted sum of the losses of one step."""
        return self._weights(self._positions(len(losses), present)).to(losses) @ losses

    def look_ahead(self, ahead: LookAhead) -> None:
        """Learn the weights from a step that is tried; parameters and optimizer are as before when it returns.

        Raises:
            NonFiniteError: If a loss or the gradient of the other batch is not finite.
        """
        parameters = list(ahead.parameters)
        step = read_losses(self._owner, self.num_tasks, self._names, ahead.train_losses())
        if not step.present:
            return
        weights = self._weights(step.present)
        total = torch.stack([w.to(loss) * loss for w, loss in zip(weights, step.losses, strict=True)]).sum()
        moves = [
            virtual_step(ahead.optimizer, parameter, gradient)
            for parameter, gradient in zip(parameters, _gradients(total, parameters), strict=True)
        ]
        there = self._gradient_there(ahead, parameters, [move for move, _ in moves])
        if there is None:
            return
        direction = [factor * part for (_, factor), part in zip(moves, there, strict=True)]

        def losses_here() -> Tensor:
            return self._values(ahead.train_losses(), step.present)

        gradient = -directional_derivatives(losses_here, parameters, direction)
        self._learn(gradient.to(self.learned), step.present)

    def _gradient_there(
        self, ahead: LookAhead, parameters: Sequence[Tensor], moves: Sequence[Tensor]
    ) -> list[Tensor] | None:
        """Return the gradient of the primary losses of the other batch after the tried step; ``None`` if it has none.

        Raises:
            NonFiniteError: If it is not finite.
        """
        kept = [parameter.detach().clone() for parameter in parameters]
        try:
            with torch.no_grad():
                for parameter, move in zip(parameters, moves, strict=True):
                    parameter.add_(move)
            step = read_losses(self._owner, self.num_tasks, self._names, ahead.validation_losses())
            pairs = zip(step.present, step.losses, strict=True)
            judged = [loss for task, loss in pairs if task in self._primary]
            if not judged:
                return None
            found = _gradients(torch.stack(judged).sum(), parameters)
        finally:
            _put_back(parameters, kept)
        if not all_finite(found):
            raise NonFiniteError(
                f"{self._owner}: the gradient of the primary tasks {step.names_of(range(len(step.present)))} after the "
                "tried step is not finite, though every loss is; look for a division by zero or a root of zero",
                step.names_of([at for at, task in enumerate(step.present) if task in self._primary]),
            )
        return found

    def _values(self, losses: Losses, present: tuple[int, ...]) -> Tensor:
        """Return the losses of the tasks that are present."""
        _, found, values = read_values(self._owner, self.num_tasks, self._names, losses)
        assert found == present, "the same batch has the same tasks"
        return values

    def _learn(self, gradient: Tensor, present: tuple[int, ...]) -> None:
        """Take Adam's step for the tasks that are present; the gradient is that of their weights."""
        index = torch.tensor(present, device=self.learned.device)
        if self.parametrization == "softmax":
            weights = self._weights(present)
            gradient = weights * (gradient - weights @ gradient)
        moments = Moments(self.first[index], self.second[index], self.count[index])
        learned, moments = adam_step(self.learned[index], gradient, moments, learning_rate=self._rate)
        self.learned[index] = learned
        self.first[index], self.second[index], self.count[index] = moments.first, moments.second, moments.count


def _gradients(loss: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    with torch.enable_grad():
        found = torch.autograd.grad(loss, list(parameters), allow_unused=True)
    pairs = zip(parameters, found, strict=True)
    return [torch.zeros_like(parameter) if part is None else part for parameter, part in pairs]


def _put_back(parameters: Sequence[Tensor], kept: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for parameter, start in zip(parameters, kept, strict=True):
            parameter.copy_(start)


def _norm(direction: Sequence[Tensor]) -> float:
    return float(torch.stack([part.double().norm() for part in direction]).norm()) if direction else 0.0
