"""The backward passes of the heads: from the losses down to where the part that several tasks share begins."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

from counterpoint.gradients.backward import as_one_root, cut, differentiate, unscaled
from counterpoint.gradients.scope import Scope, Walk, feature_edges, loss_edge

Edge = tuple[Node, int]


def find_frontier(losses: Sequence[Tensor], walk: Walk) -> tuple[dict[Edge, None], dict[Node, list[tuple[int, Edge]]]]:
    """Return where the heads begin, and the last nodes of the heads: which of their edges lead there.

    The heads begin at the edges from what one task reaches to what several do.
    """
    edges: dict[Edge, None] = {}
    lasts: dict[Node, list[tuple[int, Edge]]] = {}
    for root in map(loss_edge, losses):
        if walk.masks[root.node] & (walk.masks[root.node] - 1):
            edges[root.node, root.output_nr] = None
    for node, mask in walk.masks.items():
        if mask & (mask - 1):
            continue
        for slot, (child, number) in enumerate(node.next_functions):
            if child is not None and walk.masks[child] & (walk.masks[child] - 1):
                edges[child, number] = None
                lasts.setdefault(node, []).append((slot, (child, number)))
    return edges, lasts


@contextlib.contextmanager
def arrivals(
    lasts: Mapping[Node, Sequence[tuple[int, Edge]]], into: Callable[[Node], dict[Edge, Tensor]] | None = None
) -> Iterator[dict[Edge, Tensor]]:
    """Keep what backward passes send along edges, before any hook on a tensor there has changed it.

    Args:
        lasts: The nodes that send, and by which of their edges.
        into: Where to keep what a node sends; default one dictionary for all, which is what the manager gives.
    """
    everything: dict[Edge, Tensor] = {}

    def keep(slots: Sequence[tuple[int, Edge]], arrived: dict[Edge, Tensor]) -> Callable[..., None]:
        def hook(sent: Sequence[Tensor | None], _: Sequence[Tensor | None]) -> None:
            for slot, edge in slots:
                gradient = sent[slot]
                if gradient is not None:
                    arrived[edge] = arrived[edge] + gradient if edge in arrived else gradient

        return hook

    handles = [
        node.register_hook(keep(slots, everything if into is None else into(node))) for node, slots in lasts.items()
    ]
    try:
        yield everything
    finally:
        for handle in handles:
            handle.remove()


def differentiate_heads(
    losses: Sequence[Tensor],
    scope: Scope,
    walk: Walk,
    edges: Mapping[Edge, None],
    lasts: Mapping[Node, Sequence[tuple[int, Edge]]],
    *,
    scale: float,
    retain_graph: bool,
) -> tuple[dict[Edge, Tensor], list[list[Tensor | None]]]:
    """Differentiate each head once: all in one pass, unless a loss itself is shared.

    Returns:
        The gradients of all tasks, (K, ...) times ``scale``, at each edge that some task reaches; and, for each task,
        of its own leaves.
    """
    retain_graph = retain_graph or len(edges) > 1  # a cut pass still touches what is below the upper ends
    roots = [loss_edge(loss) for loss in losses]
    run = _one_by_one if any((root.node, root.output_nr) in edges for root in roots) else _at_once
    heads, private = run(losses, scope, walk, edges, lasts, scale=scale, retain_graph=retain_graph)
    stacked = map(stack_gradients, zip(*heads, strict=True))
    return {edge: found for edge, found in zip(edges, stacked, strict=True) if found is not None}, private


def _at_once(
    losses: Sequence[Tensor],
    scope: Scope,
    walk: Walk,
    edges: Mapping[Edge, None],
    lasts: Mapping[Node, Sequence[tuple[int, Edge]]],
    *,
    scale: float,
    retain_graph: bool,
) -> tuple[list[list[Tensor | None]], list[list[Tensor | None]]]:
    """Run one pass for all heads, and tell the tasks apart by the node that sends a gradient to the shared part."""
    targets = [GradientEdge(*edge) for edge in edges]
    own = [leaf for leaves in scope.private for leaf in leaves]
    tasks = {node: walk.masks[node].bit_length() - 1 for node in lasts}
    arrived: list[dict[Edge, Tensor]] = [{} for _ in losses]
    roots, seeds = as_one_root(losses, torch.full((len(losses),), scale, device=losses[0].device))
    with arrivals(lasts, lambda node: arrived[tasks[node]]), cut(edges if len(edges) > 1 else ()):
        # of losses that were not stacked: not through a tensor that they are elements of
        begins = roots if len(roots) == 1 < len(losses) else [loss_edge(loss) for loss in losses]
        found = differentiate(begins, [*targets, *own], seeds, retain_graph=retain_graph)
    gradients = iter(unscaled_all(found[len(targets) :], scale))
    return (
        [[sent.get(edge) for edge in edges] for sent in arrived],
        [[next(gradients) for _ in leaves] for leaves in scope.private],
    )


def _one_by_one(
    losses: Sequence[Tensor],
    scope: Scope,
    walk: Walk,  # noqa: ARG001
    edges: Mapping[Edge, None],
    lasts: Mapping[Node, Sequence[tuple[int, Edge]]],
    *,
    scale: float,
    retain_graph: bool,
) -> tuple[list[list[Tensor | None]], list[list[Tensor | None]]]:
    heads: list[list[Tensor | None]] = []
    private: list[list[Tensor | None]] = []
    targets = [GradientEdge(*edge) for edge in edges]
    with arrivals(lasts) as arrived, cut(edges if len(edges) > 1 else ()):
        for loss, own in zip(losses, scope.private, strict=True):
            arrived.clear()
            root, seed = loss_edge(loss), torch.full_like(loss, scale)
            gradients = differentiate([root], [*targets, *own], [seed], retain_graph=retain_graph)
            if (root.node, root.output_nr) in edges:
                arrived[root.node, root.output_nr] = seed
            heads.append([arrived.get(edge) for edge in edges])
            private.append(unscaled_all(gradients[len(edges) :], scale))
    return heads, private


def feature_heads(
    losses: Sequence[Tensor], scope: Scope, walk: Walk, features: Sequence[Tensor], *, scale: float
) -> tuple[list[list[Tensor | None]], list[list[Tensor | None]]] | None:
    """Differentiate all heads in one pass down to the features, where each head is one task's alone.

    Returns:
        For each task its gradients of the features, times ``scale``, and of its own leaves; ``None`` where something
        above the features belongs to several tasks, or a hook is to change the gradients of the features.
    """
    if any(feature._backward_hooks for feature in features):
        return None
    ends = feature_edges(features)
    lasts: dict[Node, list[tuple[int, Edge]]] = {}
    for node in walk.order:
        if node in walk.trunk:
            continue
        if walk.masks[node] & (walk.masks[node] - 1):
            return None
        for slot, edge in enumerate(node.next_functions):
            if edge in ends:
                lasts.setdefault(node, []).append((slot, edge))  # type: ignore[arg-type] - of a feature, so it has a node
    roots = [loss_edge(loss) for loss in losses]
    if (
        not lasts
        or any(root.node in walk.trunk for root in roots)
        or any(own & scope.below for own in map(set, scope.private))
    ):
        return None
    edges: dict[Edge, None] = {(feature.grad_fn, feature.output_nr): None for feature in features}  # type: ignore[misc]
    return _at_once(losses, scope, walk, edges, lasts, scale=scale, retain_graph=True)


def unscaled_all(gradients: Sequence[Tensor | None], scale: float) -> list[Tensor | None]:
    """Divide gradients by the loss scale, if there is one."""
    if scale == 1.0:
        return list(gradients)
    return [None if gradient is None else unscaled(gradient, scale) for gradient in gradients]


def stack_gradients(gradients: Sequence[Tensor | None]) -> Tensor | None:
    """Stack the gradients of all tasks, with zeros for a task that has none; ``None`` if no task has one."""
    like = next((gradient for gradient in gradients if gradient is not None), None)
    if like is None:
        return None
    return torch.stack([torch.zeros_like(like) if gradient is None else gradient for gradient in gradients])
