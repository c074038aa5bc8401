"""Which leaves of the graph the tasks share, found by one walk over the graph of this call."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

from counterpoint.errors import GraphError

# nodes that hold a leaf, or pass a weight on to the operation that uses it
_CARRIERS = frozenset({"torch::autograd::AccumulateGrad", "AccumulateGrad", "TBackward0", "ToCopyBackward0"})


@dataclasses.dataclass(frozen=True)
class Scope:
    """The leaves that a set of losses reaches, divided by who reaches them.

    Attributes:
        shared: Leaves whose gradients are balanced.
        private: For each loss the other leaves that it reaches; their gradients are not balanced. A leaf that
            the caller left out of ``shared`` stands in the list of every loss that reaches it.
        through: The shared leaves that the losses reach through the features only.
        below: All leaves that the features reach, balanced or not.
        nodes: The node of the graph that accumulates the gradient of each leaf.
        parents: The nodes that use such a node, or one that only passes a weight on.
    """

    shared: tuple[Tensor, ...]
    private: tuple[tuple[Tensor, ...], ...]
    through: frozenset[Tensor] = frozenset()
    below: frozenset[Tensor] = frozenset()
    nodes: Mapping[Tensor, Node] = dataclasses.field(default_factory=dict, repr=False)
    parents: Mapping[Node, Sequence[Node]] = dataclasses.field(default_factory=dict, repr=False)


def find_scope(
    losses: Sequence[Tensor],
    *,
    shared: Iterable[Tensor] | None = None,
    features: Sequence[Tensor] = (),
) -> Scope:
    """Find the leaves that the losses reach, in one walk over their graph.

    The walk is made anew at every call, so a graph that changes between steps is never read wrongly; it costs a few
    microseconds a node, which `perf/benchmark.py` measures against the backward pass.

    Args:
        losses: One tensor per task, each with a graph.
        shared: The leaves to balance. Default: those that two or more losses reach, and, with ``features``,
            all those below the features. Entries that no loss reaches are left out.
        features: Tensors where the heads begin.

    Raises:
        GraphError: If a feature tensor has no graph below it.
    """
    nodes: dict[Tensor, Node] = {}
    uses: dict[Node, dict[Node, None]] = {}
    reach = _reach([loss_edge(loss) for loss in losses], feature_edges(features), nodes, uses)
    below = _reach([get_gradient_edge(feature) for feature in features], frozenset(), nodes, uses)
    masks = {**reach, **dict.fromkeys(below, (1 << len(losses)) - 1)}  # features count as used by every task
    if shared is None:
        chosen = [leaf for leaf, mask in masks.items() if leaf in below or mask & (mask - 1)]
    else:
        chosen = [leaf for leaf in dict.fromkeys(shared) if leaf in masks]
    balanced = set(chosen)
    private: list[list[Tensor]] = [[] for _ in losses]
    for leaf, mask in masks.items():
        while mask and leaf not in balanced:
            lowest = mask & -mask
            private[lowest.bit_length() - 1].append(leaf)
            mask ^= lowest
    through = frozenset(leaf for leaf in chosen if leaf not in reach)
    parents = {node: tuple(above) for node, above in uses.items()}
    return Scope(tuple(chosen), tuple(map(tuple, private)), through, frozenset(below), nodes, parents)


def loss_edge(loss: Tensor) -> GradientEdge:
    """Return where the graph of one loss begins.

    An element of ``torch.stack(losses)`` leads straight to its own loss: going through the stack would reach the
    heads of all tasks, and differentiate every one of them, with zeros, for each task.
    """
    edge = get_gradient_edge(loss)
    node, number = edge.node, edge.output_nr
    while node is not None and node.name() == "ViewBackward0":
        node, number = node.next_functions[0]
    if node is None or node.name() != "UnbindBackward0":
        return edge
    stack = node.next_functions[0][0]
    if stack is None or stack.name() != "StackBackward0":
        return edge
    node, number = stack.next_functions[number]
    return edge if node is None else GradientEdge(node, number)


def feature_edges(features: Sequence[Tensor]) -> frozenset[tuple[Node, int]]:
    """Return where the graphs of the features begin.

    Raises:
        GraphError: If one has no graph.
    """
    for feature in features:
        if feature.grad_fn is None:
            raise GraphError(
                "features: got a tensor without a graph, so no gradient can reach the trunk; "
                "pass the output of the trunk itself, not a detached copy"
            )
    return frozenset((edge.node, edge.output_nr) for edge in map(get_gradient_edge, features))


def _reach(
    roots: Sequence[GradientEdge],
    stop: frozenset[tuple[Node, int]],
    nodes: dict[Tensor, Node],
    uses: dict[Node, dict[Node, None]],
) -> dict[Tensor, int]:
    """Map each leaf to the bit mask of the roots that reach it without passing an edge of ``stop``.

    Adds to ``nodes`` the node of each leaf, and to ``uses`` what uses it or a node that only passes a weight on.
    """
    children: dict[Node, list[Node]] = {}
    finished: dict[Node, None] = {}  # children before parents, as a depth-first walk leaves them
    masks: dict[Node, int] = {}
    for bit, root in enumerate(roots):
        if (root.node, root.output_nr) in stop:
            continue
        masks[root.node] = masks.get(root.node, 0) | 1 << bit
        stack = [root.node]
        while stack:
            node = stack[-1]
            if node in children:
                finished[stack.pop()] = None
                continue
            found = [child for child, _ in node.next_functions if child is not None]
            if stop:
                found = [edge[0] for edge in node.next_functions if edge[0] is not None and edge not in stop]
            children[node] = found
            stack += [child for child in found if child not in children]
    leaves: dict[Tensor, int] = {}
    carriers = {node for node in finished if node.name() in _CARRIERS}
    for node in reversed(finished):
        mask = masks[node]
        found = children[node]
        for child in found:
            masks[child] = masks.get(child, 0) | mask
            if child in carriers:
                uses.setdefault(child, {})[node] = None
        if node in carriers and not found:
            leaf = node.variable  # pyright: ignore[reportAttributeAccessIssue] - of this kind of node only
            leaves[leaf] = mask
            nodes[leaf] = node
    return leaves
