"""The gradients of every task, formed one after another (the plain engine), and their way back into ``.grad``."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from counterpoint import linalg
from counterpoint.errors import GraphError
from counterpoint.gradients.backward import cut, differentiate, unhooked, unscaled
from counterpoint.gradients.heads import feature_heads
from counterpoint.gradients.scope import Scope, Walk, feature_edges, find_scope, loss_edge
from counterpoint.gradients.write import accumulate, backward_into, scaled_copies

Level = Literal["parameters", "features"]


class Workspace:
    """The matrix of task gradients, kept from step to step: fresh memory costs more than filling it.

    Copies and pickles are empty, so nothing of it gets into a state dict or to another process.
    """

    def __init__(self) -> None:
        self._buffer: Tensor | None = None

    def matrix(self, num_rows: int, num_columns: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return an uninitialized matrix; the one returned before must not be used any more."""
        size = num_rows * num_columns
        buffer = self._buffer
        if buffer is None or buffer.dtype != dtype or buffer.device != device or buffer.numel() < size:
            buffer = self._buffer = torch.empty(size, dtype=dtype, device=device)
        return buffer[:size].view(num_rows, num_columns)

    def __reduce__(self) -> tuple[type["Workspace"], tuple[()]]:
        return Workspace, ()


@dataclasses.dataclass
class TaskGradients:
    """The task gradients of one step.

    Attributes:
        jacobian: One row per task, over the shared parameters or, at the level of features, over their elements.
        scope: Which leaves are shared and which are not.
        private: For each task its gradient of ``scope.private``; ``None`` where it is zero.
        num_backward: Backward passes through the shared part, including the one that :meth:`write` still makes.
        bypass: At the level of features, each task's gradient of the shared leaves that are reached past them.
    """

    jacobian: Tensor
    scope: Scope
    private: list[list[Tensor | None]]
    num_backward: int
    bypass: list[list[Tensor]] = dataclasses.field(default_factory=list)
    _features: tuple[Tensor, ...] = ()

    def gram(self) -> Tensor:
        """Return the inner products of the rows, (K, K) in float64."""
        return linalg.gram(self.jacobian)

    def group_grams(self, groups: Mapping[str, Sequence[Tensor]]) -> dict[str, Tensor]:
        """Return the inner products of the gradients of each group of leaves; not at the level of features.

        As :func:`~counterpoint.gradients.by_group.group_grams`.
        """
        return sum_by_group(grams_of_columns(self.jacobian, self.scope.shared, by_owner(groups)), groups)

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
        if scale != 1.0:
            direction = direction * scale
        elif direction.untyped_storage().data_ptr() == self.jacobian.untyped_storage().data_ptr():
            direction = direction.clone()  # a row as it is: the next step writes over the rows
        if self._features:
            self._write_features(direction, check, weights=weights, scale=scale)
        else:
            pairs = zip(self.scope.shared, split_row(direction, self.scope.shared), strict=True)
            # in columns that are kept from step to step there may be one frozen since
            accumulate((leaf, gradient) for leaf, gradient in pairs if leaf.requires_grad)
        write_private(self.scope, self.private, [factor * scale for factor in private_weights])

    def _write_features(
        self,
        direction: Tensor,
        check: Callable[[Sequence[Tensor]], None],
        *,
        weights: Tensor | None,
        scale: float,
    ) -> None:
        """Send the combined row of the features through the trunk; leaves reached past them take the task weights.

        Raises:
            GraphError: If there are such leaves and no weights.
        """
        past = [leaf for leaf in self.scope.shared if leaf not in self.scope.through]
        if past and weights is None:
            raise GraphError(
                f"level='features': {len(past)} shared parameters are reached past the features and a "
                "method without task weights has no gradient for them; use level='parameters'"
            )
        seeds = split_row(direction, self._features)
        # in the order of the scope, which is that of the graph and so the same in every process; a set has none
        through = [leaf for leaf in self.scope.shared if leaf in self.scope.through]
        with unhooked(self._features):
            backward_into(self._features, seeds, through, check)
        for position, leaf in enumerate(past):
            rows = torch.stack([row[position].flatten() for row in self.bypass])
            if weights is not None:
                accumulate([(leaf, ((weights.to(rows) * scale) @ rows).view_as(leaf))])


def grams_of_columns(
    rows: Sequence[Tensor] | Tensor, leaves: Sequence[Tensor], owner: Mapping[Tensor, str]
) -> Iterator[tuple[str, Tensor]]:
    """Yield the inner products (K, K), in float64 on the CPU, of the columns of each leaf, with the leaf's group.

    Args:
        rows: The gradient of each task, (P,), or all of them, (K, P).
        leaves: The leaves of the columns, in their order.
        owner: The group of each leaf; one that has none is left out.
    """
    start = 0
    for leaf in leaves:
        stop = start + _columns(leaf)
        if leaf in owner:
            yield owner[leaf], linalg.gram_of_list([row[start:stop] for row in rows]).cpu()
        start = stop


