"""STCH: smooth Tchebycheff scalarization."""

from collections.abc import Mapping, Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from counterpoint._checks import check_choice, check_integer, check_per_task, check_range
from counterpoint.balancers._periodic import PeriodicLossBalancer
from counterpoint.balancers._preference import Preference, check_preference, preference_of
from counterpoint.errors import OptionError

_VARIANTS = ("released", "paper")
_SMALLEST = 1e-20  # a smaller loss, relative to its nadir, counts as this one; from the released code


def stch_objective(
    losses: Float[Tensor, " K"], preference: Float[Tensor, " K"], ideal: Float[Tensor, " K"], *, mu: float = 1.0
) -> Float[Tensor, ""]:
    """Return the smooth maximum ``mu ln sum_i exp(p_i (L_i - z_i) / mu)`` of the paper.

    The weight of a loss is ``p_i softmax_i(p (L - z) / mu)``. For mu -> 0 it is the largest of the ``p_i (L_i - z_i)``,
    which it exceeds by ``mu ln K`` at most. It sees the scale of the losses.

    Args:
        losses: Losses.
        preference: Preferences p, positive; on the simplex in the paper.
        ideal: Ideal point z: what each loss reaches at best, or a little less.
        mu: Smoothing, above 0, in the unit of the losses.

    Example:
        >>> stch_objective(torch.tensor([1.0, 1.0]), torch.ones(2), torch.ones(2))
        tensor(0.6931)

    References:
        Lin et al., "Smooth Tchebycheff Scalarization for Multi-Objective Optimization", ICML 2024, arXiv:2402.19078.
    """
    return mu * (preference * (losses - ideal) / mu).logsumexp(dim=0)


def stch_log_objective(
    losses: Float[Tensor, " K"], nadir: Float[Tensor, " K"], *, mu: float = 1.0
) -> Float[Tensor, ""]:
    """Return ``K mu ln sum_i exp(x_i / mu)`` of the released code, with ``x_i = ln(L_i / nadir_i)``.

    The weight of a loss is ``K softmax_i(x / mu) / L_i``: a constant factor on a loss and on its nadir changes nothing
    in the update.

    Args:
        losses: Losses, at least 0; one below 1e-20 times its nadir counts as that and is not trained in that step.
        nadir: Loss of each task from which its progress counts, above 0. NaN: not known yet, the task counts as being
            there (x_i = 0), which gives it the weight that a task at its nadir has.
        mu: Smoothing, above 0, a pure number.

    Example:
        >>> stch_log_objective(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0]))
        tensor(1.3863)

    References:
        The code released with the paper of :func:`stch_objective`. It subtracts the largest x, as a constant, and does
        not add it again: its value is smaller than ours by K times that, the gradient is the same.
    """
    own = torch.where(losses > 0, losses, torch.ones_like(losses)).detach()
    nadir = torch.where(nadir.isnan(), own, nadir)
    x = (losses / nadir).clamp(min=_SMALLEST).log()
    return len(losses) * mu * (x / mu).logsumexp(dim=0)


