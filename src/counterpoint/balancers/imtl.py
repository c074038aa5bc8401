"""IMTL: IMTL-L on the losses, then IMTL-G on the gradients of the scaled losses."""

from collections.abc import Mapping, Sequence
from typing import final

from counterpoint.balancers.chain import Chain
from counterpoint.balancers.imtl_g import IMTLG
from counterpoint.balancers.imtl_l import IMTLL


@final
class IMTL(Chain):
    """IMTL: learned loss scales that make all losses equal, then equal projections on all gradients.

    The gradients that IMTL-G combines are those of ``exp(s_i) L_i - s_i``, so a task's parameters get ``exp(s_i)``
    times the gradient of their own loss, and the learned s_i get ``exp(s_i) L_i - 1``. Give ``balancer.parameters()``
    to the optimizer, in a group of their own with ``weight_decay=0``. Losses must not be negative. The direction for
    the shared parameters is that of IMTL-G alone, which does not change when gradients are rescaled; the length does.

    Args:
        num_tasks: Number of tasks K.
        tasks: Names of the tasks.
        initial: First value of the learned scalars, one for all or one per task.
        sign_guard: As in :class:`~counterpoint.balancers.IMTLG`.
        task_gradients: ``"raw"``, the gradient of the scaled loss, or ``"weighted"``, the same times IMTL-G's weight.

    References:
        Liu et al., "Towards Impartial Multi-task Learning", ICLR 2021.
    """

    key = "imtl"
    equation = "IMTL-G on the gradients of exp(s_i) L_i - s_i,  s_i learned"
    source = "Liu et al., Towards Impartial Multi-task Learning, ICLR 2021"
    provenance = "paper; the sign guard and the pseudo-inverse for dependent gradients are ours"
    scale = "weights exp(s_i) w_i with w of IMTL-G, whose sum is 1 (or -1 where the sign guard acts)"
    avoid = (
        "Where gradients depend linearly on each other, or point against each other: no direction has equal "
        "angles to all then. Behind it the loss scales act on the heads and on the length of the shared "
        "update only."
    )
    reads = IMTLG.reads
    cost = IMTLG.cost
    nonnegative_losses = True

    def __init__(
        self,
        num_tasks: int | None = None,
        *,
        tasks: Sequence[str] | None = None,
        initial: float | Sequence[float] | Mapping[str, float] = 0.0,
        sign_guard: bool = True,
        task_gradients: str = "raw",
    ) -> None:
        super().__init__(
            IMTLL(num_tasks, tasks=tasks, initial=initial),
            IMTLG(num_tasks, tasks=tasks, sign_guard=sign_guard, task_gradients=task_gradients),
        )
        self.initial = initial
        self.sign_guard = sign_guard
