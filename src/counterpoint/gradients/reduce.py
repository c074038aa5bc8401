"""Averages over the processes of a distributed run."""

import contextlib
from collections.abc import Iterable, Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from counterpoint.errors import CounterpointError, OptionError, ShapeError

_BUCKET = 1 << 23  # elements sent at once: few messages, and no second copy of a whole model


def mean_over_ranks(tensor: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Return the mean of a tensor over the processes of the group; every process must call it."""
    total = tensor.detach().clone()
    dist.all_reduce(total, op=dist.ReduceOp.SUM, group=group)
    return total / dist.get_world_size(group)


def average_over_ranks(tensors: Iterable[Tensor], group: dist.ProcessGroup) -> None:
    """Replace each tensor, in place, by its mean over the processes; they are sent in few messages.

    Raises:
        OptionError: If one is sparse.
    """
    bucket: list[Tensor] = []
    for tensor in tensors:
        if tensor.is_sparse:
            raise OptionError(
                "process_group: sparse gradients cannot be averaged over processes; build the embedding with "
                "sparse=False"
            )
        fits = not bucket or (tensor.dtype, tensor.device) == (bucket[0].dtype, bucket[0].device)
        if bucket and (not fits or sum(map(torch.numel, bucket)) + tensor.numel() > _BUCKET):
            _average_bucket(bucket, group)
            bucket = []
        bucket.append(tensor)
    if bucket:
        _average_bucket(bucket, group)


def _average_bucket(bucket: Sequence[Tensor], group: dist.ProcessGroup) -> None:
    alone = len(bucket) == 1 and bucket[0].is_contiguous()
    flat = bucket[0].detach() if alone else torch.cat([tensor.detach().flatten() for tensor in bucket])
    dist.all_reduce(flat, op=dist.ReduceOp.SUM, group=group)
    flat.div_(dist.get_world_size(group))
    if not alone:
        for tensor, piece in zip(bucket, flat.split([tensor.numel() for tensor in bucket]), strict=True):
            tensor.detach().copy_(piece.view(tensor.shape))


def gather_columns(rows: Tensor, group: dist.ProcessGroup) -> tuple[Tensor, slice]:
    """Put the columns (K, N_r) of all processes side by side; the second value says which are this process's."""
    count = torch.tensor([rows.shape[1]], device=rows.device)
    counts = [torch.empty_like(count) for _ in range(dist.get_world_size(group))]
    dist.all_gather(counts, count, group=group)
    sizes = [int(size) for size in counts]
    padded = rows.new_zeros(len(rows), max(sizes))
    padded[:, : rows.shape[1]] = rows
    pieces = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(pieces, padded, group=group)
    start = sum(sizes[: dist.get_rank(group)])
    whole = torch.cat([piece[:, :size] for piece, size in zip(pieces, sizes, strict=True)], dim=1)
    return whole, slice(start, start + rows.shape[1])


def synchronize_generator(generator: torch.Generator, group: dist.ProcessGroup) -> None:
    """Give the generator the state of the first process's, so that all processes draw the same numbers."""
    state = generator.get_state().to(_device(group))
    dist.broadcast(state, src=dist.get_global_rank(group, 0), group=group)
    generator.set_state(state.cpu())


@contextlib.contextmanager
def together(owner: str, group: dist.ProcessGroup | None) -> Iterator[None]:
    """Make an error inside the block an error on every process, so that none waits forever for the others.

    Raises:
        CounterpointError: On the processes that had no error themselves.
    """
    error: Exception | None = None
    try:
        yield
    except Exception as caught:
        if group is None:
            raise
        error = caught
    if group is None:
        return
    failed = torch.tensor([int(error is not None)], device=_device(group))
    dist.all_reduce(failed, op=dist.ReduceOp.MAX, group=group)
    if error is not None:
        raise error
    if bool(failed):
        raise CounterpointError(
            f"{owner}: another process of the group refused its losses or gradients, so nothing was written to .grad "
            "here either; the message of that process says what is wrong"
        )


def _device(group: dist.ProcessGroup) -> torch.device:
    """Return a device whose tensors the group can send."""
    return torch.device("cuda" if dist.get_backend(group) == "nccl" else "cpu")


def require_same_on_ranks(owner: str, what: str, values: list[int], group: dist.ProcessGroup) -> None:
    """Raise on every process if the values differ between the processes.

    Raises:
        ShapeError: If they differ.
    """
    local = torch.tensor(values, device=_device(group))
    extremes = torch.stack([local, -local])
    dist.all_reduce(extremes, op=dist.ReduceOp.MAX, group=group)
    if not torch.equal(extremes[0], -extremes[1]):
        raise ShapeError(
            f"{owner}: {what} must be the same in every process of the group, got {values} here; "
            "give every process a batch with the same tasks, or leave the task out on all of them"
        )
