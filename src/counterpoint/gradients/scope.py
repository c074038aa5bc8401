"""Which leaves of the graph the tasks share, found by one walk over the graph of this call."""

import dataclasses
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

from counterpoint.errors import GraphError

# nodes that hold a leaf, or pass a weight on to the operation that uses it
_ACCUMULATE = frozenset({"torch::autograd::AccumulateGrad", "AccumulateGrad"})
_VIEWS = ("ViewBackward0", "UnbindBackward0")  # by which an element is taken from a vector of losses
CARRIERS = _ACCUMULATE | {"TBackward0", "ToCopyBackward0"}


@dataclasses.dataclass(frozen=True)
class Scope:
    """The leaves that a set of losses reaches, divided by who reaches them.

    Attributes:
        shared: Leaves whose gradients are balanced.
        private: For each loss the other leaves that it reaches; their gradients are not balanced. A leaf that
            the caller left out of ``shared`` stands in the list of every loss that reaches it.
        through: The shared leaves that the losses reach through the features only.
        below: All leaves that the features reach, balanced or not.
    """

    shared: tuple[Tensor, ...]
    private: tuple[tuple[Tensor, ...], ...]
    through: frozenset[Tensor] = frozenset()
    below: frozenset[Tensor] = frozenset()


@dataclasses.dataclass(frozen=True)
class Walk:
    """What a walk saw of the graph itself; it keeps the graph alive, so it must not be kept.

    Attributes:
        leaves: The leaf of each node that accumulates a gradient.
        parents: The nodes that use such a node, or one that only passes a weight on.
        masks: For each node, as bits, the losses that reach it; all of them below the features.
        order: The nodes, each before all that it leads to.
        trunk: The nodes below the features.
    """

    leaves: dict[Node, Tensor] = dataclasses.field(default_factory=dict)
    parents: dict[Node, dict[Node, None]] = dataclasses.field(default_factory=dict)
    masks: dict[Node, int] = dataclasses.field(default_factory=dict)
    order: list[Node] = dataclasses.field(default_factory=list)
    trunk: set[Node] = dataclasses.field(default_factory=set)


def find_scope(
    losses: Sequence[Tensor],
    *,
    shared: Iterable[Tensor] | None = None,
    features: Sequence[Tensor] = (),
    walk: Walk | None = None,
) -> Scope:
    """Find the leaves that the losses reach, in one walk over their graph.

    The walk is made anew at every call, so a graph that changes between steps is never read wrongly; it costs a few
    microseconds a node, which `perf/benchmark.py` measures against the backward pass.

    Args:
        losses: One tensor per task, each with a graph.
        shared: The leaves to balance. Default: those that two or more losses reach, and, with ``features``,
            all those below the features. Entries that no loss reaches are left out.
        features: Tensors where the heads begin.
        walk: An empty one is filled with what else was seen.

    Raises:
        GraphError: If a feature tensor has no graph below it.
    """
    walk = Walk() if walk is None else walk
    reach = _reach([loss_edge(loss) for loss in losses], feature_edges(features), walk)
    everyone = (1 << len(losses)) - 1  # features count as used by every task
    trunk = Walk(walk.leaves, walk.parents)
    below = _reach([get_gradient_edge(feature) for feature in features], frozenset(), trunk)
    walk.trunk.update(trunk.masks)
    walk.masks.update(dict.fromkeys(trunk.masks, everyone))
    walk.order[:] = (
        [*(node for node in walk.order if node not in trunk.masks), *trunk.order] if features else walk.order
    )
    masks = {**reach, **dict.fromkeys(below, everyone)}  # by node: the hash of a tensor is slow
    if shared is None:
        chosen = [node for node, mask in masks.items() if node in below or mask & (mask - 1)]
    else:
        nodes = {walk.leaves[node]: node for node in masks}
        chosen = [nodes[leaf] for leaf in dict.fromkeys(shared) if leaf in nodes]
    balanced = set(chosen)
    private: list[list[Tensor]] = [[] for _ in losses]
    for node, mask in masks.items():
        while mask and node not in balanced:
            lowest = mask & -mask
            private[lowest.bit_length() - 1].append(walk.leaves[node])
            mask ^= lowest
    through = frozenset(walk.leaves[node] for node in chosen if node not in reach)
    return Scope(
        tuple(walk.leaves[node] for node in chosen),
        tuple(map(tuple, private)),
        through,
        frozenset(walk.leaves[node] for node in below),
    )


def find_leaves(losses: Sequence[Tensor]) -> list[Tensor]:
    """Return the leaves that the losses reach, each once: a walk that asks for nothing else and costs half of it."""
    leaves: list[Tensor] = []
    stack = list(dict.fromkeys(loss_edge(loss).node for loss in losses))  # not through a stack of all losses
    seen = set(stack)
    while stack:
        node = stack.pop()
        children = node.next_functions
        if not children and node.name() in _ACCUMULATE:
            leaves.append(node.variable)  # pyright: ignore[reportAttributeAccessIssue] - of this kind of node only
        for child, _ in children:
            if child is not None and child not in seen:
                seen.add(child)
                stack.append(child)
    return leaves


def loss_edge(loss: Tensor) -> GradientEdge:
    """Return where the graph of one loss begins.

    An element of ``torch.stack(losses)`` leads straight to its own loss: going through the stack would reach the
    heads of all tasks, and differentiate every one of them, with zeros, for each task.
    """
    start = loss.grad_fn
    if start is None or isinstance(start, torch._C._FunctionBase):  # a leaf, or a custom function, whose graph to hold
        return get_gradient_edge(loss)
    edge = GradientEdge(start, loss.output_nr)
    if start.name() not in _VIEWS:
        return edge
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


def _reach(roots: Sequence[GradientEdge], stop: frozenset[tuple[Node, int]], walk: Walk) -> dict[Node, int]:
    """Map the node of each leaf to the bit mask of the roots that reach it without passing an edge of ``stop``.

    Adds what it sees to ``walk``, whose masks must be empty.
    """
    children: dict[Node, list[Node]] = {}
    finished: dict[Node, None] = {}  # children before parents, as a depth-first walk leaves them
    masks = walk.masks
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
            edges = node.next_functions
            children[node] = found = [edge[0] for edge in edges if edge[0] is not None and edge not in stop]
            stack += [child for child in found if child not in children]
    reached: dict[Node, int] = {}
    carriers = {node for node in finished if len(children[node]) < 2 and node.name() in CARRIERS}
    walk.order.extend(reversed(finished))
    for node in walk.order:
        mask = masks[node]
        found = children[node]
        for child in found:
            masks[child] = masks.get(child, 0) | mask
            if child in carriers:
                walk.parents.setdefault(child, {})[node] = None
        if not found and node in carriers:
            walk.leaves[node] = node.variable  # pyright: ignore[reportAttributeAccessIssue] - of this kind of node only
            reached[node] = mask
    return reached
