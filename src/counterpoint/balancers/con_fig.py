"""ConFIG: the direction with chosen angles to all task gradients, at a chosen length."""

from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from counterpoint._checks import check_choice
from counterpoint.balancers._base import GramBalancer
from counterpoint.balancers._preference import Preference, check_preference, preference_of
from counterpoint.errors import OptionError
from counterpoint.linalg import direction_with_cosines, nonzero_rows, norms

_MEANS = {
    "min": torch.amin,
    "max": torch.amax,
    "arithmetic_mean": torch.mean,
    "geometric_mean": lambda lengths: lengths.log().mean().exp(),
    "harmonic_mean": lambda lengths: 1 / (1 / lengths).mean(),
}
LENGTHS = ("projections", *_MEANS)


def con_fig_weights(
    gram: Float[Tensor, "K K"], cosines: Float[Tensor, " K"], *, length: str | int = "projections"
) -> Float[Tensor, " K"]:
    """Return the weights of ``v = length * u``, u the unit vector with given proportions of cosines to all gradients.

    With unit gradients U, ``u = x / |x|`` for ``x = U^+ cosines``. For independent gradients and equal cosines v has
    the same angle, below 90 degrees, to all of them.

    Args:
        gram: Inner products of the task gradients, symmetric positive semi-definite.
        cosines: Proportions of the cosines, positive; equal ones are the method of the paper.
        length: ``"projections"``, the sum of the projections on u (the paper); ``"min"``, ``"max"``,
            ``"arithmetic_mean"``, ``"geometric_mean"`` or ``"harmonic_mean"`` of the lengths of the gradients; or the
            number of the task whose length it is.

    Returns:
        Weights, 0 for a zero gradient; all 0 where there is no direction u, as for two opposed gradients.

    Example:
        >>> con_fig_weights(torch.tensor([[4.0, 0.0], [0.0, 1.0]]), torch.ones(2))
        tensor([0.7500, 1.5000])

    References:
        Liu, Chu, Thuerey, "ConFIG: Towards Conflict-free Training of Physics Informed Neural Networks", ICLR 2025,
        arXiv:2408.11104; length models of the released code. It solves with all K gradients; here the
        K x K cosines give the same. It tests for a length of exactly 0, so opposed gradients give it an arbitrary
        direction of full length; here a vector 1e-10 times shorter than its terms counts as 0.
    """
    kept = nonzero_rows(gram)
    if not bool(kept.any()):
        return torch.full_like(gram.diagonal(), 1 / len(gram))
    unit = direction_with_cosines(gram, cosines)
    lengths = norms(gram)
    if isinstance(length, int):
        scale = lengths[length]
    elif length == "projections":
        scale = (gram[kept] @ unit).sum()
    else:
        scale = _MEANS[length](lengths[kept])
    return scale * unit


@final
class ConFIG(GramBalancer):
    """ConFIG: one angle to all task gradients, and the length of their projections; see :func:`con_fig_weights`.

    The momentum version, M-ConFIG, which computes one task gradient a step, is not here: its moments are not specified
    well enough to be reproduced.

    Args:
        num_tasks: Number of tasks K.
        tasks: Names of the tasks.
        preference: Proportions of the cosines with the task gradients, positive, in the order of the tasks or by task
            name. Default: equal.
        length: ``"projections"``, ``"min"``, ``"max"``, ``"arithmetic_mean"``, ``"geometric_mean"``,
            ``"harmonic_mean"``, or ``"task"``: the length of the gradient of ``length_task``.
        length_task: Number or name of that task; in a step without it the length is that of the projections.
    """

    key = "con_fig"
    equation = "v = (sum_i <g_i, u>) u,  u = x / |x|,  x = U^+ 1,  U = unit gradients"
    source = "Liu, Chu, Thuerey, ConFIG, ICLR 2025, arXiv:2408.11104"
    provenance = "paper and released code (length models); momentum version left out"
    scale = "sum of the projections on the direction"
    avoid = (
        "Where gradients are nearly opposed: the common angle comes near 90 degrees, and the sum of projections, so "
        "the step, near 0. A task whose gradient is short and mostly noise turns the direction as much as any."
    )

    def __init__(
        self,
        num_tasks: int | None = None,
        *,
        tasks: Sequence[str] | None = None,
        preference: Preference | None = None,
        length: str = "projections",
        length_task: str | int | None = None,
    ) -> None:
        super().__init__(num_tasks, tasks)
        self._cosines = check_preference("ConFIG", preference, self.num_tasks, self.tasks, positive=True)
        self.preference = preference
        self.length = check_choice("ConFIG: length", length, (*LENGTHS, "task"))
        self.length_task = length_task
        self._length_task = self._find(length_task)
        if (length == "task") != (length_task is not None):
            raise OptionError(f"ConFIG: length='task' and length_task go together, got {length!r} and {length_task!r}")

    def _find(self, task: str | int | None) -> int | None:
        if isinstance(task, str) and self.tasks is not None and task in self.tasks:
            return self.tasks.index(task)
        if task is None or (isinstance(task, int) and not isinstance(task, bool) and 0 <= task < self.num_tasks):
            return task
        known = f"below {self.num_tasks}" if self.tasks is None else f"below {self.num_tasks} or one of {self.tasks}"
        raise OptionError(f"ConFIG: length_task must be a number of a task {known}, got {task!r}")

    def solve(self, gram: Tensor, losses: Tensor | None, present: tuple[int, ...]) -> Tensor:  # noqa: ARG002
        """Return the weights of one step; see :func:`con_fig_weights`."""
        length: str | int = self.length
        if self._length_task is not None:
            there = self._length_task in present
            length = present.index(self._length_task) if there else "projections"
        return con_fig_weights(gram, preference_of(self._cosines, present).to(gram), length=length)
