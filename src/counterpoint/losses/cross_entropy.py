"""Cross entropy over the labelled entries."""

from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from counterpoint._checks import check_choice

# stands for "no label" inside; torch's own -100 would silently drop entries that a loader marked so and forgot to mask
_IGNORED = -(2**62)


def cross_entropy(
    prediction: Float[Tensor, "B C *S"],
    target: Int[Tensor, "B *S"],
    mask: Bool[Tensor, "B *S"] | None = None,
    *,
    reduction: str = "mean",
) -> Float[Tensor, "*N"]:
    """Return the mean negative log-likelihood, in nats, over the entries with a label.

    Args:
        prediction: Unnormalized scores of C classes.
        target: Class of each entry, in [0, C).
        mask: Which entries have a label; default all. At least one must. Targets outside [0, C) are allowed only where
            it is False: a loader converts marks such as 255 or -100 to a mask, and what it forgets is an error.
        reduction: ``"mean"``, or ``"none"`` for one value (N,) for each sample that has a label, in their order: the
            mean over its own entries.

    Raises:
        OptionError: If ``reduction`` is something else.

    Example:
        >>> import torch
        >>> cross_entropy(torch.zeros(2, 4), torch.tensor([0, 3]))
        tensor(1.3863)
    """
    if mask is not None:
        target = target.masked_fill(~mask, _IGNORED)
    check_choice("cross_entropy: reduction", reduction, ("mean", "none"))
    if reduction == "mean":
        return functional.cross_entropy(prediction, target, ignore_index=_IGNORED)
    entries = functional.cross_entropy(prediction, target, ignore_index=_IGNORED, reduction="none")
    entries = entries.reshape(len(target), -1)
    if mask is None:
        return entries.mean(dim=1)
    counts = mask.reshape(len(target), -1).sum(dim=1)
    has = counts > 0
    return entries.sum(dim=1)[has] / counts[has]
