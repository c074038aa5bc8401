"""Chain: a loss balancer scales the losses, then a gradient balancer combines the gradients of the scaled losses."""

import dataclasses

from torch import Tensor

from counterpoint.balancers._base import LossBalancer
from counterpoint.balancers._call import Call
from counterpoint.balancers._composed import ComposedBalancer
from counterpoint.balancers._gradient import Balanced, Found, GradientBalancer
from counterpoint.balancers._losses import Step
from counterpoint.errors import OptionError, ShapeError


class Chain(ComposedBalancer):
    """A loss balancer, then a gradient balancer: uncertainty weights and then PCGrad, for example.

    With k_i the weight that the first gives to loss i, the second sees the gradients ``k_i g_i`` and the losses
    ``k_i L_i``: its Gram matrix is ``diag(k) A diag(k)``, so the first costs no backward pass. Parameters of one task
    get ``k_i`` times the gradient of their own loss (times the task's weight of the second, where that is
    ``"weighted"``); learned weights of the first get their own gradient. Weights in the report are those of the plain
    gradients, both factors together.

    A second balancer that does not change when gradients are rescaled (Nash-MTL, FairGrad with alpha = 1, MGDA on unit
    gradients) makes the first irrelevant for the shared parameters: there is a warning. With IMTL-G and ConFIG it
    changes their length only.

    Args:
        first: A loss balancer.
        second: A balancer that reads the Gram matrix or the gradients.

    Raises:
        OptionError: If the two are not of these kinds, or not for the same tasks.

    Example:
        >>> import counterpoint as cp
        >>> cp.balancers.Chain(cp.balancers.Uncertainty(2), cp.balancers.PCGrad(2)).reads
        'gram'

    References:
        The order (loss weighting as scaling of the rows, then the gradient aggregator) is that of released codes such
        as LibMTL's IMTL.
    """

    equation = "v = second(k_1 g_1, ..., k_K g_K),  k = weights of the first"

    def __init__(self, first: LossBalancer, second: GradientBalancer) -> None:
        if not isinstance(first, LossBalancer):
            raise OptionError(f"Chain: first must be a loss balancer, got {type(first).__name__}")
        if not isinstance(second, GradientBalancer):
            raise OptionError(
                f"Chain: second must be a balancer of gradients, got {type(second).__name__}; "
                "two loss balancers cannot be chained"
            )
        super().__init__(first, second)
        self.first, self.second = first, second
        if second.ignores_scale:
            self.warn_once(
                "scale",
                f"{type(second).__name__} does not change when gradients are rescaled, so {type(first).__name__} "
                "before it changes nothing for the shared parameters, only for those of each task",
                UserWarning,
            )

    def _scaled(self, values: Tensor | None, present: tuple[int, ...], step: Step) -> tuple[Tensor, Step, list]:
        """Return the weights of the first, the losses times them, and the gradients of its own parameters.

        Raises:
            ShapeError: If there are no losses.
        """
        if values is None:
            raise ShapeError(f"{self._owner}: {type(self.first).__name__} reads the losses; give them too")
        scales, own = self.first._own_gradients(values, present, step)
        return scales, dataclasses.replace(step, values=values * scales), list(own)

    def _weigh(self, gram: Tensor | None, values: Tensor | None, present: tuple[int, ...], step: Step) -> Balanced:
        assert gram is not None
        scales, inner, own = self._scaled(values, present, step)
        factors = scales.detach().to(gram)
        found = self.second._weigh(gram * factors[:, None] * factors[None, :], inner.values, present, inner)
        assert found.weights is not None
        private = factors if found.private is None else factors * found.private.to(factors)
        return Balanced(factors * found.weights.to(factors), [], private, [*own, *found.own])

    def _balance(self, found: Found, gram: Tensor | None, step: Step, call: Call) -> Balanced:
        if gram is not None:
            balanced = self._weigh(gram, step.values, step.present, step)
            assert balanced.weights is not None
            return dataclasses.replace(balanced, direction=found.combine(balanced.weights))
        scales, inner, own = self._scaled(step.values, step.present, step)
        found.jacobian.mul_(scales.to(found.jacobian)[:, None])  # type: ignore[union-attr]
        balanced = self.second._balance(found, None, inner, call)
        private = scales if balanced.private is None else scales * balanced.private.to(scales)
        weights = None if balanced.weights is None else scales * balanced.weights.to(scales)
        return Balanced(weights, balanced.direction, private, [*own, *balanced.own])

    def _task_gradients(self, step: Step, call: Call, scale: float) -> Found:
        return self.second._task_gradients(step, call, scale)

    def _aggregate(self, jacobian: Tensor, losses: Tensor | None, present: tuple[int, ...]) -> Tensor:
        if losses is None:
            raise ShapeError(f"{self._owner}: {type(self.first).__name__} reads the losses; give them too")
        scales = self.first.weights(None, losses, present=present)
        return self.second.combine(jacobian * scales[:, None], losses * scales, present=present)  # type: ignore[attr-defined]
