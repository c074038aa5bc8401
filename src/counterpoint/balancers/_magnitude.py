"""What MSI and POMSI share: their options, their state, and its restriction to the tasks that are present."""

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from counterpoint._checks import check_choice, check_range
from counterpoint.balancers._base import GramBalancer
from counterpoint.errors import OptionError
from counterpoint.linalg import nonzero_rows
from counterpoint.solvers.magnitude import RULES, MagnitudeRule, MagnitudeState


class MagnitudeBalancer(GramBalancer):
    """Base of the balancers that change the lengths of task gradients.

    Args:
        num_tasks: Number of tasks K.
        tasks: Names of the tasks.
        rule: ``"pair"``, ``"vaccine"`` or ``"learned"``.
        static_target: Constant target similarity in [0, 1] in place of the running mean, without state; 1 makes the
            lengths of a pair equal. For ``"learned"`` only 1: the factors are set once and kept.
        s_max: Factors are kept within [1 / s_max, s_max]; above 1, or ``None`` for no bound.
        reduction: ``"sum"`` or ``"mean"`` over the tasks of the step.
        beta: Rate of the running mean of the similarity, in [0, 1].
        learning_rate: Step size of ``"learned"``, above 0.
        generator: Source of the random orders.
    """

    similarity: Tensor
    log_scale: Tensor
    frozen: Tensor

    def __init__(
        self,
        num_tasks: int | None = None,
        *,
        tasks: Sequence[str] | None = None,
        rule: str = "pair",
        static_target: float | None = None,
        s_max: float | None = None,
        reduction: str = "sum",
        beta: float = 0.01,
        learning_rate: float = 0.05,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(num_tasks, tasks, generator, random=True)
        owner = type(self).__name__
        self.rule = check_choice(f"{owner}: rule", rule, RULES)
        if static_target is not None:
            check_range(f"{owner}: static_target", static_target, low=0.0, high=1.0)
            if rule == "learned" and static_target != 1:
                raise OptionError(f"{owner}: rule='learned' has no static target but 1, got {static_target!r}")
        self.static_target = static_target
        self.s_max = None if s_max is None else check_range(f"{owner}: s_max", s_max, low=1.0, low_open=True)
        self.reduction = check_choice(f"{owner}: reduction", reduction, ("sum", "mean"))
        self.beta = check_range(f"{owner}: beta", beta, low=0.0, high=1.0)
        self.learning_rate = check_range(
            f"{owner}: learning_rate", learning_rate, low=0.0, low_open=True, high_open=True
        )
        initial = MagnitudeState.initial(self.num_tasks)
        self.add_state("similarity", initial.similarity)
        self.add_state("log_scale", initial.log_scale)
        self.add_state("frozen", initial.frozen)

    def solve(self, gram: Tensor, losses: Tensor | None, present: tuple[int, ...]) -> Tensor:  # noqa: ARG002
        """Return the weights of one step."""
        if not bool(nonzero_rows(gram).any()):
            return torch.full_like(gram.diagonal(), 1 / len(gram))
        index = torch.tensor(present, device=self.similarity.device)
        pairs = (index[:, None], index[None, :])
        state = MagnitudeState(
            self.similarity[pairs].to(gram), self.log_scale[index].to(gram), self.frozen[index].to(gram.device)
        )
        options = MagnitudeRule(self.rule, self.static_target, self.beta, self.learning_rate, self.s_max)
        weights, state = self.rescale(gram, state, options)
        self.similarity[pairs] = state.similarity.to(self.similarity)
        self.log_scale[index] = state.log_scale.to(self.log_scale)
        self.frozen[index] = state.frozen.to(self.frozen)
        return weights / len(gram) if self.reduction == "mean" else weights

    @abstractmethod
    def rescale(self, gram: Tensor, state: MagnitudeState, options: MagnitudeRule) -> tuple[Tensor, MagnitudeState]:
        """Return the weights and the new state of the tasks that are present."""
