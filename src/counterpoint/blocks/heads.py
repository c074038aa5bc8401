"""Heads: from features to the prediction of one task."""

from typing import ClassVar, final

from torch import Tensor, nn

from counterpoint._checks import check_integer
from counterpoint.errors import ShapeError


class Head(nn.Module):
    """Base of all heads; reads the output of the last stage."""

    key: ClassVar[str]


@final
class Classifier(Head):
    """Class scores of a whole input: maps are averaged over positions, then one or two linear layers.

    Args:
        channels: Channels of the features, (B, C) or (B, C, H, W).
        num_outputs: Number of classes.
        hidden: Width of a layer with ReLU in between; ``None`` for a linear head.
    """

    key = "classifier"

    def __init__(self, channels: int, num_outputs: int, *, hidden: int | None = None) -> None:
        super().__init__()
        if hidden is not None:
            check_integer("Classifier: hidden", hidden, low=1)
        if hidden is None:
            self.layers: nn.Module = nn.Linear(channels, num_outputs)
        else:
            self.layers = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, num_outputs))

    def forward(self, features: Tensor) -> Tensor:
        """Return scores (B, num_outputs)."""
        if features.ndim == 4:
            features = features.mean(dim=(2, 3))
        if features.ndim != 2:
            raise ShapeError(f"Classifier: features must be (B, C) or (B, C, H, W), got {tuple(features.shape)}")
        return self.layers(features)
