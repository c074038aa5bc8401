"""DualProj: the mean gradient, projected so that it harms no task."""

from typing import final

from jaxtyping import Float
from torch import Tensor

from counterpoint.balancers._dual_cone import DualConeBalancer
from counterpoint.solvers.cone import project_to_dual_cone, regularized


def dual_proj_weights(
    gram: Float[Tensor, "K K"], preference: Float[Tensor, " K"], *, torchjd_compat: bool = False
) -> tuple[Float[Tensor, " K"], float]:
    """Return the weights of the projection of ``sum_i p_i g_i`` onto the dual cone, and the residual of the solver.

    v is the nearest vector to the weighted sum that has a product of at least 0 with every task gradient. Where the sum
    conflicts with none it stays as it is; else v mostly has a product of 0 with some, so these make no progress.

    Args:
        gram: Inner products of the task gradients, symmetric positive semi-definite.
        preference: p, at least 0.
        torchjd_compat: Add 1e-4 of the trace to the diagonal and give up projecting where the squared lengths sum to
            less than 1e-4, as TorchJD does by default. The conflicts of short gradients are then kept.

    Returns:
        Weights, at least p; and the largest violation of the optimality conditions.

    Example:
        >>> import torch
        >>> dual_proj_weights(torch.tensor([[1.0, -1.0], [-1.0, 4.0]]), torch.tensor([3.0, 0.0]))[0]
        tensor([3.0000, 0.7500])

    References:
        Lopez-Paz and Ranzato, "Gradient Episodic Memory for Continual Learning", NeurIPS 2017, arXiv:1706.08840,
        there with the gradient of a new task in place of the mean; under this name in Quinton and Rey,
        arXiv:2406.16232.
    """
    small = gram.double()
    found, residual = project_to_dual_cone(regularized(small) if torchjd_compat else small, preference.to(small))
    return found.to(gram), residual


@final
class DualProj(DualConeBalancer):
    """DualProj: the mean gradient projected onto the dual cone of the task gradients; see :func:`dual_proj_weights`.

    Args:
        num_tasks: Number of tasks K.
        tasks: Names of the tasks.
        preference: How much each gradient counts before the projection, at least 0, in the order of the tasks or by
            task name, used as it is. Default: 1 / K.
        torchjd_compat: Whether to regularize as TorchJD does by default; conflicts with short gradients stay.
    """

    key = "dual_proj"
    equation = "v = proj(sum_i p_i g_i),  proj onto {x: <x, g_j> >= 0 for all j}"
    source = "Lopez-Paz and Ranzato, Gradient Episodic Memory, NeurIPS 2017, arXiv:1706.08840"
    provenance = "paper, for the mean of the task gradients; projection exact"
    scale = "mean"
    avoid = (
        "Where every task has to progress: if the mean conflicts with some tasks, the update mostly has a product of "
        "0 with them, so they stand still. Long gradients dominate the mean."
    )

    def project(self, gram: Tensor, preference: Tensor) -> tuple[Tensor, float]:
        """Return the weights and the residual; see :func:`dual_proj_weights`."""
        return dual_proj_weights(gram, preference, torchjd_compat=self.torchjd_compat)
