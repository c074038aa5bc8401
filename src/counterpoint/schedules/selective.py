"""Selective task group updates: groups follow what the updates did to the losses, batch by batch."""

import warnings
from collections.abc import Sequence
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from counterpoint._checks import check_choice, check_flag, check_integer, check_range
from counterpoint.balancers import Balancer
from counterpoint.errors import OptionError
from counterpoint.grouping.affinity import AffinityMatrix
from counterpoint.grouping.proximal import AffinityTracker, form_groups, proximal_matrix
from counterpoint.schedules._base import Group, Schedule, permuted
from counterpoint.schedules._groups import left_out, read_groups
from counterpoint.schedules._report import ScheduleReport


@final
class Selective(Schedule):
    """Selective task group updates: tasks that help each other are updated together, the groups one after another.

    Every forward pass after the first of a batch shows what the update of the last group did to all losses. Running
    means of that are the proximal affinities (:func:`counterpoint.grouping.proximal_values`); affinity propagation on
    them gives the groups of the next batch, whose number is not fixed. The affinities need losses that stay above
    zero; one that does not is left out of them.

    Args:
        num_tasks: Number of tasks K; may be left out if ``tasks`` is given.
        tasks: Names of the tasks.
        generator: Source of the order of the groups, and of the seed of each clustering.
        beta: Share of a new measurement in the running affinities, in (0, 1].
        warm_up: Batches before the first clustering, with the initial groups.
        groups: Initial groups, each a list of names or positions; default one for each task.
        regroup_every: Batches between clusterings.
        order: ``"random"`` draws the order of the groups for each batch; ``"fixed"`` keeps that of their first tasks.
        repeat_single: Take a batch twice where all tasks are in one group, as the effect would never be seen else.
        measure_last: How the effect of a batch's last group is seen: ``"never"``; ``"forward"``, by one more forward
            pass without a graph (which moves the running statistics of norms); ``"next"``, on the next batch, so mixed
            with the difference between batches.
        credit: ``"executed"`` credits a change to the group whose update made it; ``"official"`` to the next one, as
            the released code does.
        normalise: ``"column"``, or ``"inplace"`` as in the released code; see
            :func:`counterpoint.grouping.relative_affinity`.
        preference: Of the clustering: higher gives more groups. Default: the median similarity.
        stale_heads: ``"freeze"`` leaves the parameters of tasks outside the group alone; ``"zeros"`` gives parameters
            that the optimizer has a state for a gradient of zero, so that momentum and weight decay still move them
            (SGD without momentum has no state, so nothing moves there).
        clip: Limit each relative change of a loss to [-1, 1].

    Example:
        >>> Selective(num_tasks=3).num_passes
        3

    References:
        Jeong, Yoon, "Selective Task Group Updates for Multi-Task Optimization", ICLR 2025, arXiv:2502.11986. The
        paper's method section could not be obtained; this is the definition that its released code aims at, with what
        the code does differently behind ``credit``, ``normalise`` and ``stale_heads``. Differs from it further: groups
        stay as they are if a clustering does not settle, one task is trained plainly, randomness is seeded, and the
        state is saved whole.
    """

    key = "selective"
    source = "Jeong and Yoon, Selective Task Group Updates, ICLR 2025, arXiv:2502.11986"
    provenance = "released code and abstract; the paper's method section could not be obtained"
    cost = "M forward passes, the balancer's backward passes on each group, M optimizer steps, for M groups (2 for one)"

    def __init__(
        self,
        num_tasks: int | None = None,
        *,
        tasks: Sequence[str] | None = None,
        generator: torch.Generator | None = None,
        beta: float = 1e-3,
        warm_up: int = 100,
        groups: Sequence[Sequence[str | int]] | None = None,
        regroup_every: int = 1,
        order: str = "random",
        repeat_single: bool = True,
        measure_last: str = "never",
        credit: str = "executed",
        normalise: str = "column",
        preference: float | None = None,
        stale_heads: str = "freeze",
        clip: bool = False,
    ) -> None:
        super().__init__(num_tasks, tasks, generator, random=True)
        self.beta, self.clip, self.groups, self.preference = beta, clip, groups, preference
        self.repeat_single = check_flag("Selective: repeat_single", repeat_single)
        check_flag("Selective: clip", clip)
        if preference is not None:
            check_range("Selective: preference", preference, low=-1e300, high=1e300)
        self.warm_up = check_integer("Selective: warm_up", warm_up, low=0)
        self.regroup_every = check_integer("Selective: regroup_every", regroup_every, low=1)
        self.order = check_choice("Selective: order", order, ("random", "fixed"))
        self.measure_last = check_choice("Selective: measure_last", measure_last, ("never", "forward", "next"))
        self.credit = check_choice("Selective: credit", credit, ("executed", "official"))
        self.normalise = check_choice("Selective: normalise", normalise, ("column", "inplace"))
        self.stale_heads = check_choice("Selective: stale_heads", stale_heads, ("freeze", "zeros"))
        if credit == "official" and measure_last != "never":
            raise OptionError(
                "Selective: credit='official' gives a change to the next group of the batch, and after the last there "
                "is none; use measure_last='never'"
            )
        self._tracker = AffinityTracker(self.num_tasks, beta=beta, clip=clip)
        self._groups: list[Group] = [(task,) for task in range(self.num_tasks)]
        if groups is not None:
            self._groups = read_groups("Selective", groups, self.num_tasks, self.tasks)
            places = sorted(task for group in self._groups for task in group)
            if left := left_out(self._groups, self.num_tasks, self.tasks):
                raise OptionError(f"Selective: task {', '.join(map(repr, left))} is in no group")
            if places != list(range(self.num_tasks)):
                raise OptionError(f"Selective: a task may be in one group only, got {groups!r}")
        self._batches = 0  # batches begun
        self._sequence: list[Group] = []  # of the present batch
        self._seen = 0  # forward passes of the present batch
        self._last: Group | None = None  # of the batch before
        self._counts = [0, 0]  # batches and groups since the last record
        self._warned = False
        self._form = "task"  # of the losses of the present batch, which the balancer asks for

    @property
    def affinity(self) -> np.ndarray:
        """The running affinities, (K, K): row = source, column = target."""
        return self._tracker.matrix.copy()

    def affinity_matrix(self) -> AffinityMatrix:
        """Return the running affinities for the solvers of :mod:`counterpoint.grouping`, relative to the diagonal.

        Raises:
            OptionError: If no update was seen to lower the loss of its own task yet.
        """
        return proximal_matrix(self._names or tuple(map(str, range(self.num_tasks))), self._tracker.matrix)

    def _warn_of_silence(self) -> None:
        """Warn once, at a clustering, of tasks of which nothing was measured so far."""
        matrix = self._tracker.matrix
        silent = [task for task in range(self.num_tasks) if not matrix[task].any() and not matrix[:, task].any()]
        if silent and self._batches and not self._warned:  # before the first batch nothing can be measured
            self._warned = True
            names = self._names or tuple(map(str, range(self.num_tasks)))
            warnings.warn(
                f"Selective: nothing was measured of task {', '.join(repr(names[task]) for task in silent)} so far "
                "(are its losses positive, and labeled with others?); it is grouped all the same",
                RuntimeWarning,
                stacklevel=2,
            )

    @property
    def num_passes(self) -> int:
        """The number of groups of now, or two where one group is taken twice."""
        return 2 if self._is_repeated(self._groups) else len(self._groups)

    def _is_repeated(self, groups: Sequence[Group]) -> bool:
        return len(groups) == 1 and self.repeat_single and len(groups[0]) > 1

    def _plan(self, present: Group) -> Sequence[Group]:
        due = self._batches - self.warm_up
        if due >= 0 and due % self.regroup_every == 0 and self.num_tasks > 1:
            seed = int(torch.randint(2**31 - 1, (), generator=self.generator))
            found = form_groups(self._tracker.matrix, normalise=self.normalise, preference=self.preference, seed=seed)
            self._groups = self._groups if found is None else sorted(found)
            self._warn_of_silence()
        self._batches += 1
        self._counts = [self._counts[0] + 1, self._counts[1] + len(self._groups)]
        order = range(len(self._groups))
        if self.order == "random":
            order = permuted(len(self._groups), self.generator)
        kept = [tuple(task for task in self._groups[at] if task in present) for at in order]
        self._sequence = [group for group in kept if group]
        if self._is_repeated(self._sequence):
            self._sequence = self._sequence * 2
        return self._sequence

    def _observe(self, losses: Sequence[Tensor | None], after: Group | None) -> None:
        found = torch.full((self.num_tasks,), float("nan"), dtype=torch.float64)
        here = [task for task, loss in enumerate(losses) if loss is not None]
        if here:
            own = [losses[task][task] if self._form == "cross" else losses[task].mean() for task in here]  # type: ignore[index,union-attr]
            values = torch.stack([loss.detach().double() for loss in own])
            found[here] = values.cpu()
        credited = after
        if after is None:
            credited, self._last = (self._last if self.measure_last == "next" else None), None
            if credited is None:
                self._tracker.forget()
            self._seen = 0
        elif self.credit == "official":
            credited = self._sequence[self._seen]
        self._seen += 1
        self._tracker.observe(found.tolist(), credited)

    @property
    def _looks_back(self) -> bool:
        return self.measure_last == "forward"

    def _finish(self, groups: Sequence[Group], optimizer: Optimizer, model: nn.Module | None) -> None:  # noqa: ARG002
        self._last = groups[-1]

    def step(self, compute_losses: Any, optimizer: Optimizer, balancer: Balancer, **given: Any) -> ScheduleReport:
        """Train on one batch; see :meth:`Schedule.step`."""
        self._form = balancer.loss_form
        if self.stale_heads == "freeze":
            return super().step(compute_losses, optimizer, balancer, **given)
        handle = optimizer.register_step_pre_hook(_fill_with_zeros)
        try:
            return super().step(compute_losses, optimizer, balancer, **given)
        finally:
            handle.remove()

    def record(self) -> dict[str, Any]:
        """Return the groups and affinities of now, and the mean number of groups since the last record."""
        batches, total = self._counts
        self._counts = [0, 0]
        names = self._names or tuple(map(str, range(self.num_tasks)))
        return {
            "groups": [[names[task] for task in group] for group in sorted(self._groups)],
            "num_groups": total / batches if batches else float(len(self._groups)),
            "affinity": self._tracker.matrix.tolist(),
        }

    def state_dict(self) -> dict[str, Any]:
        """Return names, generator, affinities, groups, counters and what the next measurement is compared with."""
        return {
            **super().state_dict(),
            "affinity": torch.from_numpy(self._tracker.matrix.copy()),
            "previous": torch.from_numpy(self._tracker.previous.copy()),
            "groups": [list(group) for group in self._groups],
            "batches": self._batches,
            "last": None if self._last is None else list(self._last),
            "counts": list(self._counts),
        }

    def load_state_dict(self, state: Any) -> None:
        """Restore what :meth:`state_dict` returned."""
        if "affinity" not in state or tuple(state["affinity"].shape) != self._tracker.matrix.shape:
            found = len(state["affinity"]) if "affinity" in state else "another schedule"
            raise OptionError(
                f"Selective: the state is of {found}{' tasks' if 'affinity' in state else ''}, this schedule of "
                f"{self.num_tasks} tasks; build the same schedule with the same tasks"
            )
        super().load_state_dict(state)
        self._tracker.matrix = state["affinity"].cpu().numpy().copy()
        self._tracker.previous = state["previous"].cpu().numpy().copy()
        self._groups = [tuple(group) for group in state["groups"]]
        self._batches = state["batches"]
        self._last = None if state["last"] is None else tuple(state["last"])
        self._counts = list(state["counts"])


def _fill_with_zeros(optimizer: Optimizer, *_: Any) -> None:
    """Give a gradient of zero to parameters that have an optimizer state and no gradient."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is None and optimizer.state.get(parameter):
                parameter.grad = torch.zeros_like(parameter)
