"""Update compliance: how often the tasks of a network want the same update."""

import dataclasses
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from counterpoint.errors import OptionError


@dataclasses.dataclass(frozen=True)
class UpdateCompliance:
    """Shares of batches, from 0 to 1; NaN where no batch had the tasks.

    Attributes:
        pairwise: Entry (i, j): share of batches in which the gradients of i and j have a positive product, (K, K).
        per_task: Share of batches in which the gradient of task i has a positive product with the sum of the gradients
            of all tasks present, (K,).
    """

    pairwise: Tensor
    per_task: Tensor


def update_compliance(grams: Sequence[Float[Tensor, "K K"]]) -> UpdateCompliance:
    """Return the update compliance ratio of each pair of tasks, and of each task with the joint update.

    ``UCR_ij = mean over batches of 1[<g_i, g_j> > 0]`` and ``UCR_i = mean over batches of 1[<g_i, sum_j g_j> > 0]``.
    A product of exactly zero, as with a zero gradient, does not comply. A batch counts for a pair if both tasks are
    in it.

    Args:
        grams: Inner products of the task gradients of several batches; NaN in the row and column of an absent task.

    Raises:
        OptionError: If there are no batches.

    Example:
        >>> grams = [torch.tensor([[4.0, -1.0], [-1.0, 2.0]]), torch.tensor([[1.0, 2.0], [2.0, 5.0]])]
        >>> update_compliance(grams).pairwise
        tensor([[1.0000, 0.5000],
                [0.5000, 1.0000]], dtype=torch.float64)

    References:
        Zhao, Li, Shen, Liang, Wu, "A Modulation Module for Multi-task Learning with Applications in Image Retrieval",
        ECCV 2018, arXiv:1807.06708. Provenance: our reading; the exact wording of the definition could not be obtained,
        so both versions are given.
    """
    if not grams:
        raise OptionError("update_compliance: grams must have the Gram matrix of at least one batch")
    stacked = torch.stack([gram.double() for gram in grams])  # (batches, K, K)
    present = ~stacked.diagonal(dim1=1, dim2=2).isnan()
    both = present[:, :, None] & present[:, None, :]
    products = torch.where(both, stacked, 0.0)
    complying = (products > 0) & both
    with_sum = (products.sum(dim=2) > 0) & present
    return UpdateCompliance(
        complying.sum(dim=0) / both.sum(dim=0).double(), with_sum.sum(dim=0) / present.sum(dim=0).double()
    )
