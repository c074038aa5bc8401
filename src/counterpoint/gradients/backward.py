"""One backward pass down to given places, and what may be in its way."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

from counterpoint.errors import GraphError
from counterpoint.gradients.scope import loss_edge


def differentiate(
    outputs: Sequence[Tensor] | Sequence[GradientEdge],
    inputs: Sequence[Tensor | GradientEdge],
    seeds: Sequence[Tensor],
    *,
    retain_graph: bool,
) -> tuple[Tensor | None, ...]:
    """Run one backward pass down to the inputs; ``None`` for an input that is not reached.

    Raises:
        GraphError: If the graph is that of a compiled network which allows one backward pass only.
    """
    if not inputs:
        return ()
    try:
        return torch.autograd.grad(outputs, inputs, seeds, retain_graph=retain_graph, allow_unused=True)  # type: ignore[arg-type]
    except RuntimeError as error:
        if "donated buffer" not in str(error):
            raise
        raise GraphError(
            "the compiled network frees its buffers in the first backward pass, and this method needs one a task; set "
            "torch._functorch.config.donated_buffer = False before compiling, or use level='features' with the tensors "
            "that the network returns"
        ) from error


def as_one_root(losses: Sequence[Tensor], seeds: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Return roots and seeds of a backward pass of all losses: one root if they can be stacked.

    The gradients are the same, but autograd checks every seed that it is given, in Python. Elements of a tensor of
    losses are not stacked again: that would reach the losses that were left out.

    Args:
        losses: Scalars with a graph.
        seeds: Their gradients, (K,).
    """
    first = losses[0]
    alike = all(loss.dtype == first.dtype and loss.device == first.device for loss in losses)
    if len(losses) > 1 and alike and all(loss_edge(loss).node is loss.grad_fn for loss in losses):
        with torch.enable_grad():
            return [torch.stack(list(losses))], [seeds.to(first.device, first.dtype)]
    return list(losses), [seed.to(loss) for seed, loss in zip(seeds.unbind(), losses, strict=True)]


@contextlib.contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Switch autocast off, in which a caller may be: products of gradients would be made in half precision."""
    with contextlib.ExitStack() as stack:
        for kind in {"cpu", device.type}:
            if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


@contextlib.contextmanager
def cut(edges: Iterable[tuple[Node, int] | GradientEdge]) -> Iterator[None]:
    """Stop backward passes at edges, so that the gradient of one has no part that comes through another."""
    outputs: dict[Node, set[int]] = {}
    for edge in edges:
        outputs.setdefault(edge[0], set()).add(edge[1])

    def stop(numbers: set[int]) -> Callable[[tuple[Tensor, ...]], tuple[Tensor | None, ...]]:
        return lambda gradients: tuple(None if nr in numbers else g for nr, g in enumerate(gradients))

    hooks = [node.register_prehook(stop(numbers)) for node, numbers in outputs.items()]  # pyright: ignore[reportArgumentType]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextlib.contextmanager
def unhooked(features: Sequence[Tensor]) -> Iterator[None]:
    """Switch off the hooks of the features: they have changed their gradients already, when the heads sent them."""
    kept = [(hooks, dict(hooks)) for hooks in (feature._backward_hooks for feature in features) if hooks]
    for hooks, _ in kept:
        hooks.clear()
    try:
        yield
    finally:
        for hooks, old in kept:
            hooks.update(old)


def unscaled(gradient: Tensor, scale: float) -> Tensor:
    """Divide by the loss scale, if there is one."""
    return gradient if scale == 1.0 else gradient / scale
