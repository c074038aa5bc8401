"""Task gradients of some of the shared parameters only, such as those of the last shared layer."""

from collections.abc import Iterable, Sequence, Set

import torch
from torch import Tensor
from torch.autograd.graph import Node

from counterpoint.errors import GraphError
from counterpoint.gradients.backward import differentiate, unscaled
from counterpoint.gradients.jacobian import Workspace, empty_rows, fill_row
from counterpoint.gradients.scope import Walk, find_scope, loss_edge

# operations that scale or shift what they are given: norm layers, layer scales, position embeddings
_ARITHMETIC = ("MulB", "AddB", "SubB", "DivB", "AddcmulB")  # MulBackward0, ...; not AddmmBackward0
_NORMS = ("LayerNorm", "GroupNorm", "BatchNorm", "RmsNorm", "RMSNorm", "Prelu")


def last_layer(
    losses: Sequence[Tensor], *, shared: Iterable[Tensor] | None = None, features: Sequence[Tensor] = ()
) -> list[Tensor]:
    """Return the leaves of the last shared operation that has a matrix among them.

    "Last" is the order in which the forward pass ran. What only scales or shifts (norm layers, layer scales, position
    embeddings, lone vectors) does not count as a layer, unless there is nothing else. A weight that is used several
    times counts at its last use that two or more tasks share, so an embedding tied to the head of one task is not the
    last layer. Of layers that run side by side only the last one is taken; a compiled network is one operation.

    Args:
        losses: One scalar per task, each with a graph.
        shared: Leaves to balance; default as in :func:`~counterpoint.gradients.scope.find_scope`.
        features: Tensors where the heads begin; they only tell which leaves count as shared.

    Returns:
        The leaves, none if the tasks share nothing.
    """
    walk = Walk()
    scope = find_scope(losses, shared=shared, features=features, walk=walk)
    if not scope.shared:
        return []
    nodes = {leaf: node for node, leaf in walk.leaves.items()}
    users = {leaf: _users(walk, nodes[leaf]) for leaf in scope.shared}
    layers = [leaf for leaf in scope.shared if leaf.ndim > 1 and not all(map(_is_elementwise, users[leaf]))]
    layers = layers or [leaf for leaf in scope.shared if leaf.ndim > 1] or list(scope.shared)
    common = {node for node, mask in walk.masks.items() if mask & (mask - 1)}
    at = {leaf: _last_use(users[leaf], common) for leaf in scope.shared}
    last = max(at[leaf] for leaf in layers)
    return [leaf for leaf in scope.shared if at[leaf] == last]


def _users(walk: Walk, node: Node) -> list[Node]:
    """Return the operations that use a leaf, seen through those that only pass it on."""
    found: dict[Node, None] = {}
    open_nodes = [node]
    while open_nodes:
        for above in walk.parents.get(open_nodes.pop(), ()):
            if above in walk.parents:
                open_nodes.append(above)
            else:
                found[above] = None
    return list(found)


def _is_elementwise(node: Node) -> bool:
    name = node.name()
    return name.startswith(_ARITHMETIC) or any(norm in name for norm in _NORMS)


def _last_use(users: Sequence[Node], common: Set[Node]) -> int:
    shared = [node for node in users if node in common] if len(users) > 1 else users
    return max((node._sequence_nr() for node in shared or users), default=-1)


def subset_rows(
    losses: Sequence[Tensor],
    leaves: Sequence[Tensor],
    *,
    scale: float = 1.0,
    workspace: Workspace | None = None,
) -> Tensor:
    """Return the task gradients (K, P) of some leaves and of nothing else; the graph is kept.

    Each backward pass goes down to these leaves only.

    Args:
        losses: One scalar per task, each with a graph.
        leaves: What to differentiate.
        scale: Each loss is multiplied by this during the backward pass, and the rows are divided by it again.
        workspace: Where the rows are kept.

    Raises:
        GraphError: If a leaf needs no gradient, or no loss reaches any of them.
    """
    frozen = sum(not leaf.requires_grad for leaf in leaves)
    if frozen:
        raise GraphError(f"measure: {frozen} of the {len(leaves)} tensors need no gradient; leave them out")
    rows = empty_rows(len(losses), leaves, workspace)
    reached = False
    for row, loss in zip(rows, losses, strict=True):
        found = differentiate([loss_edge(loss)], leaves, [torch.full_like(loss, scale)], retain_graph=True)
        reached = reached or any(gradient is not None for gradient in found)
        fill_row(row, found, leaves)
    if leaves and not reached:
        raise GraphError(f"measure: no loss reaches any of the {len(leaves)} tensors; pass shared parameters")
    return unscaled(rows, scale)
