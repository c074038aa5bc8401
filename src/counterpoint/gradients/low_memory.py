"""The Gram matrix in stretches of the network: all tasks pass one stretch before any of them enters the next.

What is kept is the gradients of all tasks at one place of the network, and what the Gram matrix of one stretch needs;
neither K gradients nor the output gradients of all layers. The update is one more backward pass, of the weighted sum.
"""

import bisect
import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

from counterpoint import linalg
from counterpoint.gradients.backward import differentiate
from counterpoint.gradients.heads import Edge, arrivals, differentiate_heads, find_frontier, stack_gradients
from counterpoint.gradients.jacobian import empty_rows, fill_row
from counterpoint.gradients.layers import Layer, find_layers, leaves_outside
from counterpoint.gradients.passes import differentiate_layers
from counterpoint.gradients.products import ByLeaf, LayerGradients, layer_gram, pass_layers
from counterpoint.gradients.scope import CARRIERS, Walk, find_scope, loss_edge

_WORK = 1.5  # memory for the products of a layer with its output gradients, in units of these
_MODULE_HOOK = "BackwardHookFunctionBackward"  # what a full backward hook puts at output and input of its module
_LITTLE = 0.25  # what may be kept of all layers at once, over the shared parameters
Seeds = dict[Edge, list[Tensor | None]]  # at a place of the network, the gradient of each task


@dataclasses.dataclass
class LowMemoryGradients(ByLeaf):
    """The Gram matrix of one step, and the losses, for the backward pass of their weighted sum.

    Attributes:
        products: Inner products of the task gradients (K, K), times the square of ``scale``.
        losses: The losses, whose graph is still there.
        retain_graph: Whether :meth:`combine` keeps it.
    """

    products: Tensor
    losses: Sequence[Tensor]
    retain_graph: bool

    def gram(self) -> Tensor:
        """Return the inner products of the task gradients, (K, K) in float64."""
        return self.products / self.scale / self.scale

    def combine(self, weights: Tensor) -> list[Tensor]:
        """Return the weighted sum of the task gradients, a tensor for each leaf of :attr:`leaves`."""
        pairs = zip(weights.tolist(), self.losses, strict=True)
        seeds = [torch.full_like(loss, weight * self.scale) for weight, loss in pairs]
        edges = [loss_edge(loss) for loss in self.losses]
        found = list(differentiate(edges, self.leaves, seeds, retain_graph=self.retain_graph))
        pieces: list[Tensor] = []
        for leaf in self.leaves:  # copies, as autograd may give one tensor to two leaves; one after another
            piece = found.pop(0)
            pieces.append(torch.zeros_like(leaf) if piece is None else piece * (1.0 / self.scale))
            del piece
        return pieces

    @property
    def leaves(self) -> list[Tensor]:
        """The shared leaves in the order of :meth:`combine`."""
        return list(self.scope.shared)


@dataclasses.dataclass
class Stretch:
    """A part of the network between two places that every path passes.

    Attributes:
        begin: Where the gradients enter.
        end: Where they leave; ``None`` in the last stretch.
        layers: Its layers.
        rest: The other leaves that are used in it.
        lasts: The nodes that lead to its end, and by which of their edges.
        whole: Whether a layer of the next stretch reads what leaves this one, of all tasks in one tensor.
    """

    begin: list[Edge]
    end: Edge | None
    layers: list[Layer]
    rest: list[Tensor]
    lasts: dict[Node, Sequence[tuple[int, Edge]]]
    whole: bool = False


@dataclasses.dataclass
class Block:
    """What the Gram matrix of one part of the network is made from.

    Attributes:
        layers: Its layers.
        outputs: For each of them the output gradients of all tasks, (K, *output shape).
        rest: The other leaves.
        rows: Their gradients, for each task (R,).
    """

    layers: list[Layer]
    outputs: list[Tensor]
    rest: list[Tensor]
    rows: list[Tensor]


