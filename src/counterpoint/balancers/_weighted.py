"""The update of a balancer whose task weights are known before the backward pass: one pass of the weighted losses."""

from collections.abc import Sequence

import torch
from torch import Tensor

from counterpoint import gradients
from counterpoint.balancers._balancer import Balancer
from counterpoint.balancers._call import Call
from counterpoint.balancers._losses import Step
from counterpoint.gradients.backward import as_one_root, differentiate
from counterpoint.gradients.reduce import together
from counterpoint.gradients.scope import loss_edge

Own = Sequence[tuple[Tensor, Tensor]]  # the balancer's own parameters and their gradients


class WeightedPass(Balancer):
    """What all kinds share: writing the gradient of a weighted sum of the losses."""

    def _write_weighted(self, step: Step, call: Call, weights: Tensor, private: Tensor | None, own: Own) -> bool:
        """Add to ``.grad``; return whether a scaled gradient overflowed.

        Args:
            step: The losses.
            call: Options of the call.
            weights: Factor of each loss for the shared parameters.
            private: Factor for its task's parameters; ``None``: the weights, in the same backward pass, and every
                parameter counts as shared.
            own: Gradients of the balancer's own parameters.
        """
        scale = call.scale(step.values.device)
        with together(self._owner, call.group):
            if private is None:
                targets, apart = gradients.find_leaves(step.losses), []
            else:
                scope = gradients.find_scope(step.losses, shared=call.shared, features=call.features)
                targets, apart = list(scope.shared), list(dict.fromkeys(leaf for own in scope.private for leaf in own))
        overflow = False

        def check(found: Sequence[Tensor]) -> None:
            nonlocal overflow
            everything = [*found, *(gradient for gradient in by_leaf.values() if gradient is not None)]
            self._average(everything, call.group)
            overflow = overflow or not gradients.all_finite(everything, fresh=True)
            if overflow and call.scaler is None:
                shared = None if private is None else call.shared
                groups = gradients.find_scope(step.losses, shared=shared, features=call.features).private
                own_gradients = [[by_leaf.get(leaf, leaf.grad) for leaf in group] for group in groups]
                bad = [at for at, group in enumerate(own_gradients) if not gradients.all_finite(group)]
                raise self._nonfinite(step, bad)

        by_leaf: dict[Tensor, Tensor | None] = {}
        if private is not None:
            by_leaf = self._apart(step, call, apart, self._seeds(step, private, scale), more=bool(targets))
        if targets:
            gradients.backward_into(*as_one_root(step.losses, weights * scale), targets, check)
        else:
            check([])
        gradients.accumulate((leaf, gradient) for leaf, gradient in by_leaf.items() if gradient is not None)
        gradients.accumulate((parameter, gradient * scale) for parameter, gradient in own)
        return overflow

    @staticmethod
    def _apart(
        step: Step, call: Call, leaves: list[Tensor], seeds: list[Tensor], *, more: bool
    ) -> dict[Tensor, Tensor | None]:
        """Differentiate the losses by the parameters that belong to one task; ``more`` passes are to come."""
        edges = [loss_edge(loss) for loss in step.losses]
        found = list(differentiate(edges, leaves, seeds, retain_graph=more))
        if call.group is not None:
            found = [_dense(gradient, leaf) for gradient, leaf in zip(found, leaves, strict=True)]
        else:  # copies, as autograd may give one tensor to two leaves
            found = [None if gradient is None else gradient.clone() for gradient in found]
        return dict(zip(leaves, found, strict=True))

    @staticmethod
    def _seeds(step: Step, weights: Tensor, scale: float) -> list[Tensor]:
        scaled = (weights if scale == 1.0 else weights * scale).unbind()
        return [weight.to(loss) for weight, loss in zip(scaled, step.losses, strict=True)]


def _dense(gradient: Tensor | None, leaf: Tensor) -> Tensor:
    if gradient is None:
        return torch.zeros_like(leaf)
    return gradient.to_dense().clone() if gradient.is_sparse else gradient.clone()
