"""FAMO: weights that even out how fast the logarithms of the losses fall, learned from the losses after each step."""

from collections.abc import Mapping, Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from counterpoint._checks import check_choice, check_per_task, check_range
from counterpoint.balancers._base import LossBalancer
from counterpoint.balancers._losses import Losses, read_values
from counterpoint.errors import OptionError
from counterpoint.solvers.adam import Moments, adam_step

_EPS = 1e-8  # of the released code: keeps the logarithm of a loss at its minimum finite
_PATIENCE = 1_000  # steps without after_step() after which there is a warning


def famo_weights(gaps: Float[Tensor, " K"], logits: Float[Tensor, " K"]) -> Float[Tensor, " K"]:
    """Return weights that sum to 1: ``w_i = c z_i / D_i`` with ``z = softmax(logits)``.

    They are the derivative of ``c sum_i z_i ln D_i`` for a constant c.

    Args:
        gaps: ``D_i``: how far each loss is above its minimum, positive.
        logits: What is learned.

    Example:
        >>> famo_weights(torch.tensor([1.0, 3.0]), torch.zeros(2))
        tensor([0.7500, 0.2500])

    References:
        Liu, Feng, Stone, Liu, "FAMO: Fast Adaptive Multitask Optimization", NeurIPS 2023,
        arXiv:2306.03792.
    """
    return (logits.log_softmax(dim=0) - gaps.log()).softmax(dim=0)


def famo_gradient(
    before: Float[Tensor, " K"], after: Float[Tensor, " K"], logits: Float[Tensor, " K"]
) -> Float[Tensor, " K"]:
    """Return the gradient for the logits: ``z_i (d_i - sum_j z_j d_j)`` with ``d_i = ln(before_i / after_i)``.

    It sums to zero, and going against it takes weight from the tasks that improved more than the mean.

    Args:
        before: Gap of each loss to its minimum before the step, positive.
        after: The same on the same batch after the step.
        logits: What is learned.

    Example:
        >>> famo_gradient(torch.tensor([2.0, 1.0]), torch.tensor([1.0, 1.0]), torch.zeros(2))
        tensor([ 0.1733, -0.1733])

    References:
        As :func:`famo_weights`: the product of the transposed Jacobian of the softmax with d.
    """
    share = logits.softmax(dim=0)
    gain = before.log() - after.log()
    return share * (gain - share @ gain)