def low_memory_gradients(
    losses: Sequence[Tensor],
    *,
    shared: Iterable[Tensor] | None = None,
    features: Sequence[Tensor] = (),
    scale: float = 1.0,
    retain_graph: bool = False,
) -> LowMemoryGradients | LayerGradients | None:
    """Differentiate each loss once, stretch by stretch, and keep the inner products only.

    Where what there is to keep of all stretches is little beside the parameters, as in wide layers on few rows, all of
    it is kept, and no further backward pass is needed.

    Args:
        losses: One scalar per task, each with a graph.
        shared: Leaves to balance; default as in :func:`~counterpoint.gradients.scope.find_scope`.
        features: Tensors where the heads begin; they only tell which leaves count as shared.
        scale: Each loss is multiplied by this during the backward pass.
        retain_graph: Keep the graph for another backward pass.

    Returns:
        The gradients, or ``None`` where the leaves that several tasks reach are not the balanced ones.
    """
    walk = Walk()
    scope = find_scope(losses, shared=shared, features=features, walk=walk)
    common = {node for node, mask in walk.masks.items() if mask & (mask - 1)}
    balanced = set(scope.shared)
    if any((node in common) != (leaf in balanced) for node, leaf in walk.leaves.items()):
        return None
    layers = [layer for layer in find_layers(scope.shared, walk) if _WORK * width(layer.edge) <= layer.weight.numel()]
    rest = leaves_outside(scope.shared, layers)
    kept = sum(width(layer.edge) for layer in layers) + sum(leaf.numel() for leaf in rest)
    # between layers there may be something far wider, and all tasks may pass it at once
    kept += max((width((node, nr)) for node in common - _carrying(walk) for nr in _outputs(node)), default=0)
    if layers and len(losses) * kept <= _LITTLE * sum(leaf.numel() for leaf in scope.shared):
        return pass_layers(losses, scope, walk, layers, rest, scale=scale, retain_graph=retain_graph, workspace=None)
    edges, lasts = find_frontier(losses, walk)
    parts = find_stretches(common, walk, layers, scope.shared, list(edges))
    if not parts:
        return None
    heads, private = differentiate_heads(losses, scope, walk, edges, lasts, scale=scale, retain_graph=True)
    seeds = by_task(heads)
    del heads
    products = torch.zeros(len(losses), len(losses), dtype=torch.float64)
    for part in parts:
        block = pass_stretch(part, seeds, len(losses))
        products += linalg.gram_of_list(block.rows).to(products)
        block.rows.clear()  # what has been read makes room for what is made from the rest
        while block.outputs:
            products += layer_gram(block.layers.pop(), block.outputs.pop(), in_pieces=True).to(products)
    return LowMemoryGradients(scope, private, len(losses) + 1, scale, products, losses, retain_graph)


def by_task(stacked: Mapping[Edge, Tensor]) -> Seeds:
    """Return gradients of all tasks, (K, ...), as one tensor for each task."""
    return {edge: list(gradients.unbind()) for edge, gradients in stacked.items()}


def pass_stretch(part: Stretch, seeds: Seeds, num_tasks: int) -> Block:
    """Take all tasks through one stretch; replaces the gradients at its begin by those at its end.

    A gradient at the begin is let go as soon as its task has passed, unless a layer begins there.
    """
    entering = {edge: seeds.pop(edge) for edge in part.begin if edge in seeds}
    if not entering:
        return Block([], [], [], [torch.zeros(0)] * num_tasks)
    passing = _Passing(part, entering, num_tasks)
    with arrivals(part.lasts) as arrived:
        for task in range(num_tasks):
            passing.take(task, arrived)
    leaving = passing.leaving
    if part.end is not None and any(gradient is not None for gradient in leaving):
        others = seeds.get(part.end)
        seeds[part.end] = leaving if others is None else list(map(_sum, leaving, others))
    reached = [(layer, d) for layer, d in zip(part.layers, passing.wholes(), strict=True) if d is not None]
    return Block([layer for layer, _ in reached], [d for _, d in reached], part.rest, passing.rows)


