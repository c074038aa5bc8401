"""Writing gradients: added to what is in ``.grad``, and only after they have been checked."""

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

_SMALL, _FEW = 8192, 4  # entries of a tensor, and number of tensors, from which on a call of its own pays


@torch.no_grad()
def accumulate(pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Add to the ``.grad`` of leaves as autograd does; the gradients must not be used by anybody else afterwards."""
    for leaf, gradient in pairs:
        _accumulate(leaf, gradient)


def _accumulate(leaf: Tensor, gradient: Tensor) -> None:
    if gradient.dtype != leaf.dtype:
        gradient = gradient.to(leaf.dtype)
    old = leaf.grad
    if old is None:
        if not gradient.is_sparse and gradient.stride() != leaf.stride():
            gradient = torch.empty_like(leaf).copy_(gradient)  # memory is laid out as in the leaf
        leaf.grad = gradient
    elif old.is_sparse:
        leaf.grad = old + gradient if gradient.is_sparse else gradient + old  # dense + sparse, never the reverse
    else:
        old.add_(gradient)


@torch.no_grad()
def scaled_copies(gradients: Sequence[Tensor], factors: Sequence[float]) -> Sequence[Tensor]:
    """Return new tensors: each gradient times its factor. They may be of any dtype and layout."""
    if not gradients:
        return ()
    first = gradients[0]
    kind = (Tensor, torch.strided, first.dtype, first.device)
    if all((type(g), g.layout, g.dtype, g.device) == kind for g in gradients):
        return torch._foreach_mul(list(gradients), list(factors))  # pyright: ignore[reportPrivateImportUsage]
    return [gradient * factor for gradient, factor in zip(gradients, factors, strict=True)]


def backward_into(
    tensors: Sequence[Tensor],
    seeds: Sequence[Tensor | None],
    leaves: Iterable[Tensor],
    check: Callable[[Sequence[Tensor]], None],
    *,
    retain_graph: bool = False,
) -> None:
    """Run a backward pass that writes to ``.grad`` only if ``check`` accepts the new gradients.

    What is in ``.grad`` is set aside during the pass and comes back afterwards, with the new gradients added to it,
    or, after any error, as it was. Autograd's own accumulation writes the new ones, so layouts, sparse
    gradients and hooks are as after ``loss.backward()``, bit for bit.

    Args:
        tensors: What to differentiate.
        seeds: Their gradients; ``None`` for a scalar means one.
        leaves: The leaves that receive gradients.
        check: Called with the new gradients; raises to refuse them, and may change them in place.
        retain_graph: Keep the graph for another backward pass.
    """
    leaves = list(leaves)
    if not leaves:
        return
    before = [leaf.grad for leaf in leaves]
    try:
        for leaf in leaves:
            leaf.grad = None
        torch.autograd.backward(tensors, seeds, retain_graph=retain_graph, inputs=leaves)
        check([leaf.grad for leaf in leaves if leaf.grad is not None])
        after = [leaf.grad for leaf in leaves]
    finally:
        for leaf, old in zip(leaves, before, strict=True):
            leaf.grad = old
    added: list[tuple[Tensor, Tensor]] = []
    for leaf, new in zip(leaves, after, strict=True):
        if new is not None and leaf.grad is None:
            leaf.grad = new
        elif new is not None:
            added.append((leaf, new))
    accumulate(added)


@torch.no_grad()
def all_finite(tensors: Sequence[Tensor | None], *, fresh: bool = False) -> bool:
    """Return whether every entry is finite, waiting for the device once.

    Args:
        tensors: What to look at.
        fresh: Nobody else has the tensors yet, so they may be multiplied by one in place: one call looks at all.
    """
    real = [_plain(t) for t in tensors if t is not None and t.numel()]
    if not real:
        return True
    device = real[0].device
    if fresh and _is_fusable(real):
        found, one = torch.zeros(1, device=device), torch.ones(1, device=device)
        torch._amp_foreach_non_finite_check_and_unscale_(real, found, one)  # pyright: ignore[reportPrivateImportUsage]
        return float(found) == 0.0
    # a sum is as fast as reading and shows NaN and infinity; one that overflows by itself is looked at again
    small = [t for t in real if t.numel() < _SMALL]
    if len(small) > _FEW and len({(t.dtype, t.device) for t in small}) == 1:  # a call costs more than their entries
        sums = [t.sum() for t in real if t.numel() >= _SMALL] + [torch.cat([t.reshape(-1) for t in small]).sum()]
    else:
        sums = [t.sum() for t in real]
    if any(t.dtype != sums[0].dtype or t.device != sums[0].device for t in sums):
        sums = [t.to(sums[0]) for t in sums]
    total = sums[0] if len(sums) == 1 else torch.stack(sums).sum()
    return math.isfinite(float(total)) or all(bool(torch.isfinite(t).all()) for t in real)


def _is_fusable(tensors: Sequence[Tensor]) -> bool:
    """Whether the function of gradient scalers takes tensors and is right about them.

    On CUDA it knows no bfloat16, looks at doubles as floats, and takes one dtype only.
    """
    device, dtypes = tensors[0].device, {tensor.dtype for tensor in tensors}
    if not all(type(t) is Tensor and t.device == device and t.is_contiguous() for t in tensors):
        return False
    half_or_float = len(dtypes) == 1 and dtypes <= {torch.float16, torch.float32}
    return device.type == "cpu" or (device.type == "cuda" and half_or_float)


def _plain(tensor: Tensor) -> Tensor:
    """Return the numbers of a sparse or complex tensor as a dense real one."""
    tensor = tensor.coalesce().values() if tensor.is_sparse else tensor
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
