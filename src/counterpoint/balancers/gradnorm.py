"""GradNorm: loss weights that bring the lengths of the weighted gradients to targets."""

from collections.abc import Mapping, Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from counterpoint._checks import check_choice, check_per_task, check_range
from counterpoint.balancers._base import GramBalancer
from counterpoint.errors import OptionError
from counterpoint.linalg import nonzero_rows, norms
from counterpoint.solvers.adam import Moments, adam_step

_SMALLEST = 1e-3  # weights stay above this before they are rescaled: plain steps can make them negative
_EQUAL = 1e-12  # a length this near to its target, relative to the longest, is at it


def gradnorm_gradient(
    lengths: Float[Tensor, " K"],
    weights: Float[Tensor, " K"],
    ratios: Float[Tensor, " K"],
    *,
    alpha: float = 1.5,
) -> tuple[Float[Tensor, " K"], Float[Tensor, " K"]]:
    """Return the derivative of ``sum_i |G_i - T_i|`` by the weights, and the targets T.

    ``G_i = w_i |g_i|`` is the length of the weighted gradient of task i, and its target is
    ``T_i = mean(G) r_i^alpha`` with ``r_i`` the task's loss ratio over the mean of all: a task that trains more slowly
    gets a longer gradient. The targets count as constants.

    Args:
        lengths: Lengths |g_i| of the gradients of the unweighted losses.
        weights: Weights w of the losses.
        ratios: Loss now over loss at the beginning.
        alpha: Strength of the pull towards equal training rates, at least 0; 0 makes all lengths equal.

    Returns:
        ``sign(G_i - T_i) |g_i|``, 0 where the length is at its target; and T.

    Example:
        >>> lengths, ones = torch.tensor([1.0, 3.0]), torch.ones(2)
        >>> gradnorm_gradient(lengths, ones, ones)
        (tensor([-1.,  3.]), tensor([2., 2.]))

    References:
        Chen et al., "GradNorm: Gradient Normalization for Adaptive Loss Balancing in Deep Multitask Networks", ICML
        2018, arXiv:1711.02257.
    """
    scaled = weights * lengths
    mean_ratio = ratios.mean()
    rates = ratios / mean_ratio if float(mean_ratio) > 0 else torch.ones_like(ratios)
    targets = scaled.mean() * rates**alpha
    gap = scaled - targets
    gap = torch.where(gap.abs() > _EQUAL * scaled.abs().max(), gap, torch.zeros_like(gap))
    return gap.sign() * lengths, targets


def renormalized(weights: Float[Tensor, " K"], total: float, *, smallest: float = _SMALLEST) -> Float[Tensor, " K"]:
    """Return the weights, none below ``smallest``, multiplied by one factor so that they sum to ``total``."""
    kept = weights.clamp(min=smallest)
    return kept * (total / kept.sum())