class _Passing:
    """What the passes of the tasks through one stretch bring.

    Args:
        part: The stretch.
        entering: The gradients at its begin; let go task by task.
        num_tasks: Number of tasks K.
    """

    def __init__(self, part: Stretch, entering: Seeds, num_tasks: int) -> None:
        self.part, self.entering, self.num_tasks = part, entering, num_tasks
        self.rows: list[Tensor] = []
        self._keys = [_key(layer.edge) for layer in part.layers]
        self._inputs = [*part.rest, *([] if part.end is None else [GradientEdge(*part.end)])]
        self._outputs: list[Tensor | None] = [None for _ in part.layers]
        self._unchanged: list[list[int]] = [[] for _ in part.layers]  # tasks whose gradient is what entered
        self._leaving: list[Tensor | None] = []
        self._together: Tensor | None = None

    def take(self, task: int, arrived: dict[Edge, Tensor]) -> None:
        """Let one task pass; ``arrived`` is where its gradient at the end is kept."""
        arrived.clear()
        part = self.part
        here = {edge: gradient for edge, own in self.entering.items() if (gradient := own[task]) is not None}
        edges = [GradientEdge(*edge) for edge in here]
        found = differentiate_layers(edges, part.layers, self._inputs, list(here.values()), retain_graph=True)
        for place, key in enumerate(self._keys):
            if _is_same(found[place], here.get(key)):
                self._unchanged[place].append(task)
            else:
                self._outputs[place] = _put(self._outputs[place], found[place], task, self.num_tasks)
        self.rows.append(empty_rows(1, part.rest, None)[0])
        fill_row(self.rows[-1], found[len(self._keys) : len(self._keys) + len(part.rest)], part.rest)
        gone = arrived.get(part.end) if part.end else None
        if part.whole:
            self._together = _put(self._together, gone, task, self.num_tasks)
        else:
            self._leaving.append(gone)
        for edge, own in self.entering.items():
            if edge not in self._keys:
                own[task] = None

    @property
    def leaving(self) -> list[Tensor | None]:
        """The gradients at the end, of each task."""
        return self._leaving if self._together is None else list(self._together.unbind())

    def wholes(self) -> list[Tensor | None]:
        """Return for each layer its output gradients of all tasks, (K, ...)."""
        wholes: list[Tensor | None] = []
        for key, whole, tasks in zip(self._keys, self._outputs, self._unchanged, strict=True):
            if whole is None:
                wholes.append(_together(self.entering.get(key, [])))
                continue
            for task in tasks:  # nothing arrived at this layer from elsewhere
                _put(whole, self.entering[key][task], task, self.num_tasks)
            wholes.append(whole)
        return wholes


def _together(gradients: Sequence[Tensor | None]) -> Tensor | None:
    """Return the gradients of all tasks in one tensor: the one that they are parts of, if there is one."""
    bases = [None if gradient is None else gradient._base for gradient in gradients]
    base = bases[0] if bases else None
    if base is not None and len(base) == len(bases) and all(other is base for other in bases):
        return base
    return stack_gradients(gradients)


def _is_same(gradient: Tensor | None, entering: Tensor | None) -> bool:
    """Return whether what entered at the output of a layer came back as it is, not changed by a hook."""
    return gradient is not None and entering is not None and gradient.data_ptr() == entering.data_ptr()


