"""POMSI: conflicting gradients projected, then their lengths brought nearer to each other."""

from typing import final

from jaxtyping import Float, Int
from torch import Tensor

from counterpoint.balancers._magnitude import MagnitudeBalancer
from counterpoint.linalg import projected_rows, random_orders
from counterpoint.solvers.magnitude import MagnitudeRule, MagnitudeState, rescaled_weights


def pomsi_weights(
    gram: Float[Tensor, "K K"],
    state: MagnitudeState,
    projection_orders: Int[Tensor, "K K-1"],
    orders: Int[Tensor, "K K-1"],
    options: MagnitudeRule,
) -> tuple[Float[Tensor, " K"], MagnitudeState]:
    """Return the weights of ``sum_i s_i p_i``, with p_i the projected gradients of PCGrad, and the new state.

    Lengths are measured after the projection, as ``c A c`` with c the coefficients of p_i. The factors s_i follow one
    of the rules ``"pair"``, ``"vaccine"`` and ``"learned"`` of MSI, applied to the p_i. For two tasks the projection
    leaves the similarity of the lengths what it is.

    Args:
        gram: Inner products A of the task gradients, symmetric positive semi-definite.
        state: What is remembered.
        projection_orders: Row i lists the other tasks in the order in which g_i is projected.
        orders: Orders for the rule ``"vaccine"``.
        options: The rule and its constants.

    Returns:
        Weights of the original gradients, at least 0; and the new state.

    Example:
        >>> import torch
        >>> gram = torch.tensor([[1.0, -4.0], [-4.0, 25.0]], dtype=torch.float64)  # of (1, 0) and (-4, 3)
        >>> orders = torch.tensor([[1], [0]])
        >>> pomsi_weights(gram, MagnitudeState.initial(2), orders, orders, MagnitudeRule(static_target=0.8))[0]
        tensor([5.9289, 1.2770], dtype=torch.float64)

    References:
        Jiang et al., "Mitigating Scale Imbalance and Conflicting Gradients in Deep Multi-Task Learning", Frontiers of
        Computer Science, DOI 10.1007/s11704-024-40632-2. Projection before rescaling is the order of its figure; the
        formulas could not be obtained, and the rules are our readings.
    """
    return rescaled_weights(gram, projected_rows(gram, projection_orders), state, orders, options)


@final
class POMSI(MagnitudeBalancer):
    """POMSI: PCGrad's projections, then MSI on the projected gradients; see :func:`pomsi_weights`. A reconstruction.

    With ``static_target`` it is what the paper calls POMSI-static, whose constant is not known.

    Args:
        num_tasks: Number of tasks K.
        tasks: Names of the tasks.
        rule: ``"pair"`` (default), ``"vaccine"`` or ``"learned"``.
        static_target: Constant target similarity in [0, 1] in place of the running mean; 1 makes a pair equal in
            length. For ``"learned"`` only 1: factors from the first step, kept.
        s_max: Factors are kept within [1 / s_max, s_max]; 10 is sensible in training. ``None``: no bound.
        reduction: ``"sum"`` or ``"mean"`` over the tasks of the step.
        beta: Rate of the running mean of the similarity, in [0, 1]; 0.01 is borrowed from GradVac.
        learning_rate: Step size of ``"learned"``.
        generator: Source of the random orders.
    """

    key = "pomsi"
    equation = "v = sum_i s_i p_i,  p = projections of PCGrad,  s = factors of MSI for the lengths |p_i|"
    source = "Jiang et al., Mitigating Scale Imbalance and Conflicting Gradients, Frontiers of Computer Science, 2024"
    provenance = "projection then rescaling from the paper's figure; the rescaling is our reading"
    scale = "sum, total squared length of the projected gradients kept (pair)"
    avoid = (
        "Where the published method is wanted: the rescaling is our reading of an abstract. With three tasks or more "
        "the result depends on a random order and can still conflict."
    )

    def rescale(self, gram: Tensor, state: MagnitudeState, options: MagnitudeRule) -> tuple[Tensor, MagnitudeState]:
        """Return the weights and the new state; see :func:`pomsi_weights`."""
        projection_orders = random_orders(len(gram), self.generator)
        return pomsi_weights(gram, state, projection_orders, random_orders(len(gram), self.generator), options)