@final
class GradNorm(GramBalancer):
    """GradNorm: weights that learn to equalize gradient lengths and training rates; see :func:`gradnorm_gradient`.

    The weights are a state that the method steps itself, after each update, so the optimizer must not have them. A task
    that is absent, or has no gradient in what is measured, keeps its weight; the others share theirs among themselves.

    Args:
        num_tasks: Number of tasks K.
        tasks: Names of the tasks.
        alpha: Strength of the pull towards equal training rates, at least 0; 1.5 in the paper.
        learning_rate: Step size of the weights, above 0.
        update: ``"adam"``, or ``"sgd"`` for plain steps, which grow with the gradients.
        initial_losses: What each loss is compared to, above 0: one for all, or one per task as a sequence or by name;
            for classification the logarithm of the number of classes. Default: its value when the task is first seen.
        measure: Gradients whose lengths count: of the ``"last"`` shared layer, as in the paper, or of all ``"shared"``
            parameters; only the latter goes with ``level="features"``.
    """

    key = "gradnorm"
    equation = "w by gradient steps on sum_i |G_i - T_i|,  G_i = w_i |g_i|,  T_i = mean(G) (loss ratio_i / mean)^alpha"
    source = "Chen et al., GradNorm, ICML 2018, arXiv:1711.02257"
    provenance = (
        "paper, renormalized; learning rate from memory of it; Adam's scale-free form and the lower "
        "bound 0.001 on weights are ours"
    )
    scale = "weights sum to K"
    avoid = (
        "Where the direction matters: it makes gradients of the last shared layer comparable in length and "
        "lets conflicts stand. A first loss that is an outlier sets the training rates for the whole run."
    )
    cost = "K backward passes to the last shared layer, 1 through the rest"
    task_gradients = "weighted"
    nonnegative_losses = True

    task_weights: Tensor
    reference: Tensor
    first_moment: Tensor
    second_moment: Tensor
    steps: Tensor

    def __init__(
        self,
        num_tasks: int | None = None,
        *,
        tasks: Sequence[str] | None = None,
        alpha: float = 1.5,
        learning_rate: float = 0.025,
        update: str = "adam",
        initial_losses: float | Sequence[float] | Mapping[str, float] | None = None,
        measure: str = "last",
    ) -> None:
        super().__init__(num_tasks, tasks)
        self.alpha = check_range("GradNorm: alpha", alpha, low=0.0, high_open=True)
        self.learning_rate = check_range(
            "GradNorm: learning_rate", learning_rate, low=0.0, low_open=True, high_open=True
        )
        self.update = check_choice("GradNorm: update", update, ("adam", "sgd"))
        self.measure = check_choice("GradNorm: measure", measure, ("last", "shared"))  # type: ignore[assignment]
        self.initial_losses = initial_losses
        reference = torch.full((self.num_tasks,), torch.nan, dtype=torch.float64)
        if initial_losses is not None:
            label = "GradNorm: initial_losses"
            given = check_per_task(label, initial_losses, self.num_tasks, self.tasks)
            given = [check_range(label, one, low=0.0, low_open=True, high_open=True) for one in given]
            reference = torch.tensor(given, dtype=torch.float64)
        zeros = torch.zeros(self.num_tasks, dtype=torch.float64)
        self.add_state("task_weights", zeros + 1)
        self.add_state("reference", reference)  # the losses at the beginning
        self.add_state("first_moment", zeros)
        self.add_state("second_moment", zeros)
        self.add_state("steps", zeros.long())

    def solve(self, gram: Tensor, losses: Tensor | None, present: tuple[int, ...]) -> Tensor:
        """Return the weights of one step, which are those of before it, and step them; see :func:`gradnorm_gradient`.

        Raises:
            OptionError: If losses are not given or negative.
        """
        if losses is None or bool((losses < 0).any()):
            raise OptionError(f"GradNorm: needs losses of at least 0, got {losses}")
        index = torch.tensor(present, device=self.task_weights.device)
        weights = self.task_weights[index].to(gram)
        reference = self.reference[index].to(gram)
        reference = torch.where(reference.isnan(), losses, reference)
        self.reference[index] = reference.to(self.reference)
        if not bool((gram.diagonal() > 0).any()):
            return weights
        at = nonzero_rows(gram).nonzero().flatten()
        ratios = torch.where(reference > 0, losses / reference, torch.ones_like(losses))
        gradient, _ = gradnorm_gradient(norms(gram)[at], weights[at], ratios[at], alpha=self.alpha)
        self._step(index[at.to(index.device)], gradient)
        return weights

    def _step(self, index: Tensor, gradient: Tensor) -> None:
        """Move the weights of some tasks against the gradient; their sum stays what it was."""
        before = self.task_weights[index]
        gradient = gradient.to(before)
        if self.update == "adam":  # without a constant in the denominator the unit of the losses does not matter
            old = Moments(self.first_moment[index], self.second_moment[index], self.steps[index])
            moved, new = adam_step(before, gradient, old, learning_rate=self.learning_rate, eps=0.0)
            self.first_moment[index], self.second_moment[index], self.steps[index] = new.first, new.second, new.count
        else:
            moved = before - self.learning_rate * gradient
        self.task_weights[index] = renormalized(moved, float(before.sum()))
