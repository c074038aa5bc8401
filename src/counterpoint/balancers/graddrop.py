"""GradDrop: one sign for each coordinate of the update."""

from collections.abc import Mapping, Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from counterpoint._checks import check_per_task, check_range
from counterpoint.balancers._base import JacobianBalancer

_ENTRIES = 131_072  # of the matrix at a time, so that what is made on the way stays small


def graddrop_direction(
    jacobian: Float[Tensor, "K P"], uniform: Float[Tensor, " P"], leak: Float[Tensor, " K"]
) -> Float[Tensor, " P"]:
    """Return the sum of the gradients, each coordinate from the tasks of one sign only.

    Per coordinate, with g_i its entry for task i, the sign purity is ``P = (1 + sum_i g_i / sum_i |g_i|) / 2``. With
    u uniform in [0, 1) the positive entries are kept if P > u, else the negative ones. A task keeps the share
    ``leak`` of what is dropped. For leak 0 the expectation is the plain sum: P pos + (1 - P) neg = pos + neg.

    Args:
        jacobian: One gradient per task.
        uniform: The draw u of each coordinate, common to all tasks.
        leak: Share of each task's gradient that is never dropped, in [0, 1].

    Returns:
        The combined gradient, in the dtype of ``jacobian``; 0 where all entries are 0.

    Example:
        >>> jacobian = torch.tensor([[3.0, 3.0], [-1.0, -1.0]])
        >>> graddrop_direction(jacobian, torch.tensor([0.7, 0.8]), torch.zeros(2))
        tensor([ 3., -1.])

    References:
        Chen et al., "Just Pick a Sign: Optimizing Deep Multitask Models with Gradient Sign Dropout", NeurIPS 2020,
        arXiv:2010.06808, with f the identity, on gradients of parameters; at ``level="features"`` on those
        of features, without the paper's sum over the batch of gradients signed by the activation. Differs
        where the draw equals the purity: the paper drops both signs there, here the negative ones are kept, so that
        the expectation is exact.
    """
    direction, total = _choose(jacobian, uniform, leak, careful=False)
    if not _in_range(total):  # sums of entries near the largest or the smallest number
        direction, _ = _choose(jacobian, uniform, leak, careful=True)
    return direction


def _choose(jacobian: Tensor, uniform: Tensor, leak: Tensor, *, careful: bool) -> tuple[Tensor, Tensor]:
    """Return the combined gradient, and ``sum_i |g_i|`` of each coordinate (what is compared, if ``careful``).

    Args:
        jacobian: One gradient per task.
        uniform: The draw of each coordinate.
        leak: Share of each task's gradient that is never dropped.
        careful: Divide by the largest entry of each coordinate before sums are compared.
    """
    dtype = torch.promote_types(torch.float32, jacobian.dtype)
    kept, passed = (1 - leak.to(jacobian.device, dtype)), leak.to(jacobian.device, dtype)
    leaking = bool(leak.any())
    direction, totals = jacobian.new_empty(2, jacobian.shape[1], dtype=dtype)
    everyone, width = torch.ones_like(kept), max(_ENTRIES // max(len(jacobian), 1), 1)
    size = min(width, jacobian.shape[1])
    scratch = jacobian.new_empty(len(jacobian) + 1, size, dtype=dtype)  # for all blocks: fresh memory is dear
    for start in range(0, jacobian.shape[1], width):
        block = jacobian[:, start : start + width].to(dtype)
        here = slice(start, start + block.shape[1])
        part, wins = scratch[:-1, : block.shape[1]], scratch[-1, : block.shape[1]]
        unit = None
        if careful:
            peak = block.abs().amax(dim=0)
            unit = torch.where(peak > 0, peak, 1.0)
        sums = []
        for low, high in ((0, None), (None, 0)):  # what is positive, then what is negative
            torch.clamp(block, min=low, max=high, out=part)
            plain = everyone @ part
            compared = plain if unit is None else everyone @ (part / unit)
            sums.append((kept @ part if leaking else plain, compared))
        (up, positive), (down, negative) = sums
        total = torch.sub(positive, negative, out=totals[here])
        torch.gt(positive, uniform[here].to(total) * total, out=wins)
        if careful:  # the difference of the two may overflow
            torch.where(wins > 0, up, down, out=direction[here])
        else:
            torch.lerp(down, up, wins, out=direction[here])  # by 0 or 1: one of the two, in a fifth of the time
        if leaking:
            direction[here] += passed @ block
    return direction.to(jacobian.dtype), totals


def _in_range(total: Tensor) -> bool:
    """Return whether no sum overflows and none but zeros is near the smallest number."""
    if not total.numel():
        return True
    least, largest = (float(value) for value in total.aminmax())
    if least == 0.0 and largest < float("inf"):
        least = float(torch.where(total > 0, total, 1.0).amin())
    return largest < float("inf") and least > torch.finfo(total.dtype).tiny * 1e8


@final
class GradDrop(JacobianBalancer):
    """GradDrop: at each coordinate a random sign wins, and tasks that pull the other way are dropped.

    See :func:`graddrop_direction` for the mathematics.

    Args:
        num_tasks: Number of tasks K.
        tasks: Names of the tasks.
        leak: Share of a gradient that is never dropped, in [0, 1]; one for all tasks, or one per task as a sequence or
            by task name. 1 for a task means that nothing of it is dropped.
        generator: Source of the draws.
    """

    key = "graddrop"
    equation = "v_k = sum of the entries of one sign; positive with probability (1 + sum_i g_ik / sum_i |g_ik|) / 2"
    source = "Chen et al., Just Pick a Sign, NeurIPS 2020, arXiv:2010.06808"
    provenance = "paper (f the identity), on gradients of parameters as most released codes do"
    scale = "sum"
    avoid = (
        "Where memory is short, since all K gradients of the shared parameters are formed; or where runs are short, "
        "since random draws decide the sign of every coordinate. In expectation it is the plain sum, so long "
        "gradients dominate it."
    )

    def __init__(
        self,
        num_tasks: int | None = None,
        *,
        tasks: Sequence[str] | None = None,
        leak: float | Sequence[float] | Mapping[str, float] = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(num_tasks, tasks, generator, random=True)
        listed = check_per_task("GradDrop: leak", leak, self.num_tasks, self.tasks)
        self._listed = [float(check_range("GradDrop: leak", share, low=0.0, high=1.0)) for share in listed]
        self.leak = leak

    def aggregate(self, jacobian: Tensor, losses: Tensor | None, present: tuple[int, ...]) -> Tensor:  # noqa: ARG002
        """Return the direction of one step; see :func:`graddrop_direction`."""
        uniform = torch.rand(jacobian.shape[1], generator=self.generator)
        leak = torch.tensor([self._listed[task] for task in present])
        return graddrop_direction(jacobian, uniform, leak)
