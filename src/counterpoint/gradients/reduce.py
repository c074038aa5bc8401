"""Averages over the processes of a distributed run."""

import torch
import torch.distributed as dist
from torch import Tensor

from counterpoint.errors import ShapeError


def mean_over_ranks(tensor: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Return the mean of a tensor over the processes of the group; every process must call it."""
    total = tensor.detach().clone()
    dist.all_reduce(total, op=dist.ReduceOp.SUM, group=group)
    return total / dist.get_world_size(group)


def require_same_on_ranks(
    owner: str, what: str, values: list[int], group: dist.ProcessGroup, device: torch.device
) -> None:
    """Raise on every process if the values differ between the processes.

    Raises:
        ShapeError: If they differ.
    """
    local = torch.tensor(values, device=device)
    extremes = torch.stack([local, -local])
    dist.all_reduce(extremes, op=dist.ReduceOp.MAX, group=group)
    if not torch.equal(extremes[0], -extremes[1]):
        raise ShapeError(
            f"{owner}: {what} must be the same in every process of the group, got {values} here; "
            "give every process a batch with the same tasks, or leave the task out on all of them"
        )
