"""Layers whose part of the Gram matrix needs no weight gradients, recognized in the autograd graph.

The gradient of a weight that multiplies N rows is a product ``D' X`` of output gradients D (N, d_out) and inputs X
(N, d_in). With D_i of task i, ``<D_i' X, D_j' X> = <(X X') D_i, D_j>``: where N is small against the layer, this costs
far less than K products and their inner products.
"""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node
from torch.nn import functional

from counterpoint import linalg
from counterpoint.gradients.scope import Walk

Parents = Mapping[Node, Collection[Node]]
_PASSING = ("TBackward0", "ToCopyBackward0")  # between a weight and the operation that uses it
_ROW_TRAFFIC = 4.0  # an inner product of long rows waits for memory: its operations cost this many of a matrix product
_PIECE = 128  # columns of the output gradients whose products are made at once where memory is short
_CHANNELS = 32  # the same of a convolution, whose outputs have many positions


@dataclasses.dataclass
class Layer(ABC):
    """One operation with a weight, and a bias perhaps, that nothing else uses.

    Attributes:
        edge: Where the gradients of the output arrive.
        weight: The leaf.
        bias: The leaf, or ``None``.
    """

    edge: GradientEdge
    weight: Tensor
    bias: Tensor | None

    @property
    def leaves(self) -> list[Tensor]:
        """The leaves that the layer answers for."""
        return [self.weight] if self.bias is None else [self.weight, self.bias]

    @abstractmethod
    def pays(self, num_tasks: int) -> bool:
        """Return whether the products cost less than the gradients, by counting operations."""

    @abstractmethod
    def num_rows(self) -> int:
        """Return the number N of rows that the weight multiplies."""

    @abstractmethod
    def factors(self, outputs: Tensor, *, exact: bool) -> tuple[Tensor, Tensor]:
        """Return two matrices (K, C) whose rows have the inner products of the gradients.

        Args:
            outputs: Output gradients of the tasks, (K, *output shape).
            exact: Do all of it in float64.
        """

    def gram(self, outputs: Tensor, *, exact: bool) -> Tensor:
        """Return the inner products (K, K) of the gradients, in float64; arguments as of :meth:`factors`."""
        return linalg.cross_gram(*self.factors(outputs, exact=exact))

    def gram_in_pieces(self, outputs: Tensor, *, exact: bool) -> Tensor:
        """Return the same as :meth:`gram`, where possible part by part, so that little memory is needed."""
        return self.gram(outputs, exact=exact)

    @abstractmethod
    def gradients(self, output: Tensor) -> list[Tensor]:
        """Return the gradients of the leaves that belong to one output gradient."""


