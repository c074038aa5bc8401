"""Conflict between tasks: cosines of their gradients."""

import itertools
from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from counterpoint import linalg


def pairwise_cosines(gram: Float[Tensor, "K K"], tasks: Sequence[str]) -> dict[str, float]:
    """Return the cosine of each pair of task gradients by ``"a|b"``.

    Args:
        gram: Inner products of the task gradients. A row with NaN (an absent task) leaves its pairs out.
        tasks: Names of the K tasks.

    Returns:
        Pair -> cosine in [-1, 1]; negative means that the two tasks conflict; 0 if one gradient is zero.

    Example:
        >>> import torch
        >>> pairwise_cosines(torch.tensor([[4.0, -1.0], [-1.0, 1.0]]), ["a", "b"])
        {'a|b': -0.5}
    """
    here = [task for task in range(len(tasks)) if not bool(gram[task, task].isnan())]
    cosines = linalg.cosine(gram[here][:, here]).tolist()
    pairs = itertools.combinations(range(len(here)), 2)
    return {f"{tasks[here[i]]}|{tasks[here[j]]}": cosines[i][j] for i, j in pairs}
