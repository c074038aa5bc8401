"""Task gradients of some of the shared parameters only, such as those of the last shared layer."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from counterpoint.errors import GraphError
from counterpoint.gradients.jacobian import Workspace, differentiate, empty_rows, fill_row, unscaled
from counterpoint.gradients.scope import Scope, loss_edge


def last_layer(scope: Scope) -> list[Tensor]:
    """Return the leaves of the last shared operation that has a matrix among them.

    "Last" is the order in which the forward pass ran. Norm layers and lone vectors do not count as a layer, unless
    there is nothing else.

    Raises:
        GraphError: If no leaf is shared.
    """
    if not scope.shared:
        raise GraphError(
            "measure='last': no parameter is shared by two tasks; pass shared= or the parameters themselves"
        )
    users: dict[Tensor, int] = {}
    for leaf in scope.shared:
        node = scope.nodes[leaf]
        while len(above := scope.parents.get(node, ())) == 1 and above[0] in scope.parents:
            node = above[0]  # one that only passes the weight on
        users[leaf] = max((parent._sequence_nr() for parent in above), default=-1)
    layers = [leaf for leaf in scope.shared if leaf.ndim > 1] or list(scope.shared)
    last = max(users[leaf] for leaf in layers)
    return [leaf for leaf in scope.shared if users[leaf] == last]


def subset_rows(
    losses: Sequence[Tensor],
    leaves: Sequence[Tensor],
    *,
    scale: float = 1.0,
    retain_graph: bool = True,
    workspace: Workspace | None = None,
    average: Callable[[Sequence[Tensor]], None] = lambda _: None,
) -> Tensor:
    """Return the task gradients (K, P) of some leaves and of nothing else.

    Each backward pass goes down to these leaves only.

    Args:
        losses: One scalar per task, each with a graph.
        leaves: What to differentiate.
        scale: Each loss is multiplied by this during the backward pass, and the rows are divided by it again.
        retain_graph: Keep the graph for another backward pass.
        workspace: Where the rows are kept.
        average: Called with the rows, to change them in place.
    """
    rows = empty_rows(len(losses), leaves, workspace)
    for task, (row, loss) in enumerate(zip(rows, losses, strict=True)):
        keep = retain_graph or task < len(losses) - 1
        found = differentiate([loss_edge(loss)], leaves, [torch.full_like(loss, scale)], retain_graph=keep)
        fill_row(row, found or [None] * len(leaves), leaves)
    rows = unscaled(rows, scale)
    average([rows])
    return rows