@dataclasses.dataclass
class _Product(Layer):
    """A layer whose weight gradient is a product of N rows, in one or more groups."""

    @abstractmethod
    def rows(self) -> Tensor:
        """Return the inputs, (G, N, d_in)."""

    @abstractmethod
    def split(self, outputs: Tensor) -> Tensor:
        """Return output gradients as (K, G, N, d_out)."""

    @abstractmethod
    def size(self) -> tuple[int, int, int, int]:
        """Return G, N, d_in and d_out."""

    def num_rows(self) -> int:
        return self.size()[1]

    def pays(self, num_tasks: int) -> bool:
        groups, rows, inputs, outputs = self.size()
        k = num_tasks
        with_products = groups * rows * (rows * inputs + k * rows * outputs + k * k * outputs)
        weights = groups * inputs * outputs
        with_gradients = k * weights * rows + _ROW_TRAFFIC * k * (k + 2) * weights
        return with_products < with_gradients

    def pieces(self, outputs: Tensor) -> Sequence[Tensor]:
        """Cut output gradients into parts whose inner products add up."""
        return (outputs,)

    def similarity(self, dtype: torch.dtype) -> Tensor:
        """Return the inner products of the rows, (G, N, N), with those of the ones that a bias multiplies."""
        x = self.rows().to(dtype)
        products = x @ x.mT
        if self.bias is not None:
            products += 1.0
        return products

    def factors(self, outputs: Tensor, *, exact: bool) -> tuple[Tensor, Tensor]:
        dtype = _dtype(outputs, exact=exact)
        return self._factors(self.similarity(dtype), self.split(outputs).to(dtype))

    def gram_in_pieces(self, outputs: Tensor, *, exact: bool) -> Tensor:
        dtype = _dtype(outputs, exact=exact)
        similarity = self.similarity(dtype)
        parts = (self.split(piece).to(dtype) for piece in self.pieces(outputs))
        return torch.stack([linalg.cross_gram(*self._factors(similarity, part)) for part in parts]).sum(dim=0)

    @staticmethod
    def _factors(similarity: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
        if len(similarity) == 1:  # one group: a plain batch of products
            return torch.bmm(similarity.expand(len(d), -1, -1), d[:, 0]).flatten(1), d.flatten(1)
        return (similarity @ d).flatten(1), d.flatten(1)


def _dtype(outputs: Tensor, *, exact: bool) -> torch.dtype:
    return torch.float64 if exact else torch.promote_types(torch.float32, outputs.dtype)


@dataclasses.dataclass
class _Linear(_Product):
    x: Tensor = dataclasses.field(repr=False)
    transposed: bool = True

    def rows(self) -> Tensor:
        return self.x[None]

    def split(self, outputs: Tensor) -> Tensor:
        return outputs[:, None]

    def pieces(self, outputs: Tensor) -> Sequence[Tensor]:
        return outputs.split(_PIECE, dim=-1)

    def size(self) -> tuple[int, int, int, int]:
        return 1, *self.x.shape, self.weight.numel() // max(self.x.shape[1], 1)  # type: ignore[return-value]

    def gradients(self, output: Tensor) -> list[Tensor]:
        x = self.x.to(output.dtype)
        weight = output.mT @ x if self.transposed else x.mT @ output
        return [weight] if self.bias is None else [weight, output.sum(dim=0)]


@dataclasses.dataclass
class _Convolution(_Product):
    x: Tensor = dataclasses.field(repr=False)
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    positions: int = 1

    def rows(self) -> Tensor:
        x, kernel = self.x, tuple(self.weight.shape[2:])
        options = [self.dilation, self.padding, self.stride]
        if x.ndim == 3:  # one dimension is two, of which the first has length 1
            x, kernel = x[:, :, None], (1, *kernel)
            options = [(1, *self.dilation), (0, *self.padding), (1, *self.stride)]
        columns = functional.unfold(x, kernel, *options)  # (B, C * kernel, L)
        batch, _, length = columns.shape
        split = columns.view(batch, self.groups, -1, length).permute(1, 0, 3, 2)
        return split.reshape(self.groups, batch * length, -1)

    def pieces(self, outputs: Tensor) -> Sequence[Tensor]:
        return outputs.split(_CHANNELS, dim=2) if self.groups == 1 else (outputs,)

    def split(self, outputs: Tensor) -> Tensor:
        tasks, batch = outputs.shape[:2]
        split = outputs.reshape(tasks, batch, self.groups, -1, self.positions)
        return split.permute(0, 2, 1, 4, 3).reshape(tasks, self.groups, batch * self.positions, -1)

    def size(self) -> tuple[int, int, int, int]:
        outputs = self.weight.shape[0] // self.groups
        return self.groups, self.x.shape[0] * self.positions, self.weight[0].numel(), outputs

    def gradients(self, output: Tensor) -> list[Tensor]:
        has_bias = self.bias is not None
        dims = len(self.stride)
        _, weight, bias = torch.ops.aten.convolution_backward(
            output,
            self.x.to(output.dtype),
            self.weight.detach().to(output.dtype),
            [self.weight.shape[0]] if has_bias else None,
            self.stride,
            self.padding,
            self.dilation,
            False,
            [0] * dims,
            self.groups,
            [False, True, has_bias],
        )
        return [weight, bias] if has_bias else [weight]


@dataclasses.dataclass
class _Embedding(Layer):
    """A table of vectors: only the rows that the batch looked up have a gradient."""

    indices: Tensor = dataclasses.field(repr=False)
    padding_index: int = -1

    def pays(self, num_tasks: int) -> bool:  # noqa: ARG002 - whatever their number
        return 2 * self.indices.numel() < self.weight.shape[0]

    def num_rows(self) -> int:
        return self.indices.numel()

    def _sums(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return the entries that were looked up, and the sums of their gradients (K, U, d)."""
        flat = self.indices.flatten()
        entries, position = flat.unique(return_inverse=True)
        d = outputs.reshape(len(outputs), flat.numel(), -1)
        if self.padding_index >= 0:
            d = d * (flat != self.padding_index)[:, None].to(d)
        return entries, d.new_zeros(len(d), len(entries), d.shape[2]).index_add_(1, position, d)

    def factors(self, outputs: Tensor, *, exact: bool) -> tuple[Tensor, Tensor]:
        dtype = _dtype(outputs, exact=exact)
        sums = self._sums(outputs.to(dtype))[1].flatten(1)
        return sums, sums

    def gradients(self, output: Tensor) -> list[Tensor]:
        entries, sums = self._sums(output[None])
        gradient = output.new_zeros(self.weight.shape)
        gradient[entries] = sums[0]
        return [gradient]


def find_layers(leaves: Sequence[Tensor], walk: Walk) -> list[Layer]:
    """Return the layers among whose leaves are some of ``leaves``, each with one use in the graph.

    A leaf with hooks is in none: what a hook makes of a gradient is known only once the gradient is there.

    Args:
        leaves: Leaves that may be taken.
        walk: What the walk that found them saw.
    """
    wanted = {leaf for leaf in leaves if not leaf._backward_hooks}
    uses = {leaf: _use(node, walk.parents) for node, leaf in walk.leaves.items() if leaf in wanted}
    biases = {(use[0], use[1]): leaf for leaf, use in uses.items() if use is not None}
    found = [_layer(leaf, use, biases) for leaf, use in uses.items() if use is not None]
    return [layer for layer in found if layer is not None]


def leaves_outside(leaves: Iterable[Tensor], layers: Iterable[Layer]) -> list[Tensor]:
    """Return the leaves that are in none of the layers."""
    taken = {leaf for layer in layers for leaf in layer.leaves}
    return [leaf for leaf in leaves if leaf not in taken]


def _use(node: Node, parents: Parents) -> tuple[Node, int, bool] | None:
    """Return the one operation that uses a leaf, the place of the leaf in it, and whether it is transposed before."""
    transposed = False
    while True:
        above = parents.get(node, ())
        if len(above) != 1:
            return None
        parent = next(iter(above))
        slots = [slot for slot, (child, _) in enumerate(parent.next_functions) if child is node]
        if len(slots) != 1:
            return None
        if parent.name() not in _PASSING:
            return parent, slots[0], transposed
        transposed ^= parent.name() == "TBackward0"
        node = parent


def _layer(leaf: Tensor, use: tuple[Node, int, bool], biases: Mapping[tuple[Node, int], Tensor]) -> Layer | None:
    """Return the layer whose weight a leaf is, or ``None`` if it is none that is understood."""
    node: Any  # what a node has saved depends on its kind
    node, slot, transposed = use
    edge, name = GradientEdge(node, 0), node.name()
    if leaf.is_complex():
        return None
    if (name, slot) == ("AddmmBackward0", 2) and node._saved_alpha == 1 and node._saved_beta == 1:
        x = _saved(node, "mat1")
        bias = biases.get((node, 0))
        if x is None:
            return None
        outputs = leaf.shape[0 if transposed else 1]
        fits = bias is not None and bias.shape == (outputs,)  # else it is broadcast, and summed over more than rows
        return _Linear(edge, leaf, bias if fits else None, x, transposed)
    if (name, slot) == ("MmBackward0", 1):
        x = _saved(node, "self")
        return None if x is None else _Linear(edge, leaf, None, x, transposed)
    if (name, slot) == ("ConvolutionBackward0", 1) and not transposed:
        return _convolution(node, edge, leaf, biases.get((node, 2)))
    if (name, slot) == ("EmbeddingBackward0", 0) and not transposed:
        if node._saved_scale_grad_by_freq or node._saved_sparse:
            return None
        indices = _saved(node, "indices")
        return None if indices is None else _Embedding(edge, leaf, None, indices, node._saved_padding_idx)
    return None


def _convolution(node: Any, edge: GradientEdge, leaf: Tensor, bias: Tensor | None) -> Layer | None:
    x = _saved(node, "input")
    if x is None or node._saved_transposed or leaf.ndim not in (3, 4) or x.ndim != leaf.ndim:
        return None
    stride, padding, dilation = node._saved_stride, node._saved_padding, node._saved_dilation
    sizes = zip(x.shape[2:], leaf.shape[2:], stride, padding, dilation, strict=True)
    positions = 1
    for length, kernel, step, pad, spread in sizes:
        positions *= (length + 2 * pad - spread * (kernel - 1) - 1) // step + 1
    return _Convolution(edge, leaf, bias, x, stride, padding, dilation, node._saved_groups, positions)


def _saved(node: Node, name: str) -> Tensor | None:
    """Return a tensor that the graph keeps, or ``None`` if it is no plain dense one or reading it is not free.

    Activation checkpointing and offloading keep something else and compute or fetch the tensor when it is read.
    """
    raw = getattr(node, f"_raw_saved_{name}", None)
    if raw is None or getattr(raw, "unpack_hook", raw) is not None:  # an old torch does not tell: be careful
        return None
    value = getattr(node, f"_saved_{name}").detach()
    return value if type(value) is Tensor and value.layout == torch.strided else None