def by_owner(groups: Mapping[str, Sequence[Tensor]]) -> dict[Tensor, str]:
    """Return the group of each leaf."""
    return {leaf: name for name, leaves in groups.items() for leaf in leaves}


def sum_by_group(parts: Iterable[tuple[str, Tensor]], groups: Iterable[str]) -> dict[str, Tensor]:
    """Add up the parts of each group; those without a part are left out, the others are in the order of ``groups``."""
    found: dict[str, Tensor] = {}
    for name, part in parts:
        found[name] = found[name] + part if name in found else part
    return {name: found[name] for name in groups if name in found}


def write_private(scope: Scope, gradients: Sequence[Sequence[Tensor | None]], factors: Sequence[float]) -> None:
    """Add each task's gradients of its own leaves, times a factor, to them.

    Copies that become a ``.grad`` are made in one call; others one after another, as each is let go.
    """
    found = [
        (leaf, gradient, factor)
        for leaves, own, factor in zip(scope.private, gradients, factors, strict=True)
        for leaf, gradient in zip(leaves, own, strict=True)
        if gradient is not None
    ]
    new = [(leaf, gradient, factor) for leaf, gradient, factor in found if leaf.grad is None]
    added = [(leaf, gradient, factor) for leaf, gradient, factor in found if leaf.grad is not None]
    copies = scaled_copies([gradient for _, gradient, _ in new], [factor for _, _, factor in new])
    accumulate((leaf, gradient) for (leaf, _, _), gradient in zip(new, copies, strict=True))
    accumulate((leaf, gradient * factor) for leaf, gradient, factor in added)


