"""Seeds and the state of all generators that training may touch."""

import random
from typing import Any

import numpy as np
import torch

from counterpoint.errors import OptionError

_LARGEST = 2**32 - 1  # NumPy's global generator takes no more


def check_seed(seed: int) -> int:
    """Return the seed if every generator takes it.

    Raises:
        OptionError: If it is not a whole number from 0 to 4294967295.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= _LARGEST:
        raise OptionError(f"a seed must be a whole number from 0 to {_LARGEST}, got {seed!r}")
    return seed


def seed_everything(seed: int) -> None:
    """Seed torch (all devices), NumPy's global generator and Python's."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def epoch_generator(seed: int, epoch: int) -> torch.Generator:
    """Return the generator that orders the samples of one epoch; any epoch can be repeated on its own."""
    return torch.Generator().manual_seed((seed + 1) * 1_000_003 + epoch)


def rng_state() -> dict[str, Any]:
    """Return the state of all global generators as plain data and tensors."""
    kind, keys, *rest = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "python": random.getstate(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_rng_state(state: dict[str, Any]) -> None:
    """Restore what :func:`rng_state` returned."""
    torch.set_rng_state(state["torch"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
