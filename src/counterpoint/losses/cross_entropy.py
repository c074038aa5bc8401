"""Cross entropy over the labelled entries."""

from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional


def cross_entropy(
    prediction: Float[Tensor, "B C *S"], target: Int[Tensor, "B *S"], mask: Bool[Tensor, "B *S"] | None = None
) -> Float[Tensor, ""]:
    """Return the mean negative log-likelihood, in nats, over the entries with a label.

    Args:
        prediction: Unnormalized scores of C classes.
        target: Class of each entry, in [0, C).
        mask: Which entries have a label; default all. At least one must.

    Example:
        >>> import torch
        >>> cross_entropy(torch.zeros(2, 4), torch.tensor([0, 3]))
        tensor(1.3863)
    """
    if mask is None:
        return functional.cross_entropy(prediction, target)
    return functional.cross_entropy(prediction, target.masked_fill(~mask, -100), ignore_index=-100)
