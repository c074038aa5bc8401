"""GradDrop: one sign for each coordinate of the update."""

from collections.abc import Callable, Mapping, Sequence
from typing import final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from counterpoint._checks import check_per_task, check_range
from counterpoint.balancers._base import JacobianBalancer

_ENTRIES = 2_097_152  # of the matrix at a time: few calls, and what is made on the way stays in a cache
_PARTS = 4  # at least so many, so that it is little beside the matrix


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
        the expectation is exact. Rounding is that of the sum of the lengths: a small sum of one sign beside a large one
        of the other has an error of a few 2^-24 of the large one.
    """
    return _by_blocks(jacobian, lambda start, count: uniform[start : start + count], leak)


def _by_blocks(jacobian: Tensor, draw: Callable[[int, int], Tensor], leak: Tensor) -> Tensor:
    """Return the combined gradient; ``draw`` gives the draws of a number of coordinates from one on."""
    dtype = torch.promote_types(torch.float32, jacobian.dtype)
    leak = leak.to(jacobian.device, dtype)
    num_tasks, num_columns = jacobian.shape
    width = max(min(_ENTRIES // max(num_tasks, 1), num_columns // _PARTS + 1) // 2 * 2, 2)  # even: draws come in pairs
    direction = jacobian.new_empty(num_columns)
    scratch = jacobian.new_empty(num_tasks, width, dtype=dtype)  # for all blocks: fresh memory is dear
    for start in range(0, num_columns, width):
        block = jacobian[:, start : start + width].to(dtype)
        count = block.shape[1]
        uniform = draw(start, count).to(block)
        direction[start : start + count] = _choose(block, uniform, leak, scratch[:, :count])
    return direction


def _choose(block: Tensor, uniform: Tensor, leak: Tensor, scratch: Tensor) -> Tensor:
    """Return the combined gradient of some coordinates, from ``S = sum_i g_i`` and ``A = sum_i |g_i|``.

    The sum of the positive entries is (A + S) / 2, that of the negative ones (S - A) / 2, and P > u where
    ``S > (2 u - 1) A``: two sums instead of two selections and their sums.
    """
    lengths, minus = torch.abs(block, out=scratch), -torch.ones_like(leak)
    everything, total = block.mT @ minus, lengths.mT @ -minus  # -S and A
    if not _in_range(total):  # sums of entries near the largest or the smallest number
        return _choose_carefully(block, uniform, leak)
    loses = torch.addcmul(everything, uniform.mul(2.0).sub_(1.0), total)  # negative where the positive entries win
    if not bool(leak.any()):
        return torch.copysign(total, loses, out=loses).add_(everything).mul_(-0.5)
    dropping = leak - 1
    chosen = torch.copysign(-dropping @ lengths, loses).add_(dropping @ block).mul_(-0.5)
    return chosen.add_(leak @ block)


def _choose_carefully(block: Tensor, uniform: Tensor, leak: Tensor) -> Tensor:
    """Return the same, each coordinate divided by its largest entry before sums are compared."""
    peak = block.abs().amax(dim=0)
    scaled = block / torch.where(peak > 0, peak, 1.0)
    positive, negative = scaled.clamp(min=0).sum(dim=0), scaled.clamp(max=0).sum(dim=0)
    wins = positive > uniform * (positive - negative)
    up, down = ((1 - leak) @ block.clamp(min=0), (1 - leak) @ block.clamp(max=0))
    return torch.where(wins, up, down) + leak @ block


def _in_range(total: Tensor) -> bool:
    """Return whether no sum overflows and none but zeros is near the smallest number."""
    if not total.numel():
        return True
    least, largest = (float(value) for value in total.aminmax())
    if least == 0.0 and largest < float("inf"):
        least = float(torch.where(total > 0, total, 1.0).amin())
    limits = torch.finfo(total.dtype)
    return largest < limits.max / 4 and least > limits.tiny * 1e8


class _Draws:
    """Draws from [0, 1) in steps of 2^-24, as ``torch.rand`` makes them, in a third of its time.

    One number of the generator seeds NumPy's SFC64, whose 64 random bits are two draws.

    Args:
        generator: Where the seed comes from; ``None`` for the global one.
    """

    def __init__(self, generator: torch.Generator | None) -> None:
        self._source = np.random.SFC64(int(torch.randint(2**63 - 1, (), generator=generator)))

    def __call__(self, _start: int, count: int) -> Tensor:  # they are drawn in order
        bits = torch.from_numpy(self._source.random_raw((count + 1) // 2).view(np.int32))[:count]
        return bits.bitwise_right_shift_(8).mul(2.0**-24).add_(0.5)


@final
class GradDrop(JacobianBalancer):
    """GradDrop: at each coordinate a random sign wins, and tasks that pull the other way are dropped.

    See :func:`graddrop_direction` for the mathematics.

    Args:
        num_tasks: Number of tasks K.
        tasks: Names of the tasks.
        leak: Share of a gradient that is never dropped, in [0, 1]; one for all tasks, or one per task as a sequence or
            by task name. 1 for a task means that nothing of it is dropped.
        generator: Source of one number a step, which seeds the draws (NumPy's SFC64).
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
        leak = torch.tensor([self._listed[task] for task in present], dtype=torch.float64)
        return _by_blocks(jacobian, _Draws(self.generator), leak)
