"""GCond: conflicts resolved pair by pair, by an arbiter that looks at the past."""

import math
from collections.abc import Callable, Sequence
from typing import final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from counterpoint import linalg
from counterpoint._checks import check_choice, check_integer, check_range
from counterpoint.balancers._arbiter import Arbiter, check_thresholds, worst_pair
from counterpoint.balancers._columns import ColumnsBalancer
from counterpoint.errors import OptionError

Judge = Callable[[np.ndarray, int, int], int]


def conflict_factors(
    cosine: float, *, surgery: str = "smooth", thresholds: Sequence[float] = (-0.8, -0.5, 0.0), power: float = 2.0
) -> tuple[float, float]:
    """Return how much of its part along the other gradient the winner and the loser of a conflict give up.

    With ``"smooth"`` they are the sines of an angle that grows with the conflict: none at ``weak``, all for both at
    ``main``; from there to ``critical`` the winner gives up less and less, and below that nothing. With ``"zones"``,
    both give up all down to ``main``, and only the loser below that.

    Args:
        cosine: Of the two gradients, below ``weak``.
        surgery: ``"smooth"`` or ``"zones"``.
        thresholds: ``critical``, ``main`` and ``weak``, not decreasing.
        power: Exponent of the smooth way from ``main`` to ``critical``, above 0.

    Returns:
        Two shares in [0, 1].

    Example:
        >>> [conflict_factors(c) for c in (-0.5, -0.9)]
        [(1.0, 1.0), (0.0, 1.0)]
    """
    critical, main, weak = thresholds
    if cosine >= main:
        share = math.cos(math.pi / 2 * (cosine - main) / (weak - main)) if surgery == "smooth" else 1.0
        return share, share
    if cosine <= critical or surgery == "zones":
        return 0.0, 1.0
    return math.cos(math.pi / 2 * ((cosine - main) / (critical - main)) ** power), 1.0


def gcond_rows(
    gram: Float[Tensor, "K K"],
    judge: Judge,
    *,
    surgery: str = "smooth",
    thresholds: Sequence[float] = (-0.8, -0.5, 0.0),
    power: float = 2.0,
) -> Float[Tensor, "K K"]:
    """Return the gradients with their conflicts resolved, as coefficients of the original ones, a row each.

    Up to 2 K times, the two gradients w (the winner) and l (the loser) with the most negative cosine below ``weak``
    are changed, both from their old values: ``g_w -= a <g_w, g_l> / |g_l|^2 g_l`` and ``g_l -= b <g_w, g_l> / |g_w|^2
    g_w``, with a and b the :func:`conflict_factors`. With ``"zones"``, the loser is set to 0 below ``critical``. All is
    done on coefficients of unit rows, so lengths play no part but through the judge.

    Args:
        gram: Inner products of the task gradients, symmetric positive semi-definite.
        judge: Called with the current gradients, as coefficients of unit rows, and two positions; returns the winner.
            ``"zones"`` asks it below ``main`` only.
        surgery: ``"smooth"`` or ``"zones"``.
        thresholds: ``critical``, ``main`` and ``weak``, not decreasing.
        power: Of ``"smooth"``.

    Returns:
        Coefficients; the sum of the rows gives the weights of the summed update. A zero gradient takes no part.

    Example:
        >>> gcond_rows(torch.tensor([[1.0, -0.6], [-0.6, 1.0]]), lambda rows, i, j: i, surgery="zones")
        tensor([[1.0000, 0.0000],
                [0.6000, 1.0000]])

    References:
        Limarenko et al., "GCond", arXiv:2509.07252, by its released code, which adds 1e-8 to what it divides by and
        passes over gradients shorter than 1e-4, here those shorter than 1e-3 of what they were. Pairs within 1e-6 of
        the worst cosine count as equal here: the first is taken.
    """
    critical, main, weak = thresholds
    kept = linalg.nonzero_rows(gram).numpy()
    cosines, rows = linalg.cosine(gram).double().numpy(), np.diag(kept.astype(np.float64))
    for _ in range(2 * len(rows)):
        found = worst_pair(cosines, rows, weak)
        if found is None:
            break
        now, first, second = found
        asked = surgery == "smooth" or now < main
        winner = judge(rows, first, second) if asked else first
        loser = second if winner == first else first
        if surgery == "zones" and now < critical:
            rows[loser] = 0.0
            continue
        up, down = conflict_factors(now, surgery=surgery, thresholds=thresholds, power=power)
        old_winner, old_loser = rows[winner].copy(), rows[loser].copy()
        product = old_winner @ cosines @ old_loser
        rows[winner] -= up * product / (old_loser @ cosines @ old_loser) * old_loser
        rows[loser] -= down * product / (old_winner @ cosines @ old_winner) * old_winner
    lengths = np.where(kept, linalg.norms(gram).double().numpy(), 1.0)
    return torch.from_numpy(rows * lengths[:, None] / lengths[None, :]).to(gram)


