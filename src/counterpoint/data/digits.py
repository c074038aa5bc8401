"""Digits: overlapping pairs of real handwritten digits, from scans that ship with scikit-learn."""

from typing import final

import numpy as np
import torch

from counterpoint import losses, metrics
from counterpoint._checks import check_integer
from counterpoint._optional import require
from counterpoint.data._base import SPLITS, MultiTaskData, TensorSplit, pick_split
from counterpoint.data._overlay import Indices, Pairs, Placement, draw_pairs, overlay, random_stream, split_scans
from counterpoint.tasks import Task

NUM_CLASSES = 10
WHITE = 16  # the scans have grey values 0 to 16
SHARES = (3, 1, 1)
SPLIT_SEED = 0
PLACEMENT = Placement(canvas=(10, 14), first=((0, 2), (0, 1)), second=((0, 2), (5, 6)))


@final
class Digits(MultiTaskData):
    """Overlapping pairs of real handwritten digits, no download: which digit is left, and which is right?

    The 1,797 scans of 8 x 8 pixels are split once and for all into three parts in the ratio 3 : 1 : 1, at random and
    stratified by class, *before* they are paired: no scan is in two splits. Within a split every scan is the left digit
    equally often (up to one time), and the right digit is drawn uniformly from all scans of the split, so it may be of
    the same class, as in the MultiMNIST of the reference below. On an empty canvas of 10 x 14, the upper left corner of
    the left scan is at row 0 to 2 and column 0 to 1, that of the right scan at row 0 to 2 and column 5 to 6, all drawn
    uniformly; so 2 to 4 columns overlap. The two are combined by the element-wise maximum.

    Differences to MultiMNIST: other scans, a smaller canvas, side by side instead of along the diagonal, random shifts,
    and a validation split.

    Args:
        num_train: Number of training pairs.
        num_val: Number of validation pairs.
        num_test: Number of test pairs.
        seed: Seed of the pairing and of the shifts; the split of the scans does not depend on it. The pairs of a
            smaller set are the first ones of a larger set.

    Attributes:
        scans: Split -> indices of its scans in ``sklearn.datasets.load_digits()``.
        pairs: Split -> which scans were paired, and where they lie.

    Example:
        >>> data = Digits(num_train=100)
        >>> sample = data.split("train")[0]
        >>> sample["image"].shape, sample["left"].item(), sample["right"].item()
        (torch.Size([1, 10, 14]), 2, 7)

    References:
        The overlay: Sener and Koltun, "Multi-Task Learning as Multi-Objective Optimization", NeurIPS 2018,
        arXiv:1810.04650. The scans: Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine
        Learning Repository, 1998.
    """

    key = "digits"
    source = "scikit-learn's load_digits (UCI, Optical Recognition of Handwritten Digits, test part), overlaid in pairs"
    provenance = "ours, after the MultiMNIST of Sener and Koltun, NeurIPS 2018; no published numbers to compare with"

    scans: dict[str, Indices]
    pairs: dict[str, Pairs]

    def __init__(self, *, num_train: int = 4000, num_val: int = 1000, num_test: int = 2000, seed: int = 0) -> None:
        self.num_train = check_integer("Digits: num_train", num_train, low=1)
        self.num_val = check_integer("Digits: num_val", num_val, low=1)
        self.num_test = check_integer("Digits: num_test", num_test, low=1)
        self.seed = check_integer("Digits: seed", seed, low=0)
        bundled = require("sklearn.datasets", extra="bench").load_digits()
        images, labels = bundled.images.astype(np.uint8), bundled.target.astype(np.int64)
        parts = split_scans(labels, SHARES, random_stream(SPLIT_SEED))
        self.scans = dict(zip(SPLITS, parts, strict=True))
        sizes = (num_train, num_val, num_test)
        self.pairs, self._splits = {}, {}
        for position, (name, part, size) in enumerate(zip(SPLITS, parts, sizes, strict=True)):
            pool = (part, labels[part])
            drawn = draw_pairs(pool, pool, size, PLACEMENT, different_classes=False, key=(seed, position))
            overlaid = overlay(images, images, drawn, PLACEMENT.canvas)
            tensors = {
                "image": torch.from_numpy(overlaid)[:, None],
                "left": torch.from_numpy(labels[drawn.first]),
                "right": torch.from_numpy(labels[drawn.second]),
            }
            self.pairs[name] = drawn
            self._splits[name] = TensorSplit(tensors, divisors={"image": WHITE})

    @property
    def tasks(self) -> tuple[Task, ...]:
        """``left`` and ``right``: the class of either digit."""
        accuracy = {"accuracy": metrics.accuracy(NUM_CLASSES)}
        return tuple(Task(name, losses.cross_entropy, accuracy, NUM_CLASSES) for name in ("left", "right"))

    @property
    def input_shape(self) -> tuple[int, ...]:
        """One channel, the height and the width of the canvas."""
        return (1, *PLACEMENT.canvas)

    def split(self, name: str) -> TensorSplit:
        """Return the split called ``"train"``, ``"val"`` or ``"test"``; ``"image"`` is in [0, 1].

        Raises:
            UnknownNameError: If there is no such split.
        """
        return pick_split(self.key, self._splits, name)
