"""Attributes of FashionMNIST's images: what kind of thing it is, and what can be counted in its pixels."""

import os
from pathlib import Path
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray

from counterpoint import losses, metrics
from counterpoint._checks import check_integer
from counterpoint.data._base import SPLITS, DataOnDisk, TensorSplit, pick_split
from counterpoint.data._overlay import random_stream, split_scans
from counterpoint.data._scans import FASHION_MNIST, NUM_CLASSES, SIDE
from counterpoint.errors import OptionError
from counterpoint.tasks import Task

WHITE = 255
SPLIT_SEED = 0
TRAIN_SHARES = (5, 1)
INK = 26  # a tenth of white: darker pixels count as background

# Positions of FashionMNIST's classes: 0 T-shirt/top, 1 trouser, 2 pullover, 3 dress, 4 coat, 5 sandal, 6 shirt,
# 7 sneaker, 8 bag, 9 ankle boot.
FOOTWEAR = (5, 7, 9)
LONG_SLEEVES = (2, 4)  # pullover and coat; a shirt can have either, so shirts have no label for this task
CLOTHES = (0, 2, 3, 4)

Bits = NDArray[np.int64]


@final
class FashionAttributes(DataOnDisk):
    """Six tasks on the images of FashionMNIST: three from its labels, three counted in the pixels.

    - ``category``: the ten classes.
    - ``footwear``: sandal, sneaker or ankle boot.
    - ``long_sleeves``: pullover or coat, against T-shirt or dress; other classes, shirts among them, have no label.
    - ``bright``: whether the mean gray value of the pixels of the thing (at least 26 of 255) is above the median over
      the training part.
    - ``symmetric``: whether the mean absolute difference between image and mirror image, relative to the mean gray
      value, is below the median over the training part.
    - ``large``: whether the number of pixels of the thing is above the median over the training part.

    The sleeves of a dress vary, and the label says only what the class says: that is noise in ``long_sleeves``. The
    three counted tasks are exact functions of the image. One sixth of the training images, chosen at random once and
    for all and stratified by class, is the validation split; the test split is the published one.

    Args:
        root: Folder in torchvision's layout: ``FashionMNIST/raw`` under it, or ``raw``, or the folder of the files.
        num_train: Use only the first so many training images; default all 50,000.
        num_val: Of 10,000.
        num_test: Of 10,000.
        verify: Compare the files with the published checksums.

    References:
        Xiao, Rasul, Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms",
        arXiv:1708.07747, for images and classes. The attributes are ours; there are no published numbers.
    """

    key = "fashion_attributes"
    source = "Xiao, Rasul, Vollgraf, Fashion-MNIST, arXiv:1708.07747; the attributes are made here"
    provenance = "images and classes as published; attributes are ours, no published numbers to compare with"
    layout = "ROOT/FashionMNIST/raw with the four IDX files, as they are or .gz"

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        num_train: int | None = None,
        num_val: int | None = None,
        num_test: int | None = None,
        verify: bool = True,
    ) -> None:
        self.root, self.verify = root, verify
        self.num_train, self.num_val, self.num_test = num_train, num_val, num_test
        folder = Path(root).expanduser()
        train = FASHION_MNIST.read(folder, "train", alone=True, verify=verify)
        test = FASHION_MNIST.read(folder, "t10k", alone=True, verify=verify)
        parts = [(train, part) for part in split_scans(train.labels, TRAIN_SHARES, random_stream(SPLIT_SEED))]
        parts.append((test, np.arange(len(test.labels))))
        chosen = []
        for name, size, (scans, part) in zip(SPLITS, (num_train, num_val, num_test), parts, strict=True):
            if size is not None and check_integer(f"FashionAttributes: num_{name}", size, low=1) > len(part):
                raise OptionError(f"FashionAttributes: num_{name} must be at most {len(part)}, got {size}")
            order = random_stream(SPLIT_SEED, 1).permutation(len(part))[:size]
            chosen.append((scans.images[part][order], scans.labels[part][order]))
        everything = train.images[parts[0][1]]  # thresholds do not depend on how many images are used
        self.medians = tuple(float(np.median(value)) for value in measure(everything))
        self._splits = {name: self._split(*own) for name, own in zip(SPLITS, chosen, strict=True)}

    def _split(self, images: NDArray[np.uint8], labels: Bits) -> TensorSplit:
        gray, asymmetry, size = measure(images)
        targets = {
            "category": labels,
            "footwear": np.isin(labels, FOOTWEAR),
            "long_sleeves": np.isin(labels, LONG_SLEEVES),
            "bright": gray > self.medians[0],
            "symmetric": asymmetry < self.medians[1],
            "large": size > self.medians[2],
        }
        tensors = {name: torch.from_numpy(np.asarray(target, dtype=np.int64)) for name, target in targets.items()}
        tensors["long_sleeves_mask"] = torch.from_numpy(np.isin(labels, CLOTHES))
        tensors["image"] = torch.from_numpy(np.ascontiguousarray(images))[:, None]
        return TensorSplit(tensors, divisors={"image": WHITE})

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The six tasks, each judged by its accuracy."""
        widths = {"category": NUM_CLASSES} | dict.fromkeys(
            ("footwear", "long_sleeves", "bright", "symmetric", "large"), 2
        )
        return tuple(
            Task(name, losses.cross_entropy, {"accuracy": metrics.accuracy(width)}, width)
            for name, width in widths.items()
        )

    @property
    def input_shape(self) -> tuple[int, ...]:
        """One channel, 28 x 28."""
        return (1, SIDE, SIDE)

    def split(self, name: str) -> TensorSplit:
        """Return the split called ``"train"``, ``"val"`` or ``"test"``; ``"image"`` is in [0, 1].

        Raises:
            UnknownNameError: If there is no such split.
        """
        return pick_split(self.key, self._splits, name)

    @classmethod
    def problems(cls, root: str | os.PathLike[str], *, verify: bool = True) -> list[str]:
        """Return what is wrong with the files under a folder, one line each; empty if nothing is."""
        folder = Path(root).expanduser()
        found = [FASHION_MNIST.problems(folder, part, alone=True, verify=verify) for part in ("train", "t10k")]
        return [line for own in found for line in own]


def measure(images: NDArray[np.uint8]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return mean gray value of the thing, difference to the mirror image, and number of pixels, for each image.

    Args:
        images: Gray values, (N, rows, columns).
    """
    gray = images.astype(np.float32)
    ink = images >= INK
    size = ink.sum(axis=(1, 2)).astype(np.float64)
    brightness = (gray * ink).sum(axis=(1, 2), dtype=np.float64) / np.maximum(size, 1)
    difference = np.abs(gray - gray[:, :, ::-1]).mean(axis=(1, 2), dtype=np.float64)
    return brightness, difference / np.maximum(gray.mean(axis=(1, 2), dtype=np.float64), 1e-9), size
