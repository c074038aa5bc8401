"""The backward passes of all tasks down to given places: one after another, or through small trunks all at once."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

from counterpoint.gradients.backward import differentiate
from counterpoint.gradients.heads import differentiate_heads, find_frontier, stack_gradients, unscaled_all
from counterpoint.gradients.jacobian import Workspace, empty_rows, fill_row
from counterpoint.gradients.layers import Layer
from counterpoint.gradients.scope import Scope, Walk, loss_edge

Edge = tuple[Node, int]
# with more rows than this the products of one task fill the processor, and there is nothing to gain
_FEW_ROWS = 128
# operations whose derivatives treat a further dimension in front correctly and as fast as a loop over it
_BATCHABLE = frozenset(
    f"{name}Backward0"
    for name in (
        *("Add", "Addmm", "Cat", "Clone", "Div", "Elu", "Expand", "Gelu", "Hardtanh", "LeakyRelu", "Mm", "Mul"),
        *("NativeLayerNorm", "Neg", "Permute", "Relu", "Sigmoid", "Silu", "Softplus", "Sub", "T"),
        *("Tanh", "ToCopy", "Transpose", "UnsafeView", "Unsqueeze", "View"),
    )
)


@dataclasses.dataclass
class Passes:
    """What the backward passes of all tasks brought.

    Attributes:
        outputs: For each layer the output gradients of all tasks, (K, *output shape).
        rows: The gradients of the other shared leaves, (K, R).
        private: For each task its gradient of its own leaves, divided by the loss scale; ``None`` where it is zero.
    """

    outputs: list[Tensor]
    rows: Tensor
    private: list[list[Tensor | None]]


def run_passes(
    losses: Sequence[Tensor],
    scope: Scope,
    walk: Walk,
    layers: Sequence[Layer],
    rest: Sequence[Tensor],
    *,
    scale: float,
    retain_graph: bool,
    workspace: Workspace | None,
) -> Passes:
    """Differentiate each loss once, down to the outputs of the layers, the other shared leaves and its own leaves.

    Args:
        losses: One scalar per task, each with a graph.
        scope: Their leaves.
        walk: What the walk that found them saw.
        layers: Layers whose output gradients are wanted.
        rest: The shared leaves of no layer.
        scale: Each loss is multiplied by this; outputs and rows still have it in them.
        retain_graph: Keep the graph for another backward pass.
        workspace: Where the rows are kept.
    """
    if is_batchable(scope, walk, layers, rest):
        return _through_frontier(
            losses, scope, walk, layers, rest, scale=scale, retain_graph=retain_graph, workspace=workspace
        )
    rows = empty_rows(len(losses), rest, workspace)
    outputs: list[list[Tensor | None]] = []
    private: list[list[Tensor | None]] = []
    for task, (loss, own) in enumerate(zip(losses, scope.private, strict=True)):
        gradients = differentiate_layers(
            [loss_edge(loss)],
            layers,
            [*rest, *own],
            [torch.full_like(loss, scale)],
            retain_graph=retain_graph or task < len(losses) - 1,
        )
        outputs.append(list(gradients[: len(layers)]))
        fill_row(rows[task], gradients[len(layers) : len(layers) + len(rest)], rest)
        private.append(unscaled_all(gradients[len(layers) + len(rest) :], scale))
    return Passes(
        _dense([stack_gradients(found) for found in zip(*outputs, strict=True)], layers, losses), rows, private
    )


def _dense(outputs: Sequence[Tensor | None], layers: Sequence[Layer], losses: Sequence[Tensor]) -> list[Tensor]:
    """Put zeros where no task's gradient came to a layer, as a row of such a leaf has."""
    filled: list[Tensor] = []
    for output, layer in zip(outputs, layers, strict=True):
        if output is None:
            about: Any = layer.edge.node._input_metadata[layer.edge.output_nr]  # pyright: ignore[reportAttributeAccessIssue]
            output = torch.zeros(len(losses), *about.shape, dtype=about.dtype, device=about.device)
        filled.append(output)
    return filled


