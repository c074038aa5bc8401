"""The gradients of every task, formed one after another (the plain engine), and their way back into ``.grad``."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor

from counterpoint import linalg
from counterpoint.errors import GraphError
from counterpoint.gradients.scope import Scope, find_scope
from counterpoint.gradients.write import accumulate, backward_into

Level = Literal["parameters", "features"]


@dataclasses.dataclass
class TaskGradients:
    """The task gradients of one step.

    Attributes:
        jacobian: One row per task, over the shared parameters or, at the level of features, over their elements.
        scope: Which leaves are shared and which are not.
        private: For each task its gradient of ``scope.private``; ``None`` where it is zero.
        num_backward: Backward passes through the shared part, including the one that :meth:`write` still makes.
    """

    jacobian: Tensor
    scope: Scope
    private: list[list[Tensor | None]]
    num_backward: int
    _features: tuple[Tensor, ...] = ()
    _bypass: list[list[Tensor]] = dataclasses.field(default_factory=list)  # at the level of features: past them

    def gram(self) -> Tensor:
        """Return the inner products of the rows, (K, K) in float64."""
        return linalg.gram(self.jacobian)

    def combine(self, weights: Tensor) -> Tensor:
        """Return the weighted sum of the rows, (N,)."""
        return weights.to(self.jacobian) @ self.jacobian

    def write(
        self,
        direction: Tensor,
        private_weights: Sequence[float],
        check: Callable[[Sequence[Tensor]], None],
        *,
        weights: Tensor | None = None,
        scale: float = 1.0,
    ) -> None:
        """Add the balanced gradient to the shared leaves and each task's own to its private ones.

        Args:
            direction: Combined row (N,).
            private_weights: One factor per task for its private gradient.
            check: Called with gradients made during writing (level ``"features"``); raises to refuse them.
            weights: Task weights (K,) behind ``direction``, where there are any.
            scale: Loss scale of a gradient scaler; multiplies everything written.

        Raises:
            GraphError: At the level of features without weights, if a shared parameter bypasses the features.
        """
        direction = direction if scale == 1.0 else direction * scale
        bypassing = [leaf for leaf in self.scope.shared if leaf not in self.scope.through]
        if self._features:
            if bypassing and weights is None:
                raise GraphError(
                    f"level='features': {len(bypassing)} shared parameters are reached past the features and a "
                    "method without task weights has no gradient for them; use level='parameters'"
                )
            seeds = _split(direction, self._features)
            backward_into(self._features, seeds, self.scope.through, check)
            for position, leaf in enumerate(bypassing):
                rows = torch.stack([row[position].flatten() for row in self._bypass])
                if weights is not None:
                    accumulate(leaf, ((weights.to(rows) * scale) @ rows).view_as(leaf))
        else:
            for leaf, gradient in zip(self.scope.shared, _split(direction, self.scope.shared), strict=True):
                accumulate(leaf, gradient)
        for factor, leaves, gradients in zip(private_weights, self.scope.private, self.private, strict=True):
            for leaf, gradient in zip(leaves, gradients, strict=True):
                if gradient is not None:
                    accumulate(leaf, gradient * (factor * scale) if factor * scale != 1.0 else gradient.clone())


def task_gradients(
    losses: Sequence[Tensor],
    *,
    shared: Iterable[Tensor] | None = None,
    features: Sequence[Tensor] = (),
    level: Level = "parameters",
    scale: float = 1.0,
    retain_graph: bool = False,
) -> TaskGradients:
    """Differentiate each loss once.

    Args:
        losses: One scalar per task, each with a graph.
        shared: Leaves to balance; default as in :func:`~counterpoint.gradients.scope.find_scope`.
        features: Tensors where the heads begin. With them each head is differentiated once, and the trunk once a
            task, or, at the level of features, once in all.
        level: Whether the rows are gradients of the parameters or of the features.
        scale: Each loss is multiplied by this during the backward pass, and the rows are divided by it again.
        retain_graph: Keep the graph for another backward pass.

    Raises:
        GraphError: If features are asked for and no loss depends on them.
    """
    scope = find_scope(losses, shared=shared, features=features)
    if not features:
        return _without_features(losses, scope, scale=scale, retain_graph=retain_graph)
    features = tuple(features)
    direct = [leaf for leaf in scope.shared if leaf not in scope.through]
    through = [leaf for leaf in scope.shared if leaf in scope.through]
    heads, bypass, private = [], [], []
    for loss, leaves in zip(losses, scope.private, strict=True):
        found = _differentiate([loss], [*features, *direct, *leaves], [torch.full_like(loss, scale)], retain_graph=True)
        if all(gradient is None for gradient in found[: len(features)]):
            heads.append(None)
        else:
            heads.append(_dense(found[: len(features)], features))
        rest = found[len(features) :]
        bypass.append(_dense(rest[: len(direct)], direct))
        private.append([None if gradient is None else _unscaled(gradient, scale) for gradient in rest[len(direct) :]])
    if all(head is None for head in heads):
        raise GraphError("features: no loss depends on the features; pass the tensors that the heads were given")
    zeros = [torch.zeros_like(feature) for feature in features]
    heads = [zeros if head is None else head for head in heads]
    bypass = [[_unscaled(gradient, scale) for gradient in row] for row in bypass]
    if level == "features":
        jacobian = _empty(len(losses), features)
        for row, head in zip(jacobian, heads, strict=True):
            _fill(row, head)
        jacobian = _unscaled(jacobian, scale)
        return TaskGradients(jacobian, scope, private, 1, features, bypass)
    ordered = dataclasses.replace(scope, shared=(*direct, *through))
    jacobian = _empty(len(losses), ordered.shared)
    num_direct = sum(leaf.numel() for leaf in direct)
    for task, (row, head) in enumerate(zip(jacobian, heads, strict=True)):
        last = task == len(losses) - 1
        found = _differentiate(features, through, head, retain_graph=retain_graph or not last)
        _fill(row[:num_direct], bypass[task])
        _fill(row[num_direct:], _dense(found, through))
        row[num_direct:] = _unscaled(row[num_direct:], scale)
    return TaskGradients(jacobian, ordered, private, len(losses))


def _without_features(losses: Sequence[Tensor], scope: Scope, *, scale: float, retain_graph: bool) -> TaskGradients:
    jacobian = _empty(len(losses), scope.shared)
    private: list[list[Tensor | None]] = []
    for task, (loss, leaves) in enumerate(zip(losses, scope.private, strict=True)):
        last = task == len(losses) - 1
        seed = [torch.full_like(loss, scale)]
        found = _differentiate([loss], [*scope.shared, *leaves], seed, retain_graph=retain_graph or not last)
        _fill(jacobian[task], _dense(found[: len(scope.shared)], scope.shared))
        own = found[len(scope.shared) :]
        private.append([None if gradient is None else _unscaled(gradient, scale) for gradient in own])
    return TaskGradients(_unscaled(jacobian, scale), scope, private, len(losses))


def measure_gram(
    losses: Sequence[Tensor], *, shared: Iterable[Tensor] | None = None, features: Sequence[Tensor] = ()
) -> Tensor:
    """Return the Gram matrix of the task gradients (K, K) in float64; writes nothing and keeps the graph.

    Args:
        losses: One scalar per task, each with a graph.
        shared: Leaves to differentiate; default as in :func:`~counterpoint.gradients.scope.find_scope`.
        features: Tensors where the heads begin, if known: saves walking the heads again.
    """
    return task_gradients(losses, shared=shared, features=features, retain_graph=True).gram()


def _differentiate(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], seeds: Sequence[Tensor], *, retain_graph: bool
) -> tuple[Tensor | None, ...]:
    if not inputs:
        return ()
    return torch.autograd.grad(outputs, inputs, seeds, retain_graph=retain_graph, allow_unused=True)


def _dense(gradients: Sequence[Tensor | None], leaves: Sequence[Tensor]) -> list[Tensor]:
    """Replace a missing gradient by zeros and a sparse one by a dense one."""
    pairs = zip(gradients, leaves, strict=True)
    return [
        torch.zeros_like(leaf) if gradient is None else gradient.to_dense() if gradient.is_sparse else gradient
        for gradient, leaf in pairs
    ]


def _empty(num_tasks: int, leaves: Sequence[Tensor]) -> Tensor:
    """Return an uninitialized matrix with a row per task and a column per element of the leaves."""
    if not leaves:
        return torch.zeros(num_tasks, 0)
    dtype = torch.float32
    for leaf in leaves:
        dtype = torch.promote_types(dtype, leaf.dtype)
    return torch.empty(num_tasks, sum(leaf.numel() for leaf in leaves), dtype=dtype, device=leaves[0].device)


def _fill(row: Tensor, pieces: Sequence[Tensor]) -> None:
    """Copy tensors one behind the other into a row."""
    start = 0
    for piece in pieces:
        row[start : start + piece.numel()].view(piece.shape).copy_(piece)
        start += piece.numel()


def _split(direction: Tensor, leaves: Sequence[Tensor]) -> list[Tensor]:
    """Cut a row into tensors of the shape, dtype and device of the leaves."""
    pieces = direction.split([leaf.numel() for leaf in leaves]) if leaves else ()
    return [piece.view(leaf.shape).to(leaf) for piece, leaf in zip(pieces, leaves, strict=True)]


def _unscaled(gradient: Tensor, scale: float) -> Tensor:
    return gradient if scale == 1.0 else gradient / scale