@final
class FAMO(LossBalancer):
    """FAMO: weights that even out how fast the logarithms of the losses fall; see :func:`famo_weights`.

    After each optimizer step it needs the losses of the same batch once more: :meth:`after_step`. The training loop
    gives them; in a loop of your own use :class:`counterpoint.training.Replay`. Without them the logits stay what they
    are. In a distributed run give ``after_step`` the mean of the losses over the processes.

    The update of the logits is Adam with coupled weight decay, as in the released code, or plain gradient descent, as
    in the paper: ``xi <- xi - learning_rate (gradient + decay xi)``. Adam's first step is ``learning_rate`` long in
    each coordinate, whatever the gradient is. The weights of the tasks of a step sum to 1, and only their logits move.

    The released code also bounds the gradient of the shared parameters by 1. That is no part of the method and not done
    here; since FAMO sees no gradients, the ``max_norm`` of :class:`~counterpoint.balancers.Wrapped` cannot do it
    either: call ``torch.nn.utils.clip_grad_norm_`` on the shared parameters after ``backward``.

    Args:
        num_tasks: Number of tasks K.
        tasks: Names of the tasks.
        minimum: Known lower bound of each loss, one for all or one per task; every loss must stay above.
        learning_rate: Step size of the logits, above 0; 0.025 in the paper.
        decay: Weight decay of the logits, at least 0. The released code has 0.01 as its default and 0.001 in three of
            four experiments, which is also the default here.
        update: ``"adam"`` (released code) or ``"sgd"`` (paper).

    Raises:
        OptionError: If a loss falls below its minimum.
    """

    key = "famo"
    equation = (
        "L = c sum_i z_i ln(L_i - b_i),  z = softmax(xi),  xi_i moves by -z_i (d_i - z.d),  d = fall of ln(L - b)"
    )
    source = "Liu, Feng, Stone, Liu, FAMO: Fast Adaptive Multitask Optimization, NeurIPS 2023, arXiv:2306.03792"
    provenance = "released code; update='sgd' is the paper's; absent tasks are our reading"
    scale = "weights sum to 1"
    avoid = (
        "Where a second forward pass is dear, or the loss of a batch is so noisy that its change over one "
        "step says little. It balances rates of the log losses, so losses must stay above their lower bounds."
    )
    cost = "1 backward pass, 2 forward passes"
    needs = frozenset({"losses_after_step"})

    logits: Tensor
    first: Tensor
    second: Tensor
    count: Tensor
    before: Tensor
    last_step: Tensor
    num_steps: Tensor
    num_waiting: Tensor

    def __init__(
        self,
        num_tasks: int | None = None,
        *,
        tasks: Sequence[str] | None = None,
        minimum: float | Sequence[float] | Mapping[str, float] = 0.0,
        learning_rate: float = 0.025,
        decay: float = 0.001,
        update: str = "adam",
    ) -> None:
        super().__init__(num_tasks, tasks)
        bounds = check_per_task("FAMO: minimum", minimum, self.num_tasks, self.tasks)
        self._bounds = [check_range("FAMO: minimum", b, low_open=True, high_open=True) for b in bounds]
        self.minimum = minimum
        self.learning_rate = check_range("FAMO: learning_rate", learning_rate, low=0.0, low_open=True, high_open=True)
        self.decay = check_range("FAMO: decay", decay, low=0.0, high_open=True)
        self.update = check_choice("FAMO: update", update, ("adam", "sgd"))
        zeros = torch.zeros(self.num_tasks, dtype=torch.float64)
        for name in ("logits", "first", "second", "before"):
            self.add_state(name, zeros)
        self.add_state("count", zeros.long())
        self.add_state("last_step", zeros.long())  # in which each task was present; 0 for none
        self.add_state("num_steps", torch.zeros((), dtype=torch.long))
        self.add_state("num_waiting", torch.zeros((), dtype=torch.long))  # steps since the last after_step

    def objective(self, losses: Tensor, *, present: Sequence[int] | None = None) -> Tensor:
        """Return the objective of one step, ``c sum_i z_i ln D_i`` with c and z constant; see :func:`famo_weights`."""
        positions = self._positions(len(losses), present)
        index = torch.tensor(positions, device=self.logits.device)
        gaps = self._gaps(losses.double(), positions, "is")
        logits = self.logits[index].to(gaps)
        values = gaps.detach()
        total = (famo_weights(values, logits) * values * gaps.log()).sum()  # w_i D_i = c z_i
        self.num_steps += 1
        self.num_waiting += 1
        self.before[index] = values.to(self.before)
        self.last_step[index] = self.num_steps
        if int(self.num_waiting) > _PATIENCE:
            self.warn_once(
                "after_step",
                f"{_PATIENCE} steps without the losses after a step, so the weights learn nothing; call "
                "after_step(losses) with the losses of the same batch after each optimizer step",
                UserWarning,
            )
        return total.to(losses)

    def after_step(self, losses: Losses) -> None:
        """Learn from the losses of the same batch after the optimizer step; does nothing if no step was taken.

        Args:
            losses: As given to ``backward``; tasks that were absent there are ignored.

        Raises:
            NonFiniteError: If a loss is NaN or infinite.
            OptionError: If a loss is below its minimum.
        """
        _, present, values = read_values(self._owner, self.num_tasks, self._names, losses)
        last = self.last_step.tolist()
        known = [at for at, task in enumerate(present) if last[task] == int(self.num_steps)]
        if not known or int(self.num_waiting) == 0:
            return
        positions = tuple(present[at] for at in known)
        index = torch.tensor(positions, device=self.logits.device)
        after = self._gaps(values[known], positions, "after the step is").to(self.logits)
        logits = self.logits[index]
        gradient = famo_gradient(self.before[index], after, logits) + self.decay * logits
        if self.update == "sgd":
            self.logits[index] = logits - self.learning_rate * gradient
        else:
            moments = Moments(self.first[index], self.second[index], self.count[index])
            logits, moments = adam_step(logits, gradient, moments, learning_rate=self.learning_rate)
            self.logits[index] = logits
            self.first[index], self.second[index], self.count[index] = moments.first, moments.second, moments.count
        self.num_waiting.zero_()

    def _gaps(self, losses: Tensor, present: tuple[int, ...], verb: str) -> Tensor:
        """Return how far losses are above their minima.

        Raises:
            OptionError: If one is not.
        """
        gaps = losses - losses.new_tensor([self._bounds[task] for task in present]) + _EPS
        for task, gap in zip(present, gaps.tolist(), strict=True):
            if gap <= 0:
                name = task if self._names is None else self._names[task]
                bound = self._bounds[task]
                raise OptionError(
                    f"{self._owner}: the loss of task {str(name)!r} {verb} {bound + gap:g}, below its minimum "
                    f"{bound:g}, and this method takes the logarithm of the "
                    "difference; build the balancer with a lower minimum="
                )
        return gaps
