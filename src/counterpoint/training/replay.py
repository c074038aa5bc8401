"""Running a forward pass again as it was: the same random numbers, and no trace in the running statistics."""

import contextlib
from collections.abc import Iterator

from torch import nn

from counterpoint.training.seed import rng_state, set_rng_state


class Replay:
    """Remembers the random numbers of a forward pass that is about to happen, to repeat it later.

    Args:
        model: Network whose buffers (running statistics of norms) are put back after each repetition.

    Example:
        >>> import torch
        >>> dropout = nn.Dropout(0.5)
        >>> replay = Replay(dropout)
        >>> first = dropout(torch.ones(100))
        >>> with replay():
        ...     again = dropout(torch.ones(100))
        >>> torch.equal(first, again)
        True
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._state = rng_state()

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        """Make what runs inside draw the remembered random numbers; afterwards all is as if it had not run."""
        now = rng_state()
        buffers = [(buffer, buffer.detach().clone()) for buffer in self.model.buffers()]
        set_rng_state(self._state)
        try:
            yield
        finally:
            set_rng_state(now)
            for buffer, before in buffers:
                buffer.data.copy_(before)  # data: a graph built inside still has to be differentiated after this
