"""GradDrop: one sign for each coordinate of the update."""

from collections.abc import Mapping, Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from counterpoint._checks import check_per_task, check_range
from counterpoint.balancers._base import JacobianBalancer

_COLUMNS = 16_384  # columns at a time, so that what is made on the way stays small


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
    dtype = torch.promote_types(torch.float32, jacobian.dtype)
    kept, passed = (1 - leak.to(jacobian.device, dtype)), leak.to(jacobian.device, dtype)
    leaking = bool(leak.any())
    direction = jacobian.new_empty(jacobian.shape[1])
    widest = min(_COLUMNS, jacobian.shape[1])
    above, below = jacobian.new_empty(2, len(jacobian), widest, dtype=dtype)  # for all blocks: fresh memory is dear
    for start in range(0, jacobian.shape[1], _COLUMNS):
        block = jacobian[:, start : start + _COLUMNS].to(dtype)
        draw = uniform[start : start + _COLUMNS].to(block)
        width = block.shape[1]
        positive = torch.clamp(block, min=0, out=above[:, :width])
        negative = torch.clamp(block, max=0, out=below[:, :width])
        up, down = positive.sum(dim=0), negative.sum(dim=0)
        total = up - down
        if _in_range(total):
            wins = up > draw * total
        else:  # sums of entries near the largest or the smallest number
            unit = block.abs().amax(dim=0)
            unit = torch.where(unit > 0, unit, 1.0)
            share = (positive / unit).sum(dim=0)
            wins = share > draw * (share - (negative / unit).sum(dim=0))
        if leaking:
            up, down = kept @ positive, kept @ negative
        found = torch.where(wins, up, down)
        direction[start : start + _COLUMNS] = found + passed @ block if leaking else found
    return direction


def _in_range(total: Tensor) -> bool:
    """Return whether no sum overflows and none but zeros is near the smallest number."""
    least, largest = (float(value) for value in total.aminmax())
    tiny = torch.finfo(total.dtype).tiny * 1e8
    if not largest < float("inf"):
        return False
    return least > tiny or float(torch.where(total > 0, total, 1.0).amin()) > tiny


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
