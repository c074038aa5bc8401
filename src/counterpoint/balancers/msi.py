"""MSI: gradient lengths brought nearer to each other."""

from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from counterpoint.balancers._magnitude import MagnitudeBalancer
from counterpoint.linalg import random_orders
from counterpoint.solvers.magnitude import MagnitudeRule, MagnitudeState, rescaled_weights


def msi_weights(
    gram: Float[Tensor, "K K"], state: MagnitudeState, orders: Int[Tensor, "K K-1"], options: MagnitudeRule
) -> tuple[Float[Tensor, " K"], MagnitudeState]:
    """Return the factors s_i of the task gradients, and the new state.

    The magnitude similarity of two gradients is ``phi = 2 |a| |b| / (|a|^2 + |b|^2)``. Directions never change. Rules:

    - ``"pair"``: if the phi of a pair is below its running mean, both lengths are moved until phi equals it, keeping
      ``|a|^2 + |b|^2`` and their order (:func:`~counterpoint.solvers.magnitude.pair_scales`);
    - ``"vaccine"``: the same, one partner after another in random order, as in GradVac
      (:func:`~counterpoint.solvers.magnitude.vaccine_scales`);
    - ``"learned"``: ``s_i = exp(a_i)``, with a by gradient descent on ``sum_{i<j} (1 - phi)``
      (:func:`~counterpoint.solvers.magnitude.learned_log_scales`).

    Args:
        gram: Inner products of the task gradients, symmetric positive semi-definite.
        state: What is remembered.
        orders: Orders for the rule ``"vaccine"``.
        options: The rule and its constants.

    Returns:
        Weights, positive, 0 for a zero gradient; and the new state. Pairs with a zero gradient move no state.

    Example:
        >>> gram = torch.tensor([[1.0, 0.0], [0.0, 25.0]], dtype=torch.float64)
        >>> orders = torch.tensor([[1], [0]])
        >>> msi_weights(gram, MagnitudeState.initial(2), orders, MagnitudeRule(static_target=0.8))[0]
        tensor([2.2804, 0.9121], dtype=torch.float64)

    References:
        Jiang et al., "Mitigating Scale Imbalance and Conflicting Gradients in Deep Multi-Task Learning", Frontiers of
        Computer Science, DOI 10.1007/s11704-024-40632-2. The formulas could not be obtained: all three rules are
        readings of its abstract and figure, not the published algorithm.
    """
    return rescaled_weights(gram, torch.eye(len(gram), dtype=gram.dtype), state, orders, options)


@final
class MSI(MagnitudeBalancer):
    """MSI: rescales the task gradients by their magnitude similarity; see :func:`msi_weights`. A reconstruction.

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
        generator: Source of the random orders of ``"vaccine"``.
    """

    key = "msi"
    equation = (
        "v = sum_i s_i g_i, s moves each pair of lengths to the running mean of 2 |g_i| |g_j| / (|g_i|^2 + |g_j|^2)"
    )
    source = "Jiang et al., Mitigating Scale Imbalance and Conflicting Gradients, Frontiers of Computer Science, 2024"
    provenance = "our reading of the abstract; the paper's formulas could not be obtained"
    scale = "sum, total squared length kept (pair)"
    avoid = (
        "Where gradients conflict: it changes lengths, never directions. Where the published method is wanted: this "
        "is our reading of an abstract."
    )

    def rescale(self, gram: Tensor, state: MagnitudeState, options: MagnitudeRule) -> tuple[Tensor, MagnitudeState]:
        """Return the weights and the new state; see :func:`msi_weights`."""
        orders = random_orders(len(gram), self.generator)
        return msi_weights(gram, state, orders, options)
