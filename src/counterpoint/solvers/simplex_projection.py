"""The point of the simplex nearest to a vector."""

import numpy as np
from jaxtyping import Float
from torch import Tensor, from_numpy


def project_to_simplex(vector: Float[Tensor, " K"]) -> Float[Tensor, " K"]:
    """Return the weights ``w >= 0`` with sum 1 that are nearest to a vector in the Euclidean distance.

    They are ``max(vector_i - t, 0)``; the entries above the threshold t are found by sorting. The largest entry is
    taken off first, so that nothing is lost where all entries are large.

    Args:
        vector: Any real numbers, float64, on the CPU.

    Example:
        >>> import torch
        >>> project_to_simplex(torch.tensor([0.5, 1.1, -3.0], dtype=torch.float64))
        tensor([0.2000, 0.8000, 0.0000], dtype=torch.float64)

    References:
        Held, Wolfe, Crowder, "Validation of subgradient optimization", Mathematical Programming 6, 1974.
    """
    shifted = vector.numpy() - vector.numpy().max()
    falling = np.sort(shifted)[::-1]
    thresholds = (np.cumsum(falling) - 1.0) / np.arange(1, len(falling) + 1)
    last = int(np.flatnonzero(falling > thresholds)[-1])
    weights = np.maximum(shifted - thresholds[last], 0.0)
    return from_numpy(weights / weights.sum())