@final
class STCH(PeriodicLossBalancer):
    """STCH: minimizes a smooth maximum of the losses; see :func:`stch_log_objective` and :func:`stch_objective`.

    The default is the variant of the released code: it needs no ideal point and does not see the scale of the losses,
    which in most problems have different units. It starts with ``warmup_epochs + 1`` epochs of ``sum_i ln L_i``; the
    mean losses of the last of them are the nadir. Say when an epoch ends with :meth:`end_epoch`, or give ``period``. A
    task without a mean loss in that epoch takes that of the first later one that it is in, and until then counts as
    being at its nadir. Nadir and warm-up are part of the state, so a run may be resumed at any time. Losses must not be
    negative.

    Args:
        num_tasks: Number of tasks K.
        tasks: Names of the tasks.
        variant: ``"released"`` or ``"paper"``.
        mu: Smoothing, above 0; smaller is closer to the worst task alone. 1 in LibMTL. A pure number with
            ``"released"``, in the unit of the losses with ``"paper"``.
        warmup_epochs: Epochs before the one that is averaged for the nadir, at least 0; with ``"released"`` only.
        period: Number of steps that count as an epoch; ``end_epoch()`` is then ignored. Default: ``end_epoch()`` is
            called. With ``"released"`` only.
        preference: How much each task counts, above 0, in the order of the tasks or by task name, used as it is.
            Default: one over the number of tasks in the batch. With ``"paper"`` only.
        ideal_point: What each loss reaches at best, one for all or one per task; default 0. With ``"paper"`` only.
    """

    key = "stch"
    equation = "L = K mu ln sum_i (L_i / nadir_i)^(1/mu), or mu ln sum_i exp(p_i (L_i - z_i) / mu)"
    source = (
        "Lin et al., Smooth Tchebycheff Scalarization for Multi-Objective Optimization, ICML 2024, arXiv:2402.19078"
    )
    provenance = "released code, or paper with variant='paper'; tasks that miss the warm-up are our reading"
    scale = "weights K softmax_i / L_i; with variant='paper' p_i softmax_i"
    avoid = (
        "Where losses can be 0 or negative. A small mu follows the worst task alone from step to step, a "
        "large one is nearly the sum of the log losses."
    )
    needs = frozenset({"epochs"})
    nonnegative_losses = True

    nadir: Tensor
    num_epochs: Tensor

    def __init__(
        self,
        num_tasks: int | None = None,
        *,
        tasks: Sequence[str] | None = None,
        variant: str = "released",
        mu: float = 1.0,
        warmup_epochs: int = 4,
        period: int | None = None,
        preference: Preference | None = None,
        ideal_point: float | Sequence[float] | Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(num_tasks, tasks, period=period)
        self.variant = check_choice("STCH: variant", variant, _VARIANTS)
        self.mu = check_range("STCH: mu", mu, low=0.0, low_open=True, high_open=True)
        self.warmup_epochs = check_integer("STCH: warmup_epochs", warmup_epochs, low=0)
        for name, value in (("preference", preference), ("ideal_point", ideal_point)):
            if variant == "released" and value is not None:
                raise OptionError(f"STCH: {name} belongs to variant='paper', got {value!r} with variant='released'")
        if variant == "paper" and period is not None:
            raise OptionError(f"STCH: period belongs to variant='released', got {period!r} with variant='paper'")
        self._preference = check_preference("STCH", preference, self.num_tasks, self.tasks, positive=True)
        self.preference = preference
        given = 0.0 if ideal_point is None else ideal_point
        listed = check_per_task("STCH: ideal_point", given, self.num_tasks, self.tasks)
        self._ideal = [float(check_range("STCH: ideal_point", z, low_open=True, high_open=True)) for z in listed]
        self.ideal_point = ideal_point
        self.add_state("nadir", torch.full((self.num_tasks,), float("nan"), dtype=torch.float64))
        self.add_state("num_epochs", torch.zeros((), dtype=torch.long))

    def objective(self, losses: Tensor, *, present: Sequence[int] | None = None) -> Tensor:
        """Return the objective of one step; see :func:`stch_log_objective` and :func:`stch_objective`."""
        if self.variant == "paper":
            positions = self._positions(len(losses), present)
            preference = preference_of(self._preference, positions).to(losses)
            return stch_objective(
                losses, preference, losses.new_tensor([self._ideal[i] for i in positions]), mu=self.mu
            )
        index = self._index(losses, present)
        wide = losses.to(self.nadir)  # a nadir does not fit into a narrow type
        if int(self.num_epochs) <= self.warmup_epochs:
            total = wide.clamp(min=_SMALLEST).log().sum()
        else:
            total = stch_log_objective(wide, self.nadir[index], mu=self.mu)
        if bool(self.nadir.isnan().any()):
            self._record(losses, index)
        return total.to(losses)

    def _close(self, means: Tensor, seen: Tensor) -> None:
        if int(self.num_epochs) >= self.warmup_epochs:
            found = seen & self.nadir.isnan() & (means > 0)
            self.nadir.copy_(torch.where(found, means, self.nadir))
        self.num_epochs += 1
