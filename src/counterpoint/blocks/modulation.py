"""Modulation: a learned channel mask for each task, the cheapest way to give each its own view of shared features."""

from collections.abc import Sequence
from typing import cast, final

import torch
from torch import Tensor, nn

from counterpoint._checks import check_integer
from counterpoint.errors import OptionError, ShapeError
from counterpoint.registry import unknown


@final
class Modulation(nn.Module):
    """Scale each channel of shared features by a factor that the task has learned: ``x * relu(s_t)``.

    Placed after chosen blocks of a trunk or on the final embedding; what follows runs once for each task. A factor at
    or below zero blocks its channel and, the ReLU being flat there, gets no gradient of its own any more. Each task's
    vector is a parameter of its own, so it is a task parameter for the balancers, and an absent task's gets no
    gradient. ``num_tasks * channels`` parameters.

    Args:
        num_tasks: Number of tasks K.
        channels: Number of channels C.
        channels_last: Channels are the last axis, as in tokens (B, N, C); else the axis after the batch, as in (B, C)
            and (B, C, H, W).
        tasks: Names of the tasks, so that ``forward`` takes a name.

    Example:
        >>> modulation = Modulation(2, 3)
        >>> modulation(torch.ones(1, 3, 2, 2), 0).shape
        torch.Size([1, 3, 2, 2])

    References:
        Zhao, Li, Shen, Liang, Wu, "A Modulation Module for Multi-task Learning with Applications in Image Retrieval",
        ECCV 2018, arXiv:1807.06708. The ReLU on the mask and the start at ones are those of the released code; the
        paper derives the mask as the diagonal case of a full C x C projection.
    """

    def __init__(
        self, num_tasks: int, channels: int, *, channels_last: bool = False, tasks: Sequence[str] | None = None
    ) -> None:
        super().__init__()
        self.num_tasks = check_integer("Modulation: num_tasks", num_tasks, low=1)
        self.channels = check_integer("Modulation: channels", channels, low=1)
        self.channels_last = channels_last
        self.tasks = None if tasks is None else tuple(tasks)
        if self.tasks is not None and len(set(self.tasks)) != num_tasks:
            raise OptionError(
                f"Modulation: tasks must be num_tasks = {num_tasks} different names, got {list(self.tasks)}"
            )
        self.scales = nn.ParameterList([nn.Parameter(torch.ones(channels)) for _ in range(num_tasks)])

    def forward(self, features: Tensor, task: str | int) -> Tensor:
        """Return the features as the task sees them, of the same shape.

        Raises:
            ShapeError: If the features have not C channels where they should be.
            UnknownNameError: If there is no such task.
        """
        axis = features.ndim - 1 if self.channels_last else 1
        if features.ndim < 2 or features.shape[axis] != self.channels:
            expected = "(B, ..., C)" if self.channels_last else "(B, C, ...)"
            raise ShapeError(
                f"Modulation: features must be {expected} with C = {self.channels}, got {tuple(features.shape)}; "
                "tokens (B, N, C) need channels_last=True"
            )
        scale = cast(Tensor, self.scales[self._position(task)]).relu()
        return features * scale.reshape([-1 if at == axis else 1 for at in range(features.ndim)])

    def _position(self, task: str | int) -> int:
        names: tuple[str | int, ...] = tuple(range(self.num_tasks))
        if isinstance(task, str):
            names = self.tasks or ()
        if task not in names:
            error = unknown("task of Modulation", str(task), map(str, self.tasks or names))
            raise error
        return names.index(task)

    def extra_repr(self) -> str:
        """Return the arguments, for ``repr``."""
        return f"num_tasks={self.num_tasks}, channels={self.channels}, channels_last={self.channels_last}"
