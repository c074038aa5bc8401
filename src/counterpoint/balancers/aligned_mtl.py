"""Aligned-MTL: task gradients made orthogonal and equally long, as a whole."""

from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from counterpoint._checks import check_choice, check_range
from counterpoint.balancers._base import GramBalancer
from counterpoint.balancers._preference import Preference, check_preference, preference_of

SCALES = ("min", "median", "rmse")
_EPS = 2.0**-52


def aligned_mtl_weights(
    gram: Float[Tensor, "K K"], preference: Float[Tensor, " K"], *, scale_mode: str = "min", eps: float = _EPS
) -> Float[Tensor, " K"]:
    """Return the weights ``B p`` with ``B = sigma V diag(lambda^-1/2) V^T`` from the eigenvalues of the Gram matrix.

    The rows ``B G`` span the same space as the gradients G, and all their nonzero singular values are sigma. v = 0 only
    where no preference is left in the span. It can conflict with single gradients: ``A w = sigma A^(1/2) p``.

    Args:
        gram: Inner products A of the task gradients, symmetric positive semi-definite.
        preference: p, how much each task counts.
        scale_mode: sigma^2 is the least (``"min"``, the paper), the lower median (``"median"``) or the mean
            (``"rmse"``) of the eigenvalues that count.
        eps: Accuracy of the Gram matrix: eigenvalues up to K eps times the largest one count as zero.

    Returns:
        Weights of degree 0 in the gradients; they can be negative. Without any gradient, p itself.

    Example:
        >>> aligned_mtl_weights(torch.tensor([[4.0, 0.0], [0.0, 1.0]]), torch.ones(2))
        tensor([0.5000, 1.0000])

    References:
        Senushkin et al., "Independent Component Alignment for Multi-Task Learning", CVPR 2023, arXiv:2305.19000.
        Released codes take the accuracy of float32 (1.2e-7) for eps whatever the matrix; here the matrix
        is summed in float64, and that value would drop tasks whose gradients are 1e-3 times shorter.
    """
    values, vectors = torch.linalg.eigh(gram)
    kept = values > len(gram) * eps * values[-1].clamp(min=0)
    if not bool(kept.any()):
        return preference.to(gram)
    values, vectors = values[kept], vectors[:, kept]
    square = {"min": values[0], "median": values.median(), "rmse": values.mean()}[scale_mode]
    return vectors @ ((square / values).sqrt() * (vectors.T @ preference.to(gram)))


@final
class AlignedMTL(GramBalancer):
    """Aligned-MTL: the combination of gradients made orthogonal, at one scale; see :func:`aligned_mtl_weights`.

    At ``level="features"`` it is Aligned-MTL-UB.

    Args:
        num_tasks: Number of tasks K.
        tasks: Names of the tasks.
        scale_mode: ``"min"`` (the paper), ``"median"`` or ``"rmse"``: which singular value all get.
        preference: How much each task counts, at least 0, in the order of the tasks or by task name. Default: 1 / K,
            the mean of the aligned gradients; the released code has 1, the sum.
        eps: Accuracy of the Gram matrix, in [0, 1): eigenvalues up to K eps times the largest one count as zero.
        task_gradients: What task parameters get: ``"raw"``, the gradient of their own loss, or ``"weighted"``, the same
            times the task's weight, which can be negative (an option of the released code).
    """

    key = "aligned_mtl"
    equation = "v = sigma G^T (G G^T)^(-1/2) p,  sigma = least singular value of G"
    source = "Senushkin et al., Independent Component Alignment, CVPR 2023, arXiv:2305.19000"
    provenance = "paper; scale modes from the released code"
    scale = "length sigma |p| for independent gradients: sigma / sqrt(K)"
    avoid = (
        "Where gradients are nearly dependent or one is very short: with scale_mode='min' the whole update is as "
        "short as their least singular value. It can conflict with single tasks."
    )

    def __init__(
        self,
        num_tasks: int | None = None,
        *,
        tasks: Sequence[str] | None = None,
        scale_mode: str = "min",
        preference: Preference | None = None,
        eps: float = _EPS,
        task_gradients: str = "raw",
    ) -> None:
        super().__init__(num_tasks, tasks)
        self.scale_mode = check_choice("AlignedMTL: scale_mode", scale_mode, SCALES)
        self._preference = check_preference("AlignedMTL", preference, self.num_tasks, self.tasks)
        self.preference = preference
        self.eps = check_range("AlignedMTL: eps", eps, low=0.0, high=1.0, high_open=True)
        self.task_gradients = check_choice("AlignedMTL: task_gradients", task_gradients, ("raw", "weighted"))

    def solve(self, gram: Tensor, losses: Tensor | None, present: tuple[int, ...]) -> Tensor:  # noqa: ARG002
        """Return the weights of one step; see :func:`aligned_mtl_weights`."""
        preference = preference_of(self._preference, present)
        return aligned_mtl_weights(gram, preference, scale_mode=self.scale_mode, eps=self.eps)
