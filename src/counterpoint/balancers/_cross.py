"""Methods that read the inner products of task gradients of two batches, and take the step on a third."""

from collections.abc import Callable

import torch
from torch import Tensor

from counterpoint import gradients, linalg
from counterpoint.balancers._base import GramBalancer
from counterpoint.balancers._call import Call
from counterpoint.balancers._losses import Step
from counterpoint.balancers._report import BalancerReport, make_report
from counterpoint.errors import OptionError
from counterpoint.gradients.reduce import together


class CrossGramBalancer(GramBalancer):
    """A balancer of three batches: ``weights`` reads ``G_1 G_2'`` of two, which has no bias from using one twice.

    ``backward(losses, more=[losses_1, losses_2])`` weighs the losses of the step's own batch. Parameters of one task
    get the gradient of the step's batch. The matrix is not symmetric, and its diagonal may be negative.
    """

    reads = "cross_gram"
    num_batches = 3
    cost = "2 K + 1 backward passes, 3 forward passes, memory for 2 K gradients"

    def _backward(self, step: Step, call: Call) -> BalancerReport:
        if call.level == "features":
            raise OptionError(
                f"{self._owner}: compares gradients of different batches, whose features are different coordinates; "
                "use level='parameters'"
            )
        scale = call.scale(step.values.device)
        with together(self._owner, call.group):
            scope = gradients.find_scope(step.losses, shared=call.shared, features=call.features)
            # the graphs are kept: all batches may come from one forward pass
            pair = [gradients.subset_rows(batch.losses, scope.shared, scale=scale) for batch in call.more]
        self._average(pair, call.group)
        with together(self._owner, call.group):
            cross = linalg.inner_products(*pair)
            bad = [
                position
                for position in range(len(cross))
                if not all(gradients.all_finite([rows[position]]) for rows in pair)
            ]
            if bad and call.scaler is None:
                raise self._nonfinite(step, bad)
            ones = torch.ones_like(step.values)
            # weights that are not numbers make every gradient such that the scaler skips the step
            weights = ones * torch.nan if bad else self.weights(cross, step.values, present=step.present).to(ones)
        del pair
        private = weights if self.task_gradients == "weighted" or bad else ones
        overflow = self._write_weighted(step, call, weights, private, ())
        return make_report(step, None if bad else weights, None, call.level, 2 * len(weights) + 1, skipped=overflow)

    def _move(
        self, name: str, gram: Tensor, present: tuple[int, ...], update: Callable[[Tensor, Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Move the weights kept in a state on the simplex.

        The tasks that take part share the weight that they had together, so the state stays on the simplex and the
        others keep theirs. A task without a gradient in both batches takes no part, and has weight 0 in this step.

        Args:
            name: Name of the state, (K,).
            gram: The cross Gram matrix of the tasks that are present.
            present: Which tasks they are.
            update: Called with the matrix and the weights, on the simplex; returns new ones.

        Returns:
            Weights of the tasks of this step, on the simplex, 1 / k for each if none has a gradient; and which of them
            took part.
        """
        taking_part = gram.abs().amax(dim=0) + gram.abs().amax(dim=1) > 0
        found = torch.zeros_like(gram.diagonal())
        if not bool(taking_part.any()):
            return found + 1 / len(found), taking_part
        kept = taking_part.nonzero().flatten()
        state = getattr(self, name)
        index = torch.tensor(present, device=state.device)[kept.to(state.device)]
        before = state[index].to(gram)
        mass = float(before.sum())
        start = before / mass if mass > 0 else torch.full_like(before, 1 / len(before))
        after = update(gram[kept][:, kept], start)
        state[index] = (after * mass).to(state)
        found[kept] = after
        return found, taking_part
