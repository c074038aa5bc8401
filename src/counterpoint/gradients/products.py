"""The Gram matrix of the task gradients without the gradients, where that is cheaper, and the update from its parts."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from counterpoint import linalg
from counterpoint.gradients.backward import full_precision, unscaled
from counterpoint.gradients.jacobian import (
    Workspace,
    by_owner,
    grams_of_columns,
    split_row,
    sum_by_group,
    task_gradients,
    write_private,
)
from counterpoint.gradients.layers import Layer, find_layers, leaves_outside
from counterpoint.gradients.passes import run_passes
from counterpoint.gradients.scope import Scope, Walk, find_scope
from counterpoint.gradients.write import accumulate

_SMALL, _LARGE = 1e-24, 1e36  # squared lengths between which products in float32 neither underflow nor overflow


@dataclasses.dataclass
class ByLeaf(ABC):
    """The task gradients of one step, in a form that gives their Gram matrix and weighted sums of them by leaf.

    Attributes:
        scope: Which leaves are shared and which are not.
        private: For each task its gradient of ``scope.private``; ``None`` where it is zero.
        num_backward: Backward passes through the shared part; the products of the update are no pass of their own.
        scale: Loss scale that is still in everything else that is kept.
    """

    scope: Scope
    private: list[list[Tensor | None]]
    num_backward: int
    scale: float

    @property
    def bypass(self) -> list[list[Tensor]]:
        """No leaf is reached past anything."""
        return []

    @property
    @abstractmethod
    def leaves(self) -> list[Tensor]:
        """The shared leaves in the order of :meth:`combine`."""

    @abstractmethod
    def gram(self) -> Tensor:
        """Return the inner products of the task gradients, (K, K) in float64."""

    @abstractmethod
    def combine(self, weights: Tensor) -> list[Tensor]:
        """Return the weighted sum of the task gradients, a tensor for each leaf of :attr:`leaves`."""

    def write(
        self,
        direction: Sequence[Tensor],
        private_weights: Sequence[float],
        check: Callable[[Sequence[Tensor]], None],  # noqa: ARG002 - nothing is made during writing
        *,
        weights: Tensor | None = None,  # noqa: ARG002
        scale: float = 1.0,
    ) -> None:
        """Add the balanced gradient to the shared leaves and each task's own to its private ones.

        Args:
            direction: What :meth:`combine` returned.
            private_weights: One factor per task for its private gradient.
            check: Not called: all gradients were there before.
            weights: Not read.
            scale: Loss scale of a gradient scaler; multiplies everything written.
        """
        accumulate(
            (leaf, (piece * scale if scale != 1.0 else piece).view_as(leaf))
            for leaf, piece in zip(self.leaves, direction, strict=True)
        )
        write_private(self.scope, self.private, [factor * scale for factor in private_weights])


@dataclasses.dataclass
class LayerGradients(ByLeaf):
    """Output gradients of the layers where that is enough, rows for everything else.

    Attributes:
        layers: Layers whose weight gradients are not formed.
        outputs: For each of them the output gradients of all tasks, (K, *output shape), times ``scale``.
        rest: The other shared leaves.
        rows: Their gradients, (K, R), times ``scale``.
    """

    layers: list[Layer]
    outputs: list[Tensor]
    rest: list[Tensor]
    rows: Tensor

    def gram(self) -> Tensor:
        """Return the inner products of the task gradients, (K, K) in float64."""
        total = self._gram(exact=False)
        if not in_range(total):
            total = self._gram(exact=True)
        return total / self.scale / self.scale

    def group_grams(self, groups: Mapping[str, Sequence[Tensor]]) -> dict[str, Tensor]:
        """Return the inner products of the gradients of each group of leaves, from what is there.

        As :func:`~counterpoint.gradients.by_group.group_grams`.
        """
        found = sum_by_group(self._group_parts(by_owner(groups)), groups)
        return {name: gram / self.scale / self.scale for name, gram in found.items()}

    def _group_parts(self, owner: Mapping[Tensor, str]) -> Iterator[tuple[str, Tensor]]:
        """Yield inner products of parts of the leaves, with the group of the part."""
        yield from grams_of_columns(self.rows, self.rest, owner)
        for layer, outputs in zip(self.layers, self.outputs, strict=True):
            owners = {owner.get(leaf) for leaf in layer.leaves}
            if len(owners) == 1 and layer.weight in owner:
                yield owner[layer.weight], layer_gram(layer, outputs).cpu()
            elif owners != {None}:  # a bias in another group than its weight: the gradients themselves
                dtype = torch.promote_types(torch.float32, outputs.dtype)
                alone = [torch.cat([g.flatten() for g in layer.gradients(d.to(dtype))]) for d in outputs]
                yield from grams_of_columns(alone, layer.leaves, owner)

    def _gram(self, *, exact: bool) -> Tensor:
        total = linalg.gram(self.rows).to(self.rows.device)
        for layer, outputs in zip(self.layers, self.outputs, strict=True):
            total = total + linalg.products(*layer.factors(outputs, exact=exact)).to(total.device)
        return (total + total.mT) / 2

    def combine(self, weights: Tensor) -> list[Tensor]:
        """Return the weighted sum of the task gradients, a tensor for each leaf of :attr:`leaves`."""
        pieces: list[Tensor] = []
        for layer, outputs in zip(self.layers, self.outputs, strict=True):
            dtype = torch.promote_types(torch.float32, outputs.dtype)
            pieces += layer.gradients(torch.tensordot(weights.to(outputs.device, dtype), outputs.to(dtype), dims=1))
        row = weights.to(self.rows) @ self.rows
        pieces += split_row(row, self.rest)
        return [unscaled(piece, self.scale) for piece in pieces]

    @property
    def leaves(self) -> list[Tensor]:
        """The shared leaves in the order of :meth:`combine`."""
        return [leaf for layer in self.layers for leaf in layer.leaves] + self.rest


def layer_gram(layer: Layer, outputs: Tensor, *, in_pieces: bool = False) -> Tensor:
    """Return the inner products of the gradients of one layer, in float64 if float32 does not reach.

    Args:
        layer: The layer.
        outputs: Output gradients of all tasks, (K, *output shape).
        in_pieces: Needs less memory, and more time.
    """
    run = layer.gram_in_pieces if in_pieces else layer.gram
    products = run(outputs, exact=False)
    return products if in_range(products) else run(outputs, exact=True)


def in_range(products: Tensor) -> bool:
    """Return whether squared lengths are such that products in float32 neither underflowed nor overflowed."""
    return all(_SMALL < square < _LARGE for square in products.diagonal().tolist())


def layer_gradients(
    losses: Sequence[Tensor],
    *,
    shared: Iterable[Tensor] | None = None,
    features: Sequence[Tensor] = (),
    scale: float = 1.0,
    workspace: Workspace | None = None,
    retain_graph: bool = False,
    always: bool = False,
) -> LayerGradients | None:
    """Differentiate each loss once, down to the outputs of the layers where that is enough.

    Args:
        losses: One scalar per task, each with a graph.
        shared: Leaves to balance; default as in :func:`~counterpoint.gradients.scope.find_scope`.
        features: Tensors where the heads begin; they only tell which leaves count as shared.
        scale: Each loss is multiplied by this during the backward pass.
        workspace: Where the rows of the other leaves are kept.
        retain_graph: Keep the graph for another backward pass.
        always: Take every layer that is understood, whatever it costs.

    Returns:
        The gradients, or ``None`` if there is no layer that pays: form all of them then.
    """
    walk = Walk()
    scope = find_scope(losses, shared=shared, features=features, walk=walk)
    known = find_layers(scope.shared, walk)
    layers = [layer for layer in known if always or layer.pays(len(losses))]
    if not layers:
        return None
    rest = leaves_outside(scope.shared, layers)
    return pass_layers(losses, scope, walk, layers, rest, scale=scale, retain_graph=retain_graph, workspace=workspace)


def pass_layers(
    losses: Sequence[Tensor],
    scope: Scope,
    walk: Walk,
    layers: Sequence[Layer],
    rest: list[Tensor],
    *,
    scale: float,
    retain_graph: bool,
    workspace: Workspace | None,
) -> LayerGradients:
    """Differentiate each loss once, down to given layers and the other shared leaves.

    Arguments as of :func:`~counterpoint.gradients.passes.run_passes`.
    """
    found = run_passes(losses, scope, walk, layers, rest, scale=scale, retain_graph=retain_graph, workspace=workspace)
    return LayerGradients(scope, found.private, len(losses), scale, list(layers), list(found.outputs), rest, found.rows)


def measure_gram(
    losses: Sequence[Tensor], *, shared: Iterable[Tensor] | None = None, features: Sequence[Tensor] = ()
) -> Tensor:
    """Return the Gram matrix of the task gradients (K, K) in float64; writes nothing and keeps the graph.

    Args:
        losses: One scalar per task, each with a graph.
        shared: Leaves to differentiate; default as in :func:`~counterpoint.gradients.scope.find_scope`.
        features: Tensors where the heads begin, if known: saves walking the heads again.
    """
    shared = None if shared is None else list(shared)  # it may be a generator, and is read twice
    with full_precision(losses[0].device):
        found = layer_gradients(losses, shared=shared, features=features, retain_graph=True)
        if found is None:
            return task_gradients(losses, shared=shared, features=features, retain_graph=True).gram()
        return found.gram()
