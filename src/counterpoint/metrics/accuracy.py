"""Share of correct classes."""

from typing import Any

from counterpoint._optional import require
from counterpoint.metrics._base import MetricSpec


def accuracy(num_classes: int) -> MetricSpec:
    """Return the accuracy: correct entries over all entries of the split, in per cent; higher is better.

    Counts are summed over the whole split (not the mean of batch accuracies).

    Args:
        num_classes: Number of classes.
    """

    def make() -> Any:
        return require("torchmetrics.classification", extra="bench").MulticlassAccuracy(num_classes, average="micro")

    return MetricSpec(make, higher_is_better=True, unit="%", factor=100.0)