def _sum(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    return second if first is None else first if second is None else first + second


def _put(whole: Tensor | None, gradient: Tensor | None, task: int, num_tasks: int) -> Tensor | None:
    """Put the gradient of one task into the tensor of all, which is made for the first one."""
    if gradient is None:
        return whole
    if whole is None:
        whole = gradient.new_zeros(num_tasks, *gradient.shape)
    whole[task] = gradient
    return whole


def _key(edge: GradientEdge) -> Edge:
    return edge.node, edge.output_nr


def find_stretches(
    common: set[Node], walk: Walk, layers: Sequence[Layer], leaves: Sequence[Tensor], begin: Sequence[Edge]
) -> list[Stretch]:
    """Cut what several tasks reach into stretches, at every place where all paths meet in one edge.

    Returns:
        The stretches from the heads down; nothing if a head uses a shared leaf itself, or a module has a full backward
        hook: it keeps what arrives at its output until the same pass comes to its input.
    """
    if any(node.name() == _MODULE_HOOK for node in common):
        return []
    carrying = _carrying(walk)
    order = [node for node in walk.order if node in common and node not in carrying]
    position = {node: at for at, node in enumerate(order)}
    if not all(node in position for node, _ in begin):
        return []
    uses = {walk.leaves[node]: _uses(node, walk, position) for node in walk.leaves if node in common}
    rest = [(min(uses[leaf]), leaf) for leaf in leaves_outside(leaves, layers)]
    sizes = [(position[layer.edge.node], width(layer.edge)) for layer in layers]
    sizes += [(at, leaf.numel()) for at, leaf in rest]
    places = _worthwhile(_meetings(order, position, uses.values(), begin), position, sizes)
    starts = [0, *(position[node] for node, _ in places)]
    parts = [Stretch([], end, [], [], {}) for end in [*places, None]]

    def part(at: int) -> Stretch:
        return parts[bisect.bisect_right(starts, at) - 1]

    for edge in dict.fromkeys([*begin, *places]):
        part(position[edge[0]]).begin.append(edge)
    for layer in layers:
        part(position[layer.edge.node]).layers.append(layer)
    for above, below in itertools.pairwise(parts):
        above.whole = above.end in {_key(layer.edge) for layer in below.layers}
    for at, leaf in rest:
        part(at).rest.append(leaf)
    for node in order:
        here = part(position[node])
        slots = [slot for slot, edge in enumerate(node.next_functions) if edge == here.end]
        if slots and here.end is not None:
            here.lasts[node] = [(slot, here.end) for slot in slots]
    return parts


def _outputs(node: Node) -> range:
    """Return the numbers of what an operation made."""
    return range(len(node._input_metadata))  # pyright: ignore[reportAttributeAccessIssue]


def width(edge: GradientEdge | Edge) -> int:
    """Return the number of elements of the gradient at an edge."""
    return math.prod(edge[0]._input_metadata[edge[1]].shape)  # pyright: ignore[reportAttributeAccessIssue]


def _worthwhile(places: Sequence[Edge], position: Mapping[Node, int], sizes: Sequence[tuple[int, int]]) -> list[Edge]:
    """Leave out places that are wider than what a pass keeps below them: down to the next place, and there."""
    kept: list[Edge] = []
    below, next_width = len(position), 0
    for place in reversed(places):
        at = position[place[0]]
        between = sum(size for use, size in sizes if at <= use < below)
        if between and between + next_width >= width(place):
            kept.append(place)
            below, next_width = at, width(place)
    return kept[::-1]


def _carrying(walk: Walk) -> set[Node]:
    """Return the nodes that accumulate a gradient, or only pass a weight on to the operation that uses it."""
    found: set[Node] = set()
    for node in reversed(walk.order):
        children = [child for child, _ in node.next_functions if child is not None]
        if node in walk.leaves or (node.name() in CARRIERS and all(child in found for child in children)):
            found.add(node)
    return found


def _uses(node: Node, walk: Walk, position: Mapping[Node, int]) -> list[int]:
    """Return where the leaf of a node is used."""
    found: list[int] = []
    above = [*walk.parents.get(node, ())]
    while above:
        parent = above.pop()
        if parent in position:
            found.append(position[parent])
        else:
            above += walk.parents.get(parent, ())
    return found


def _meetings(
    order: Sequence[Node], position: Mapping[Node, int], uses: Iterable[Sequence[int]], begin: Sequence[Edge]
) -> list[Edge]:
    """Return the edges that all paths pass, in their order, but none that would part the uses of one leaf."""
    first: dict[Edge, int] = dict.fromkeys(begin, 0)
    for at, node in enumerate(order):
        for edge in node.next_functions:
            if edge[0] in position:
                first.setdefault(edge, at + 1)  # type: ignore[arg-type]
    crossing = [0] * (len(order) + 1)
    spans = [(start, position[node]) for (node, _), start in first.items()]
    for start, stop in [*spans, *((min(at) + 1, max(at)) for at in uses if len(at) > 1)]:
        for place in range(start, stop + 1):
            crossing[place] += 1
    incoming = {position[node]: (node, number) for node, number in first}
    return [incoming[place] for place in range(1, len(order)) if crossing[place] == 1 and place in incoming]
