"""Wrapped: any balancer acting every n steps, on an average Gram matrix, with another scale or bound on its length."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor

from counterpoint._checks import check_choice, check_integer, check_range
from counterpoint.balancers._balancer import Balancer
from counterpoint.balancers._base import LossBalancer
from counterpoint.balancers._call import Call
from counterpoint.balancers._composed import ComposedBalancer
from counterpoint.balancers._gradient import Balanced, Found, GradientBalancer, own_factors
from counterpoint.balancers._losses import Step
from counterpoint.balancers._report import BalancerReport, make_report
from counterpoint.errors import OptionError
from counterpoint.gradients.reduce import together

_RESCALES = ("native", "sum1", "mean_m", "unit", "like_sum")
_LENGTHS = ("unit", "like_sum")


@final
class Wrapped(ComposedBalancer):
    """Any balancer, with options that no method has of its own.

    Args:
        balancer: What decides.
        every: Let it decide every so many steps only. In between one backward pass is enough.
        between: What happens in between: ``"reuse"`` its last weights, or the plain ``"sum"``. Methods without task
            weights, such as GradDrop, can only be followed by the sum.
        measure: Compute the weights from the gradients of the ``"last"`` shared layer and apply them to all shared
            parameters, in one backward pass; ``"shared"``: from all. ``None``: as the balancer does.
            ``backward(measure=[...])`` takes any parameters.
        gram_decay: Average the Gram matrix over steps: ``A <- gram_decay A + (1 - gram_decay) A_now``, with the start
            corrected as in Adam, from 0 (no average) to below 1. Kept for each pair of tasks by itself, so that absent
            tasks do no harm.
        rescale: Length of the update, with w the weights, m the number of tasks present and v the combined gradient:
            ``"native"`` (the method's own), ``"sum1"`` (w / sum w), ``"mean_m"`` (m w / sum w), ``"unit"`` (v / |v|),
            ``"like_sum"`` (as long as the plain sum of the gradients).
        max_norm: Shorten the combined gradient of the shared parameters to at most this length, after ``rescale``.
        task_gradients: ``"raw"`` or ``"weighted"``: what the parameters of a task get; ``None``: as the balancer says.

    Raises:
        OptionError: If the balancer cannot do what an option asks: lengths need gradients of all shared parameters, the
            average needs a Gram matrix, ``sum1`` and ``mean_m`` need weights.

    Example:
        >>> import counterpoint as cp
        >>> balancer = cp.balancers.Wrapped(cp.balancers.NashMTL(3), every=4, gram_decay=0.9)
        >>> balancer.weights(torch.eye(3), torch.ones(3))
        tensor([0.5774, 0.5774, 0.5774])

    References:
        Released codes apply several of these to methods whose papers do not have them: CAGrad, FairGrad, FAMO, SDMGrad
        and PIVRG repositories multiply by m or bound the length by 1; Nash-MTL reuses its weights.
    """

    equation = "v = rescale(sum_i w_i g_i),  w of the balancer, every n steps"

    previous: Tensor
    previous_private: Tensor
    steps: Tensor
    gram_mean: Tensor
    gram_count: Tensor

    def __init__(
        self,
        balancer: Balancer,
        *,
        every: int = 1,
        between: str = "reuse",
        measure: str | None = None,
        gram_decay: float = 0.0,
        rescale: str = "native",
        max_norm: float | None = None,
        task_gradients: str | None = None,
    ) -> None:
        super().__init__(balancer)
        self.balancer = balancer
        self.every = check_integer("Wrapped: every", every, low=1)
        self.between = check_choice("Wrapped: between", between, ("reuse", "sum"))
        self.gram_decay = check_range("Wrapped: gram_decay", gram_decay, low=0.0, high=1.0, high_open=True)
        self.rescale = check_choice("Wrapped: rescale", rescale, _RESCALES)
        self.max_norm = None if max_norm is None else check_range("Wrapped: max_norm", max_norm, low=0.0, low_open=True)
        if measure is not None:
            self.measure = check_choice("Wrapped: measure", measure, ("shared", "last"))  # type: ignore[assignment]
        if task_gradients is not None:
            self.task_gradients = check_choice("Wrapped: task_gradients", task_gradients, ("raw", "weighted"))
        self._given = {"measure": measure, "task_gradients": task_gradients}
        self._check_options()
        k = self.num_tasks
        self.add_state("previous", torch.full((k,), math.nan, dtype=torch.float64))
        self.add_state("previous_private", torch.ones(k, dtype=torch.float64))  # factors of the tasks' own parameters
        self.add_state("steps", torch.zeros((), dtype=torch.long))
        self.add_state("gram_mean", torch.zeros(k, k, dtype=torch.float64))
        self.add_state("gram_count", torch.zeros(k, k, dtype=torch.long))

    def options(self) -> dict[str, Any]:
        """Return the constructor arguments that rebuild this balancer."""
        return super().options() | self._given

    @property
    def reports_gram(self) -> bool:
        """Whether the report of every step has the Gram matrix of all shared parameters' gradients."""
        return self.every == 1 and super().reports_gram

    def _check_options(self) -> None:
        """Refuse options that mean nothing for this balancer.

        Raises:
            OptionError: If there is one.
        """
        name = type(self.balancer).__name__
        reads = self.balancer.reads
        if reads == "jacobian":
            refused = {
                "every with between='reuse' (use between='sum')": self.every > 1 and self.between == "reuse",
                f"rescale={self.rescale!r}": self.rescale in ("sum1", "mean_m"),
                "task_gradients='weighted'": self._given["task_gradients"] == "weighted",
            }
            reason = "has no task weights"
        elif reads == "losses":
            refused = {
                f"rescale={self.rescale!r}": self.rescale in _LENGTHS,
                "max_norm": self.max_norm is not None,
                "task_gradients='raw'": self._given["task_gradients"] == "raw",
            }
            reason = "weights losses and sees no gradients"
        else:
            lengths = self.rescale in _LENGTHS or self.max_norm is not None
            refused = {"measure='last' with max_norm or a rescale of the length": lengths and self.measure != "shared"}
            reason = "would need the gradients of all shared parameters"
        if reads != "gram":
            refused |= {"gram_decay": self.gram_decay > 0, "measure='last'": self.measure != "shared"}
        for option, bad in refused.items():
            if bad:
                raise OptionError(f"Wrapped: {option} cannot be done: {name} {reason}")

    # --- one step ----------------------------------------------------------------------------------------------

    def _backward(self, step: Step, call: Call) -> BalancerReport:
        if call.measure is not None and (self.rescale in _LENGTHS or self.max_norm is not None):
            raise OptionError("Wrapped: measure= cannot be combined with max_norm or a rescale of the length")
        waits = self._waits(step.present)
        self.steps += 1
        if waits or self.balancer.reads == "losses":
            with together(self._owner, call.group):
                if waits:
                    balanced = self._between(step.values, step.present)
                else:
                    balanced = self._weigh(None, step.values, step.present, step)
            return self._pass(step, call, balanced)
        return super()._backward(step, call)

    def _pass(self, step: Step, call: Call, balanced: Balanced) -> BalancerReport:
        """Run one backward pass with weights that are known."""
        assert balanced.weights is not None
        weights = balanced.weights.to(step.values)
        private = None if self.balancer.reads == "losses" else torch.ones_like(weights)
        if balanced.private is not None and private is not None:
            private = balanced.private.to(weights)
        overflow = self._write_weighted(step, call, weights, private, balanced.own)
        return make_report(step, balanced.weights, None, "parameters", 1, skipped=overflow)

    def _waits(self, present: tuple[int, ...]) -> bool:
        """Return whether the balancer does not decide in this step: every task present must have a weight by then."""
        if int(self.steps) % self.every == 0:
            return False
        return self.between == "sum" or not bool(torch.isnan(self.previous[list(present)]).any())

    def _between(self, values: Tensor, present: tuple[int, ...]) -> Balanced:
        """Return the weights of a step in which the balancer does not decide."""
        if self.between == "sum":
            return Balanced(torch.ones_like(values), [])
        at = list(present)
        return Balanced(self.previous[at].to(values), [], self.previous_private[at].to(values))

    def _weigh(self, gram: Tensor | None, values: Tensor | None, present: tuple[int, ...], step: Step) -> Balanced:
        if isinstance(self.balancer, LossBalancer):
            assert values is not None
            weights, own = self.balancer._own_gradients(values, present, step)
            found = Balanced(weights, [], weights, own)
        else:
            assert isinstance(self.balancer, GradientBalancer)
            averaged = None if gram is None else self._averaged(gram, present)
            found = self.balancer._weigh(averaged, values, present, step)
        assert found.weights is not None
        factor = self._factor(found.weights, gram)
        weights = found.weights * factor
        if self._given["task_gradients"] == "raw":
            private = None
        else:
            private = found.private
            if self.task_gradients == "weighted":
                private = weights if gram is None else own_factors(weights, gram)
        at = list(present)
        self.previous[at] = weights.detach().to(self.previous)
        self.previous_private[at] = 1.0 if private is None else private.detach().to(self.previous)
        return dataclasses.replace(found, weights=weights, private=private)

    def _balance(self, found: Found, gram: Tensor | None, step: Step, call: Call) -> Balanced:
        if gram is not None:
            balanced = self._weigh(gram, step.values, step.present, step)
            assert balanced.weights is not None
            return dataclasses.replace(balanced, direction=found.combine(balanced.weights))
        assert isinstance(self.balancer, GradientBalancer)
        total = found.combine(torch.ones(len(step.losses))) if self.rescale == "like_sum" else None
        balanced = self.balancer._balance(found, None, step, call)
        factor = self._length_factor(
            float(balanced.direction.norm()),  # type: ignore[union-attr]
            0.0 if total is None else float(total.norm()),  # type: ignore[union-attr]
        )
        weights, private = balanced.weights, balanced.private
        weights = None if weights is None else weights * factor
        if self._given["task_gradients"] == "raw":
            private = None
        elif private is not None and self.task_gradients == "weighted":
            private = private * factor
        direction = balanced.direction * factor  # type: ignore[operator]
        return dataclasses.replace(balanced, direction=direction, weights=weights, private=private)

    def _task_gradients(self, step: Step, call: Call, scale: float) -> Found:
        assert isinstance(self.balancer, GradientBalancer)
        return self.balancer._task_gradients(step, call, scale)

    # --- its parts ---------------------------------------------------------------------------------------------

    def _averaged(self, gram: Tensor, present: tuple[int, ...]) -> Tensor:
        """Move the average of each pair of tasks that is present, and return it."""
        if self.gram_decay == 0.0:
            return gram
        at = torch.tensor(present)
        rows, columns = at[:, None], at[None, :]
        count = self.gram_count[rows, columns] + 1
        mean = self.gram_mean[rows, columns]
        mean = self.gram_decay * mean + (1 - self.gram_decay) * gram.to(mean)
        self.gram_mean[rows, columns] = mean
        self.gram_count[rows, columns] = count
        return (mean / (1 - self.gram_decay ** count.double())).to(gram)

    def _factor(self, weights: Tensor, gram: Tensor | None) -> Tensor | float:
        """Return what multiplies the weights.

        Raises:
            OptionError: If they are to be divided by their sum, and that is zero.
        """
        if self.rescale in ("sum1", "mean_m"):
            total = float(weights.sum())
            if abs(total) <= 1e-12 * float(weights.abs().sum()):
                if bool(weights.any()):
                    raise OptionError(
                        f"Wrapped: the weights {weights.tolist()} sum to zero, so rescale={self.rescale!r} is not "
                        "defined; use rescale='unit' or 'like_sum'"
                    )
                return 1.0
            first = (1.0 if self.rescale == "sum1" else len(weights)) / total
        else:
            first = 1.0
        if gram is None or (self.rescale not in _LENGTHS and self.max_norm is None):
            return first
        w = weights.to(gram) * first
        return first * self._length_factor(_root(w @ gram @ w), _root(gram.sum()))

    def _length_factor(self, length: float, length_of_sum: float) -> float:
        """Return what multiplies a combined gradient of this length."""
        if length == 0.0:
            return 1.0
        factor = {"unit": 1.0 / length, "like_sum": length_of_sum / length}.get(self.rescale, 1.0)
        if self.max_norm is not None and length * factor > self.max_norm:
            factor = self.max_norm / length
        return factor

    def _aggregate(self, jacobian: Tensor, losses: Tensor | None, present: tuple[int, ...]) -> Tensor:
        waits = self._waits(present)
        self.steps += 1
        if waits:
            return jacobian.sum(dim=0)
        direction = self.balancer.combine(jacobian, losses, present=present)  # type: ignore[attr-defined]
        return direction * self._length_factor(float(direction.norm()), float(jacobian.sum(dim=0).norm()))

    def weights(
        self, gram: Tensor | None, losses: Tensor | None = None, *, present: Sequence[int] | None = None
    ) -> Tensor:
        """Return the weights of the task gradients, (k,); see the base class."""
        like = gram if losses is None or gram is not None else losses
        if like is None:
            return super().weights(gram, losses, present=present)  # says what is missing
        positions = self._positions(len(like), present)
        if self._waits(positions):
            self.steps += 1
            return self._between(like.new_empty(len(like)), positions).weights  # type: ignore[return-value]
        found = super().weights(gram, losses, present=present)
        self.steps += 1
        return found


def _root(square: Tensor) -> float:
    return math.sqrt(max(float(square), 0.0))
