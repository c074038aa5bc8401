"""UW-SO and UW-O: uncertainty weighting with the noise levels at their optimum instead of learned."""

from collections.abc import Sequence
from typing import final

from jaxtyping import Float
from torch import Tensor

from counterpoint._checks import check_choice, check_range
from counterpoint.balancers._base import LossBalancer

_FORMS = ("softmax", "inverse")
_SMALLEST = 1e-8  # a smaller loss counts as this one in its weight


def uw_so_weights(
    losses: Float[Tensor, " K"], *, temperature: float = 1.0, form: str = "softmax"
) -> Float[Tensor, " K"]:
    """Return weights from the inverse of each loss, which is the optimal precision of uncertainty weighting.

    ``"softmax"`` (UW-SO) is ``softmax(1 / (temperature L))``; ``"inverse"`` (UW-O) is ``1 / L``. UW-SO sees the scale
    of the losses, and is close to one-hot if one of them is tiny: bring them to similar size first.

    Args:
        losses: Losses, at least 0; in the weights a loss below 1e-8 counts as 1e-8, so that they stay finite.
        temperature: Larger is more even, above 0; tuned for each data set in the paper. Not read by ``"inverse"``.
        form: ``"softmax"`` or ``"inverse"``.

    Returns:
        Weights, at least 0, without a graph; with ``"softmax"`` they sum to 1.

    Example:
        >>> import torch
        >>> uw_so_weights(torch.tensor([0.5, 4.0]), form="inverse")
        tensor([2.0000, 0.2500])

    References:
        Kirchdorfer et al., "Analytical Uncertainty-Based Loss Weighting in Multi-Task Learning", GCPR 2024,
        arXiv:2408.07985. Factors 1/2 of the Gaussian form are left out of ``"inverse"``.
    """
    precision = 1 / losses.detach().clamp(min=_SMALLEST)
    return precision if form == "inverse" else (precision / temperature).softmax(dim=0)


@final
class UWSO(LossBalancer):
    """UW-SO: softmax of the inverse losses, or with ``form="inverse"`` UW-O; see :func:`uw_so_weights`.

    Losses must not be negative.

    Args:
        num_tasks: Number of tasks K.
        tasks: Names of the tasks.
        temperature: Temperature T of the softmax, above 0.
        form: ``"softmax"`` (UW-SO) or ``"inverse"`` (UW-O).
    """

    key = "uw_so"
    equation = "w = softmax(1 / (T L)), or w = 1 / L, as constants"
    source = "Kirchdorfer et al., Analytical Uncertainty-Based Loss Weighting, GCPR 2024, arXiv:2408.07985"
    provenance = "paper; the default temperature 1 is that of other code"
    scale = "weights sum to 1; with form='inverse' weights 1 / L_i"
    avoid = (
        "Where losses differ in size by more than ten times: the softmax of 1 / L then trains the task with the "
        "smallest loss alone, unless the temperature is tuned to the problem. It sees no conflicts."
    )
    nonnegative_losses = True

    def __init__(
        self,
        num_tasks: int | None = None,
        *,
        tasks: Sequence[str] | None = None,
        temperature: float = 1.0,
        form: str = "softmax",
    ) -> None:
        super().__init__(num_tasks, tasks)
        self.temperature = check_range("UWSO: temperature", temperature, low=0.0, low_open=True, high_open=True)
        self.form = check_choice("UWSO: form", form, _FORMS)

    def objective(self, losses: Tensor, *, present: Sequence[int] | None = None) -> Tensor:
        """Return the objective of one step; see :func:`uw_so_weights`."""
        self._positions(len(losses), present)
        return (uw_so_weights(losses, temperature=self.temperature, form=self.form) * losses).sum()