@final
class GCond(ColumnsBalancer):
    """GCond: the worst conflict is resolved first, in favor of the steadier and stronger gradient; averaged over steps.

    See :func:`gcond_rows` for the surgery. A conflict is won by the larger ``stability max(0, cos(g_i, p_i)) + strength
    r_i / (r_i + r_j)``, with p_i the gradient of the task at its step before and r_i the length of g_i over the running
    mean of the lengths of the task's raw gradients; a tie by the first task. A task that won ``window`` times in a row,
    whoever the others were, then loses (``dominant``). The resolved gradients are added, and the update is the running
    mean of that sum over steps, corrected at the start as in Adam.

    Use an optimizer without a momentum of its own (``betas=(0.0, 0.999)``). Task parameters get the gradient of their
    own loss without a mean; give them a parameter group with momentum if you want one. The paper accumulates the
    gradient of each loss over micro-batches before the surgery. Calling ``backward`` for each micro-batch would add up
    resolved gradients instead: pass the mean of each loss over the micro-batches.

    A task that is absent keeps its gradient and its mean length; the mean of the update goes on, since it belongs to
    all. The state is K gradients and one; without ``stability`` it is one, and without ``momentum`` too there is none:
    ``level="features"`` is possible then. The time of the surgery grows with K^4: 4 minutes a step for 1000 tasks.

    Args:
        num_tasks: Number of tasks K.
        tasks: Names of the tasks.
        surgery: ``"smooth"``, or ``"zones"`` with steps at the thresholds.
        thresholds: Cosines ``critical``, ``main`` and ``weak``, in [-1, 1], not decreasing.
        power: Exponent of the smooth surgery from ``main`` to ``critical``, above 0.
        stability: Share of the steadiness in the score, at least 0.
        strength: Share of the relative length in the score, at least 0.
        window: Number of conflicts won in a row that make a task dominant; 0 for no such rule.
        dominant: Whether a dominant task ``"loses"`` (the released code; no task starves) or ``"wins"`` (its README).
        norm_beta: Share of the past in the mean lengths, in [0, 1).
        momentum: Share of the past in the update, in [0, 1).
        variant: ``"plain"``, or ``"released"``: there mean lengths start at 1, whatever the unit of the gradients, and
            p_i is the gradient after the surgery, which overwrites it.

    References:
        Limarenko, Studenikina, Illarionova, Sharaev, "GCond", arXiv:2509.07252, by its released code. There gradients
        of task parameters take part in cosines and surgery, buffers are bfloat16, and scores are compared without a
        margin; here they tie within 1e-6. Left out: its cap on the length of each gradient, and its steps by sign with
        a trust ratio, which need the parameters.
    """

    key = "gcond"
    equation = (
        "worst pair first: g_w -= a <g_w, g_l> / |g_l|^2 g_l, g_l -= b <g_w, g_l> / |g_w|^2 g_w;  v = mean of sum_i g_i"
    )
    source = "Limarenko et al., GCond, 2025, arXiv:2509.07252"
    provenance = "released code; the paper's text was not read; starts of the means, ties and absent tasks are ours"
    scale = "sum, averaged over steps"
    avoid = (
        "Where memory is short: the last gradient of every task is kept. Where no task may get worse: it gives no such "
        "guarantee, and in a strong conflict the loser is heard hardly or not at all. With an optimizer that has a "
        "momentum of its own the update is averaged twice."
    )
    cost = "K backward passes, memory for K gradients and for a state of K + 1 more"

    previous: Tensor
    mean: Tensor
    mean_length: Tensor
    steps: Tensor
    winner: Tensor
    streak: Tensor

    def __init__(
        self,
        num_tasks: int | None = None,
        *,
        tasks: Sequence[str] | None = None,
        surgery: str = "smooth",
        thresholds: Sequence[float] = (-0.8, -0.5, 0.0),
        power: float = 2.0,
        stability: float = 0.8,
        strength: float = 0.2,
        window: int = 3,
        dominant: str = "loses",
        norm_beta: float = 0.95,
        momentum: float = 0.85,
        variant: str = "plain",
    ) -> None:
        super().__init__(num_tasks, tasks)
        self.surgery = check_choice("GCond: surgery", surgery, ("smooth", "zones"))
        self.thresholds = check_thresholds("GCond: thresholds", thresholds)
        self.power = check_range("GCond: power", power, low=0.0, low_open=True, high_open=True)
        self.stability = check_range("GCond: stability", stability, low=0.0, high_open=True)
        self.strength = check_range("GCond: strength", strength, low=0.0, high_open=True)
        if not stability + strength > 0:
            raise OptionError("GCond: stability and strength are both 0; one of them must be positive")
        self.window = check_integer("GCond: window", window, low=0)
        self.dominant = check_choice("GCond: dominant", dominant, ("loses", "wins"))
        self.norm_beta = check_range("GCond: norm_beta", norm_beta, low=0.0, high=1.0, high_open=True)
        self.momentum = check_range("GCond: momentum", momentum, low=0.0, high=1.0, high_open=True)
        self.variant = check_choice("GCond: variant", variant, ("plain", "released"))
        self.keeps_columns = stability > 0 or momentum > 0
        start = 1.0 if variant == "released" else 0.0  # 0 until the first gradient
        self.add_state("mean_length", torch.full((self.num_tasks,), start, dtype=torch.float64))
        self.add_state("steps", torch.zeros((), dtype=torch.long))
        self.add_state("winner", torch.tensor(-1))
        self.add_state("streak", torch.zeros((), dtype=torch.long))
        if stability > 0:
            self.add_lazy_state("previous")
        if momentum > 0:
            self.add_lazy_state("mean")

    def aggregate(
        self,
        jacobian: Tensor,
        losses: Tensor | None,  # noqa: ARG002
        present: tuple[int, ...],
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Return the direction of one step, and without momentum the weights as well."""
        gram = linalg.gram(jacobian).cpu()
        arbiter = self._arbiter(jacobian, gram, present)
        rows = gcond_rows(gram, arbiter, surgery=self.surgery, thresholds=self.thresholds, power=self.power)
        self.winner.fill_(arbiter.winner)
        self.streak.fill_(arbiter.streak)
        if self.stability > 0:
            self._keep_unit_rows(jacobian, gram, rows, present)
        weights = rows.sum(dim=0)
        if not self.momentum:
            return weights.to(jacobian) @ jacobian, weights.to(jacobian)
        self.steps += 1
        old = self._rows("mean", jacobian[:1], tuple(range(self.num_tasks)))  # (1, P): one for all tasks
        self.mean = (old * self.momentum).addmm_(((1 - self.momentum) * weights).to(old)[None, :], jacobian.to(old))
        return (self.mean[0] / (1 - self.momentum ** int(self.steps))).to(jacobian.dtype)

    def _arbiter(self, jacobian: Tensor, gram: Tensor, present: tuple[int, ...]) -> Arbiter:
        """Take the mean lengths on, and compare the gradients with those of the step before."""
        index = torch.tensor(present, device=self.mean_length.device)
        lengths, old = linalg.norms(gram), self.mean_length[index].cpu().double()
        mean = torch.where(old > 0, self.norm_beta * old + (1 - self.norm_beta) * lengths, lengths)
        self.mean_length[index] = mean.to(self.mean_length)
        past = torch.zeros_like(gram)
        if self.stability > 0:
            previous = self._rows("previous", jacobian, present)
            past = linalg.inner_products(jacobian.to(previous), previous).cpu()
            past = past / torch.where(lengths > 0, lengths, 1.0)[:, None]
        return Arbiter(
            cosines=linalg.cosine(gram).numpy(),
            past=past.numpy(),
            relative=(lengths / torch.where(mean > 0, mean, 1.0)).numpy(),
            present=present,
            shares=(self.stability, self.strength),
            window=self.window,
            dominant_wins=self.dominant == "wins",
            winner=int(self.winner),
            streak=int(self.streak),
        )

    def _keep_unit_rows(self, jacobian: Tensor, gram: Tensor, rows: Tensor, present: tuple[int, ...]) -> None:
        """Keep the directions of the gradients, of the resolved ones in the released variant; zero stays zero."""
        wide = torch.promote_types(torch.float32, jacobian.dtype)
        kept, lengths = jacobian.to(wide), linalg.norms(gram)
        if self.variant == "released":
            kept, lengths = rows.to(kept) @ kept, linalg.combination_norms(gram, rows)
        scale = lengths.to(kept)[:, None]
        self._keep("previous", torch.where(scale > 0, kept / torch.where(scale > 0, scale, 1.0), 0.0), present)
