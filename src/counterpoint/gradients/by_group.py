"""The Gram matrix of the task gradients of each layer apart, without ever holding all gradients of all tasks."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from counterpoint import linalg
from counterpoint.gradients.backward import full_precision
from counterpoint.gradients.heads import differentiate_heads, find_frontier
from counterpoint.gradients.jacobian import by_owner, grams_of_columns, sum_by_group
from counterpoint.gradients.layers import Layer, find_layers, leaves_outside
from counterpoint.gradients.low_memory import Block, by_task, find_stretches, pass_stretch, width
from counterpoint.gradients.passes import is_batchable, run_passes
from counterpoint.gradients.products import layer_gram
from counterpoint.gradients.scope import Scope, Walk, find_scope


def group_grams(
    losses: Sequence[Tensor], groups: Mapping[str, Sequence[Tensor]], *, scale: float = 1.0
) -> dict[str, Tensor]:
    """Return the inner products of the task gradients of each group of leaves; keeps the graph, writes nothing.

    The network is passed in stretches, all tasks through one before any of them enters the next, as by
    :func:`~counterpoint.gradients.low_memory.low_memory_gradients`. Of a layer that is understood the output gradients
    of all tasks are kept while its stretch is passed, if they are smaller than its weight, and of everything else the
    gradients. Small trunks on few rows, in which one pass serves all tasks, are passed at once, and so is a network
    that no place divides (a U-Net, heads that use a shared weight themselves).

    Args:
        losses: One scalar per task, each with a graph.
        groups: Name -> leaves, each leaf in one group only.
        scale: Each loss is multiplied by this during the backward pass; the result does not have it in it.

    Returns:
        Name -> (K, K) in float64 on the CPU, of each group of which two tasks or more reach a leaf, in the order of
        ``groups``; zero in the row and column of a task that does not reach it.
    """
    with full_precision(losses[0].device):
        return _group_grams(losses, groups, scale)


def _group_grams(losses: Sequence[Tensor], groups: Mapping[str, Sequence[Tensor]], scale: float) -> dict[str, Tensor]:
    walk = Walk()
    scope = find_scope(losses, walk=walk)
    owner = by_owner(groups)
    wanted = [leaf for leaf in scope.shared if leaf in owner]
    layers = [layer for layer in find_layers(wanted, walk) if _fits(layer, owner)]

    def parts() -> Iterator[tuple[str, Tensor]]:
        for leaf in wanted:  # one that nothing arrives at has zeros
            yield owner[leaf], torch.zeros(len(losses), len(losses), dtype=torch.float64)
        for block in _blocks(losses, scope, walk, layers, wanted, scale):
            for layer, outputs in zip(block.layers, block.outputs, strict=True):
                yield owner[layer.weight], _layer_part(layer, outputs).cpu()
            yield from grams_of_columns(block.rows, block.rest, owner)

    return {name: gram / scale / scale for name, gram in sum_by_group(parts(), groups).items()}


def _fits(layer: Layer, owner: Mapping[Tensor, str]) -> bool:
    """Return whether to keep the output gradients of a layer: they are small, and its leaves are in one group."""
    return width(layer.edge) <= layer.weight.numel() and len({owner.get(leaf) for leaf in layer.leaves}) == 1


def _blocks(
    losses: Sequence[Tensor],
    scope: Scope,
    walk: Walk,
    layers: Sequence[Layer],
    wanted: Sequence[Tensor],
    scale: float,
) -> Iterator[Block]:
    """Yield the stretches of the network one after another, or all of it at once if it cannot be divided."""
    if not wanted:
        return
    edges, lasts = find_frontier(losses, walk)
    common = {node for node, mask in walk.masks.items() if mask & (mask - 1)}
    balanced = set(scope.shared)
    dividable = all((node in common) == (leaf in balanced) for node, leaf in walk.leaves.items())
    own = Scope(tuple(wanted), ((),) * len(losses))  # what only one task reaches is not differentiated
    rest = leaves_outside(wanted, layers)
    at_once = not dividable or is_batchable(own, walk, layers, rest)  # few rows: their output gradients are small
    parts = [] if at_once else find_stretches(common, walk, layers, wanted, list(edges))
    if parts:
        heads, _ = differentiate_heads(losses, own, walk, edges, lasts, scale=scale, retain_graph=True)
        seeds = by_task(heads)
        del heads
        for part in parts:
            yield pass_stretch(part, seeds, len(losses))
        return
    found = run_passes(losses, own, walk, layers, rest, scale=scale, retain_graph=True, workspace=None)
    yield Block(list(layers), list(found.outputs), rest, list(found.rows))


def _layer_part(layer: Layer, outputs: Tensor) -> Tensor:
    """Return the Gram matrix of a layer by what costs less: from products, or from gradients formed for it alone."""
    if layer.pays(len(outputs)):
        return layer_gram(layer, outputs, in_pieces=True)
    dtype = torch.promote_types(torch.float32, outputs.dtype)
    rows = [torch.cat([piece.flatten() for piece in layer.gradients(output.to(dtype))]) for output in outputs]
    return linalg.gram(torch.stack(rows))
