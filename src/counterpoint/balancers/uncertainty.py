"""Uncertainty weighting: one learned noise level per task."""

from collections.abc import Mapping, Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from counterpoint._checks import check_choice, check_per_task, check_range
from counterpoint.balancers._base import LossBalancer

_FORMS = {"half": (0.5, 0.5), "laplace": (1.0, 1.0), "classification": (1.0, 0.5)}  # factors of exp(-s) L and of s
_REGULARIZERS = ("log", "log1p")


def uncertainty_objective(
    losses: Float[Tensor, " K"], log_noise: Float[Tensor, " K"], forms: Sequence[str], *, regularizer: str = "log"
) -> Float[Tensor, ""]:
    """Return the negative log-likelihood of all tasks, up to constants, as a function of their noise levels.

    With s the learned scalar of a task and L its loss:

    - ``"half"``: Gaussian noise, L a squared error: ``exp(-s) L / 2 + s / 2`` with s = ln sigma^2;
    - ``"laplace"``: Laplace noise, L an absolute error: ``exp(-s) L + s`` with s = ln b;
    - ``"classification"``: cross-entropy with temperature sigma^2: ``exp(-s) L + s / 2`` with s = ln sigma^2, which
      drops a term of the softmax that is exact for sigma = 1 only.

    The regularizer is ``"log"``, as above, or ``"log1p"``: ln(1 + sigma^2) in place of ln sigma, never negative. At the
    minimum over s, with ``"log"``, the weight of a loss is proportional to 1 / L.

    Args:
        losses: Losses, at least 0.
        log_noise: The scalar s of each task.
        forms: Form of each task.
        regularizer: ``"log"`` or ``"log1p"``.

    Returns:
        The total; may be negative with ``"log"``.

    Example:
        >>> uncertainty_objective(torch.tensor([2.0]), torch.tensor([0.0]), ["half"])
        tensor(1.)

    References:
        Kendall, Gal, Cipolla, "Multi-Task Learning Using Uncertainty to Weigh Losses for Scene Geometry and Semantics",
        CVPR 2018, arXiv:1705.07115. ``"log1p"``: Liebel and Körner, arXiv:1805.06334; for ``"laplace"``, where there is
        no sigma, we read it as ln(1 + b^2).
    """
    on_loss = losses.new_tensor([_FORMS[form][0] for form in forms])
    on_noise = losses.new_tensor([_FORMS[form][1] for form in forms])
    penalty = on_noise * log_noise if regularizer == "log" else nn.functional.softplus(2 * on_noise * log_noise)
    return (on_loss * (-log_noise).exp() * losses + penalty).sum()


@final
class Uncertainty(LossBalancer):
    """Uncertainty weighting: the noise level of each task is learned with the network.

    See :func:`uncertainty_objective` for the mathematics.

    The balancer has parameters: give ``balancer.parameters()`` to the optimizer, as a group of their own with
    ``weight_decay=0``. Weight decay would pull every noise level towards 1 and so change the method without a sign.
    Losses must not be negative.

    Args:
        num_tasks: Number of tasks K.
        tasks: Names of the tasks.
        form: ``"half"`` (what most code uses for every task), ``"laplace"`` or ``"classification"``; one for all
            tasks, or one per task as a sequence or by task name.
        regularizer: ``"log"`` (the paper) or ``"log1p"`` (Liebel and Körner).
        initial: First value of the learned scalars, one for all or one per task. Released codes differ: 0, -0.5, -0.7.
    """

    key = "uncertainty"
    equation = "L = sum_i exp(-s_i) L_i / 2 + s_i / 2,  s_i = ln sigma_i^2 learned"
    source = "Kendall, Gal, Cipolla, Multi-Task Learning Using Uncertainty to Weigh Losses, CVPR 2018, arXiv:1705.07115"
    provenance = "paper; log1p from Liebel and Körner 2018, for Laplace noise our reading of it"
    scale = "likelihood: weights exp(-s_i) / 2, or exp(-s_i)"
    avoid = (
        "Where a loss can be negative (refused) or comes near 0, since its weight then grows like 1 / L; or where the "
        "balancer's parameters are in no optimizer, for then nothing is learned. It sees no conflicts, and weights "
        "move only as fast as their learning rate allows."
    )
    nonnegative_losses = True

    log_noise: nn.ParameterList

    def __init__(
        self,
        num_tasks: int | None = None,
        *,
        tasks: Sequence[str] | None = None,
        form: str | Sequence[str] | Mapping[str, str] = "half",
        regularizer: str = "log",
        initial: float | Sequence[float] | Mapping[str, float] = 0.0,
    ) -> None:
        super().__init__(num_tasks, tasks)
        self.regularizer = check_choice("Uncertainty: regularizer", regularizer, _REGULARIZERS)
        forms = check_per_task("Uncertainty: form", form, self.num_tasks, self.tasks)
        self._forms = [check_choice("Uncertainty: form", one, _FORMS) for one in forms]
        self.form = form
        first = check_per_task("Uncertainty: initial", initial, self.num_tasks, self.tasks)
        self.initial = initial
        self.add_parameter("log_noise", [check_range("Uncertainty: initial", s, low=-80.0, high=80.0) for s in first])

    def objective(self, losses: Tensor, *, present: Sequence[int] | None = None) -> Tensor:
        """Return the objective of one step; see :func:`uncertainty_objective`."""
        positions = self._positions(len(losses), present)
        log_noise = torch.stack([self.log_noise[task] for task in positions]).to(losses)
        forms = [self._forms[task] for task in positions]
        return uncertainty_objective(losses, log_noise, forms, regularizer=self.regularizer)
