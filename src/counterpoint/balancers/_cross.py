"""Methods that read the inner products of task gradients of two batches, and take the step on a third."""

import torch

from counterpoint import gradients, linalg
from counterpoint.balancers._balancer import Call
from counterpoint.balancers._base import GramBalancer
from counterpoint.balancers._losses import Step
from counterpoint.balancers._report import BalancerReport, make_report
from counterpoint.errors import OptionError
from counterpoint.gradients.reduce import together


class CrossGramBalancer(GramBalancer):
    """A balancer of three batches: ``weights`` reads ``G_1 G_2'`` of two, which has no bias from using one twice.

    ``backward(losses, more=[losses_1, losses_2])`` weighs the losses of the step's own batch. Parameters of one task
    get the gradient of the step's batch. The matrix is not symmetric.
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
            first, second = (
                gradients.subset_rows(
                    batch.losses,
                    scope.shared,
                    scale=scale,
                    retain_graph=False,
                    average=lambda rows: self._average(rows, call.group),
                )
                for batch in call.more
            )
            cross = linalg.cross_gram(first, second)
            squares = torch.stack([linalg.gram(rows).diagonal() for rows in (first, second)]).sum(dim=0)
            bad = [position for position, square in enumerate(squares.tolist()) if square - square != 0.0]
            if bad and call.scaler is None:
                raise self._nonfinite(step, bad)
            ones = torch.ones_like(step.values)
            weights = ones if bad else self.weights(cross, step.values, present=step.present).to(ones)
        private = weights if self.task_gradients == "weighted" else ones
        overflow = self._write_weighted(step, call, weights, private, ()) or bool(bad)
        return make_report(step, None if bad else weights, None, call.level, 2 * len(weights) + 1, skipped=overflow)
