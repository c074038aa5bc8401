"""Writing gradients: added to what is in ``.grad``, and only after they have been checked."""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor


def accumulate(leaf: Tensor, gradient: Tensor) -> None:
    """Add ``gradient`` to ``leaf.grad`` as autograd does; it must not be used by anybody else afterwards."""
    gradient = gradient.to(leaf.dtype)
    if leaf.grad is None:
        leaf.grad = gradient
    else:
        leaf.grad += gradient


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
        check: Called with the new gradients; raises to refuse them.
        retain_graph: Keep the graph for another backward pass.
    """
    leaves = list(leaves)
    if not leaves:
        return
    before = [leaf.grad for leaf in leaves]
    accepted = False
    try:
        for leaf in leaves:
            leaf.grad = None
        torch.autograd.backward(tensors, seeds, retain_graph=retain_graph, inputs=leaves)
        check([leaf.grad for leaf in leaves if leaf.grad is not None])
        accepted = True
    finally:
        for leaf, old in zip(leaves, before, strict=True):
            new, leaf.grad = leaf.grad, old
            if accepted and new is not None:
                if old is None:
                    leaf.grad = new
                elif new.is_sparse and not old.is_sparse:
                    leaf.grad = old.add_(new)
                else:
                    leaf.grad = old + new if old.is_sparse else old.add_(new)