def differentiate_layers(
    edges: Sequence[GradientEdge],
    layers: Sequence[Layer],
    inputs: Sequence[Tensor | GradientEdge],
    seeds: Sequence[Tensor],
    *,
    retain_graph: bool,
) -> list[Tensor | None]:
    """Run one backward pass down to the outputs of layers and to other inputs; ``None`` for what is not reached.

    Where a pass goes on below an edge, autograd tells the gradient that arrives there before the hooks on the tensor;
    what the layer works with is known to its node.
    """
    seen: dict[Node, Tensor] = {}

    def keep(node: Node) -> Callable[[Sequence[Tensor | None]], None]:
        def hook(arriving: Sequence[Tensor | None]) -> None:
            if arriving[0] is not None:
                seen[node] = arriving[0]

        return hook

    nodes = [layer.edge.node for layer in layers]
    handles = [node.register_prehook(keep(node)) for node in nodes]  # pyright: ignore[reportArgumentType]
    try:
        found = differentiate(edges, [*(layer.edge for layer in layers), *inputs], seeds, retain_graph=retain_graph)
    finally:
        for handle in handles:
            handle.remove()
    told = found[: len(layers)]
    return [*(seen.get(node, other) for node, other in zip(nodes, told, strict=True)), *found[len(layers) :]]


def is_batchable(scope: Scope, walk: Walk, layers: Sequence[Layer], rest: Sequence[Tensor]) -> bool:
    """Return whether one pass for all tasks is possible below the heads and pays."""
    if any(layer.num_rows() > _FEW_ROWS for layer in layers) or any(t._backward_hooks or t.is_complex() for t in rest):
        return False
    common = {node for node, mask in walk.masks.items() if mask & (mask - 1)}
    balanced = set(scope.shared)
    if any((node in common) != (leaf in balanced) for node, leaf in walk.leaves.items()):
        return False  # else what a head's own pass finds is no row, and what is below is nobody's own
    known = {*walk.leaves, *(layer.edge.node for layer in layers)}
    return all(node in known or node.name() in _BATCHABLE for node in common)


def _through_frontier(
    losses: Sequence[Tensor],
    scope: Scope,
    walk: Walk,
    layers: Sequence[Layer],
    rest: Sequence[Tensor],
    *,
    scale: float,
    retain_graph: bool,
    workspace: Workspace | None,
) -> Passes:
    """Differentiate each head once, and everything below all of them in one pass, or in one a task if that fails.

    What lies below keeps its graph, as the pass for all tasks may have to be given up halfway; it is small.
    """
    edges, lasts = find_frontier(losses, walk)
    heads, private = differentiate_heads(losses, scope, walk, edges, lasts, scale=scale, retain_graph=retain_graph)
    reached = [(GradientEdge(*edge), gradients) for edge, gradients in heads.items()]
    found = _below(reached, layers, rest)
    rows = empty_rows(len(losses), rest, workspace)
    for task, row in enumerate(rows):
        fill_row(row, [None if g is None else g[task] for g in found[len(layers) :]], rest)
    return Passes(_dense(found[: len(layers)], layers, losses), rows, private)


def _below(
    reached: Sequence[tuple[GradientEdge, Tensor]], layers: Sequence[Layer], rest: Sequence[Tensor]
) -> Sequence[Tensor | None]:
    """Differentiate edges with their gradients of all tasks, (K, ...), and return stacked gradients."""
    edges, seeds = [edge for edge, _ in reached], [gradients for _, gradients in reached]
    reaches: list[bool] = []

    def run(*gradients: Tensor) -> tuple[Tensor, ...]:
        found = differentiate_layers(edges, layers, rest, gradients, retain_graph=True)
        reaches[:] = [gradient is not None for gradient in found]
        return tuple(gradient for gradient in found if gradient is not None)

    try:
        values = iter(torch.func.vmap(run)(*seeds))
        return [next(values) if here else None for here in reaches]
    except (RuntimeError, ValueError, TypeError):  # a hook that looks at the values of a gradient, for example
        alone = [
            differentiate_layers(edges, layers, rest, list(seed), retain_graph=True)
            for seed in zip(*seeds, strict=True)
        ]
        return [stack_gradients(found) for found in zip(*alone, strict=True)]
