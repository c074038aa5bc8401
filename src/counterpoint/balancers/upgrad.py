"""UPGrad: every task gradient is projected so that it harms no task, and the projections are added."""

from typing import final

from jaxtyping import Float
from torch import Tensor

from counterpoint.balancers._dual_cone import DualConeBalancer
from counterpoint.solvers.cone import project_rows_to_dual_cone, regularized


def upgrad_weights(
    gram: Float[Tensor, "K K"], preference: Float[Tensor, " K"], *, torchjd_compat: bool = False
) -> tuple[Float[Tensor, " K"], float]:
    """Return the weights of ``v = sum_i p_i proj(g_i)``, and the residual of the solver.

    ``proj`` is the projection onto the vectors that have a product of at least 0 with every task gradient. So v
    conflicts with none, and it is 0 only at Pareto-stationary points. For two tasks it is half of PCGrad's v.

    Args:
        gram: Inner products of the task gradients, symmetric positive semi-definite.
        preference: p, at least 0.
        torchjd_compat: Add 1e-4 of the trace to the diagonal and give up projecting where the squared lengths sum to
            less than 1e-4, as TorchJD does by default. The conflicts of short gradients are then kept.

    Returns:
        Weights, at least p; and the largest violation of the optimality conditions.

    Example:
        >>> import torch
        >>> upgrad_weights(torch.tensor([[1.0, -1.0], [-1.0, 4.0]], dtype=torch.float64), torch.ones(2))[0]
        tensor([2.0000, 1.2500], dtype=torch.float64)

    References:
        Quinton and Rey, "Jacobian Descent for Multi-Objective Optimization", arXiv:2406.16232.
    """
    small = gram.double()
    rows, residual = project_rows_to_dual_cone(regularized(small) if torchjd_compat else small)
    return (preference.to(rows) @ rows).to(gram), residual


@final
class UPGrad(DualConeBalancer):
    """UPGrad: the mean of the projections of the task gradients onto their dual cone; see :func:`upgrad_weights`.

    The K projections take about 1 ms for 40 tasks and half a second for 300; the cost grows with K^4.

    Args:
        num_tasks: Number of tasks K.
        tasks: Names of the tasks.
        preference: How much the projection of each gradient counts, at least 0, in the order of the tasks or by task
            name, used as it is. Default: 1 / K.
        torchjd_compat: Whether to regularize as TorchJD does by default; conflicts with short gradients stay.
    """

    key = "upgrad"
    equation = "v = sum_i p_i proj(g_i),  proj onto {x: <x, g_j> >= 0 for all j}"
    source = "Quinton and Rey, Jacobian Descent for Multi-Objective Optimization, arXiv:2406.16232"
    provenance = "paper, projections exact; the option torchjd_compat checked against TorchJD"
    scale = "mean"
    avoid = (
        "Where losses differ in size: it is a mean of projected gradients, and long ones dominate it. It takes one "
        "small quadratic problem a task at every step."
    )

    def project(self, gram: Tensor, preference: Tensor) -> tuple[Tensor, float]:
        """Return the weights and the residual; see :func:`upgrad_weights`."""
        return upgrad_weights(gram, preference, torchjd_compat=self.torchjd_compat)