def task_gradients(
    losses: Sequence[Tensor],
    *,
    shared: Iterable[Tensor] | None = None,
    features: Sequence[Tensor] = (),
    level: Level = "parameters",
    scale: float = 1.0,
    retain_graph: bool = False,
    workspace: Workspace | None = None,
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
        workspace: Where the rows are kept; default fresh memory.

    Raises:
        GraphError: If features are asked for and no loss depends on them.
    """
    features = tuple(_distinct(features))
    walk = Walk()
    scope = find_scope(losses, shared=shared, features=features, walk=walk)
    if not features:
        return _without_features(losses, scope, workspace, scale=scale, retain_graph=retain_graph)
    direct = [leaf for leaf in scope.shared if leaf not in scope.through]
    heads, bypass, private = _heads(losses, scope, walk, features, direct, scale=scale)
    crossing = any(leaf in scope.below for own in (direct, *scope.private) for leaf in own)
    passes = len(losses) if crossing else 0
    if level == "features":
        jacobian = empty_rows(len(losses), features, workspace)
        fill_rows(jacobian, heads, features)
        return TaskGradients(unscaled(jacobian, scale), scope, private, passes + 1, bypass, features)
    through = [leaf for leaf in scope.shared if leaf in scope.through]
    ordered = dataclasses.replace(scope, shared=(*direct, *through))
    jacobian = empty_rows(len(losses), ordered.shared, workspace)
    for task, (row, head) in enumerate(zip(jacobian, heads, strict=True)):
        last = task == len(losses) - 1
        with unhooked(features):
            found = differentiate(features, through, head, retain_graph=retain_graph or not last)
        # the trunk's part still has the loss scale in it
        fill_row(row, [*bypass[task], *(None if g is None else unscaled(g, scale) for g in found)], ordered.shared)
    return TaskGradients(jacobian, ordered, private, passes + len(losses))


def _heads(
    losses: Sequence[Tensor],
    scope: Scope,
    walk: Walk,
    features: Sequence[Tensor],
    direct: Sequence[Tensor],
    *,
    scale: float,
) -> tuple[list[list[Tensor]], list[list[Tensor]], list[list[Tensor | None]]]:
    """Differentiate each head once.

    Returns:
        For each task the gradients of the features (with the loss scale still in them), of the shared leaves that
        are reached past the features, and of its own leaves.

    Raises:
        GraphError: If no loss depends on the features.
    """
    at_once = None if direct else feature_heads(losses, scope, walk, features, scale=scale)
    if at_once is not None:
        return [_dense(found, features) for found in at_once[0]], [[] for _ in losses], at_once[1]
    heads, bypass, private = [], [], []
    edges = [loss_edge(loss) for loss in losses]
    seeds = [torch.full_like(loss, scale) for loss in losses]
    leaves = [[*direct, *own] for own in scope.private]
    near = [[leaf for leaf in own if leaf not in scope.below] for own in leaves]
    # leaves both above and below the features: their whole gradient, with the part that goes through the trunk
    far = [[leaf for leaf in own if leaf in scope.below] for own in leaves]
    with cut(feature_edges(features)):
        found = [
            differentiate([edge], [*features, *own], [seed], retain_graph=True)
            for edge, own, seed in zip(edges, near, seeds, strict=True)
        ]
    for task, (edge, seed) in enumerate(zip(edges, seeds, strict=True)):
        whole = differentiate([edge], far[task], [seed], retain_graph=True)
        heads.append(_dense(found[task][: len(features)], features))
        both = [*found[task][len(features) :], *whole]
        if scale != 1.0:
            both = [None if gradient is None else unscaled(gradient, scale) for gradient in both]
        if far[task]:
            at = {id(leaf): position for position, leaf in enumerate([*near[task], *far[task]])}
            both = [both[at[id(leaf)]] for leaf in leaves[task]]
        bypass.append(_dense(both[: len(direct)], direct))
        private.append(both[len(direct) :])
    used = any(gradient is not None for row in found for gradient in row[: len(features)])
    if not used:
        raise GraphError("features: no loss depends on the features; pass the tensors that the heads were given")
    return heads, bypass, private


def _distinct(features: Sequence[Tensor]) -> list[Tensor]:
    """Drop a feature that was given twice, as its gradient would count twice."""
    feature_edges(features)  # all have a graph
    return list({(feature.grad_fn, feature.output_nr): feature for feature in features}.values())


def _without_features(
    losses: Sequence[Tensor], scope: Scope, workspace: Workspace | None, *, scale: float, retain_graph: bool
) -> TaskGradients:
    jacobian = empty_rows(len(losses), scope.shared, workspace)
    private: list[list[Tensor | None]] = []
    for task, (loss, leaves) in enumerate(zip(losses, scope.private, strict=True)):
        last = task == len(losses) - 1
        seed = [torch.full_like(loss, scale)]
        inputs = [*scope.shared, *leaves]
        found = differentiate([loss_edge(loss)], inputs, seed, retain_graph=retain_graph or not last)
        fill_row(jacobian[task], found[: len(scope.shared)], scope.shared)
        own = found[len(scope.shared) :]
        private.append([None if gradient is None else unscaled(gradient, scale) for gradient in own])
    return TaskGradients(unscaled(jacobian, scale), scope, private, len(losses))


def _dense(gradients: Sequence[Tensor | None], leaves: Sequence[Tensor]) -> list[Tensor]:
    """Replace a missing gradient by zeros and a sparse one by a dense one."""
    pairs = zip(gradients, leaves, strict=True)
    return [
        torch.zeros_like(leaf) if gradient is None else gradient.to_dense() if gradient.is_sparse else gradient
        for gradient, leaf in pairs
    ]


def empty_rows(num_tasks: int, leaves: Sequence[Tensor], workspace: Workspace | None) -> Tensor:
    """Return an uninitialized real matrix with a row per task and a column per element of the leaves."""
    if not leaves:
        return torch.zeros(num_tasks, 0)
    dtype = torch.float32
    for leaf in leaves:
        dtype = torch.promote_types(dtype, leaf.dtype.to_real())
    workspace = workspace if workspace is not None else Workspace()
    return workspace.matrix(num_tasks, sum(map(_columns, leaves)), dtype, leaves[0].device)


def _columns(leaf: Tensor) -> int:
    return leaf.numel() * (2 if leaf.is_complex() else 1)  # real and imaginary part


def fill_row(row: Tensor, gradients: Sequence[Tensor | None], leaves: Sequence[Tensor]) -> None:
    """Copy gradients one behind the other into a row: zeros for a missing one, a sparse one made dense."""
    start = 0
    for gradient, leaf in zip(gradients, leaves, strict=True):
        stop = start + _columns(leaf)
        if gradient is None:
            row[start:stop].zero_()
        else:
            dense = gradient.to_dense() if gradient.is_sparse else gradient
            real = torch.view_as_real(dense.resolve_conj()) if dense.is_complex() else dense
            row[start:stop].view(real.shape).copy_(real)
        start = stop


def fill_rows(jacobian: Tensor, gradients: Sequence[Sequence[Tensor | None]], leaves: Sequence[Tensor]) -> None:
    """Fill all rows; in one call where each is one dense tensor of the same dtype."""
    first = [own[0] if len(leaves) == 1 else None for own in gradients]
    dense = [g for g in first if g is not None and g.dtype == jacobian.dtype and g.layout == torch.strided]
    if dense and len(dense) == len(first):
        torch.stack(dense, out=jacobian.view(len(dense), *dense[0].shape))
        return
    for row, own in zip(jacobian, gradients, strict=True):
        fill_row(row, own, leaves)


def split_row(direction: Tensor, leaves: Sequence[Tensor]) -> list[Tensor]:
    """Cut a row into tensors of the shape, dtype and device of the leaves."""
    pieces = direction.split([_columns(leaf) for leaf in leaves]) if leaves else ()
    return [
        torch.view_as_complex(piece.view(*leaf.shape, 2)).to(leaf)
        if leaf.is_complex()
        else piece.view(leaf.shape).to(leaf)
        for piece, leaf in zip(pieces, leaves, strict=True)
    ]
