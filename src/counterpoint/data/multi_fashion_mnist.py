"""MultiMNIST, MultiFashion and Multi-(Fashion+MNIST): overlapping pairs, made from the IDX files of the two sources."""

import dataclasses
import os
from pathlib import Path
from typing import Any, final

import numpy as np
import torch

from counterpoint import losses, metrics
from counterpoint._checks import check_choice, check_integer
from counterpoint.data import _cache
from counterpoint.data._base import SPLITS, DataOnDisk, TensorSplit, pick_split
from counterpoint.data._overlay import Indices, Pairs, Placement, draw_pairs, overlay, random_stream, split_scans
from counterpoint.data._scans import FASHION_MNIST, MNIST, NUM_CLASSES, Scans, Source
from counterpoint.errors import FileError, OptionError
from counterpoint.tasks import Task

CANVAS = 36
WHITE = 255
PLACEMENT = Placement(canvas=(CANVAS, CANVAS), first=((0, 4), (0, 4)), second=((4, 8), (4, 8)))
SPLIT_SEED = 0
TRAIN_SHARES = (5, 1)  # training scans into train and val
TEST_SHARES = (4, 1, 1)  # test scans into train, val and test, where there are no others
PAIRS_PER_SCAN = 2
TASK_NAMES = ("top_left", "bottom_right")
DEFAULT_CACHE = "default"
FORMAT = 1  # goes into the cache key; to be raised when the arrays of the same options change

MEMBERS: dict[str, tuple[Source, Source]] = {
    "multi_mnist": (MNIST, MNIST),
    "multi_fashion": (FASHION_MNIST, FASHION_MNIST),
    "fashion_and_mnist": (MNIST, FASHION_MNIST),
}
MNIST_PARTS = ("all", "test")


@dataclasses.dataclass(frozen=True)
class _Pool:
    """All scans of a source and, for each split, which of them belong to it."""

    images: np.ndarray
    labels: Indices
    parts: dict[str, Indices]
    digests: list[str]


@final
class MultiFashionMNIST(DataOnDisk):
    """Overlapping pairs of scans of MNIST and FashionMNIST, made here from the original files.

    How it is made. On an empty 36 x 36 canvas, the upper left corner of the first scan (28 x 28) is at a row and a
    column drawn uniformly from 0 to 4, that of the second scan at a row and a column drawn uniformly from 4 to 8; the
    two are combined by the element-wise maximum. The task ``top_left`` is the class of the first scan, ``bottom_right``
    that of the second. Within a split every first scan is used equally often (up to one time) and second scans are
    drawn uniformly: in ``"multi_mnist"`` and ``"multi_fashion"`` among the scans of the other nine classes, in
    ``"fashion_and_mnist"`` (first MNIST, second FashionMNIST) among all.

    Splits. One sixth of the training scans of either source, chosen at random once and for all and stratified by class,
    is set apart for validation *before* the pairing, so no scan is in two splits. Each split has twice as many pairs as
    scans, of the source that has fewer there: 100,000 + 20,000 + 20,000. With ``mnist_part="test"`` the 10,000 test
    digits of MNIST are split by scan 4 : 1 : 1 into 6,668 + 1,666 + 1,666, which gives 13,336 + 3,332 + 3,332 pairs.

    Differences to the pickles of the Pareto MTL paper, which most published numbers rest on: (1) their generator is not
    public; ours follows the text (two random images, of different classes for MNIST, shifted by up to 4 pixels) and is
    a reading of it in the ranges of the shifts, in the maximum and in the rule of different classes for FashionMNIST;
    (2) the pickles have no validation split and 120,000 training pairs, ours has 100,000 and 20,000 that share no scan
    with them; (3) images here are in [0, 1]; the range in the pickles is not documented. Numbers are comparable in
    kind, not identical.

    Args:
        root: Folder in torchvision's layout: ``MNIST/raw`` and ``FashionMNIST/raw`` under it hold the IDX files, as
            they are or ``.gz``. A member with one source also takes ``raw`` under it, or the folder of the files
            itself.
        member: ``"multi_mnist"``, ``"multi_fashion"`` or ``"fashion_and_mnist"``.
        mnist_part: ``"all"``: training and test digits. ``"test"``: make do with the 10,000 test digits of MNIST.
        num_train: Number of training pairs; default as said above. The pairs of a smaller set are the first ones of a
            larger set.
        num_val: Number of validation pairs.
        num_test: Number of test pairs.
        seed: Seed of the pairing and of the shifts; the split of the scans does not depend on it.
        verify: Compare the source files with the published checksums; turn off for sets of your own in the same layout.
        cache: Folder for the generated arrays (an uncompressed ``.npz`` of about 180 MB at the default sizes);
            ``"default"`` is ``$XDG_CACHE_HOME/counterpoint`` or ``~/.cache/counterpoint``, ``None`` no cache. The
            sources are read and checked either way: the file belongs to their content, the options and the seed.

    Attributes:
        scans: Source -> split -> indices of its scans. They count the training scans of the source first and its
            test scans after them; with ``mnist_part="test"``, MNIST's test scans only.
        pairs: Split -> which scans were paired (the same indices), and where they lie.

    Raises:
        FileError: If a file is missing, damaged, altered or out of range, or the cache is damaged or cannot be written.
        OptionError: If an option is out of range.

    References:
        Sabour, Frosst, Hinton, "Dynamic Routing Between Capsules", NeurIPS 2017, arXiv:1710.09829 (MultiMNIST). Lin,
        Zhen, Li, Zhang, Kwong, "Pareto Multi-Task Learning", NeurIPS 2019, arXiv:1912.12854 (the three members).
    """

    key = "multi_fashion_mnist"
    source = "Lin et al., Pareto Multi-Task Learning, NeurIPS 2019, arXiv:1912.12854; scans of MNIST and FashionMNIST"
    provenance = (
        "our reconstruction from the paper's text (its generator is not public): comparable in kind, not identical"
    )
    layout = (
        "ROOT/MNIST/raw and ROOT/FashionMNIST/raw with {train,t10k}-{images-idx3,labels-idx1}-ubyte, unpacked or .gz"
    )

    scans: dict[str, dict[str, Indices]]
    pairs: dict[str, Pairs]

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        member: str = "fashion_and_mnist",
        mnist_part: str = "all",
        num_train: int | None = None,
        num_val: int | None = None,
        num_test: int | None = None,
        seed: int = 0,
        verify: bool = True,
        cache: str | os.PathLike[str] | None = DEFAULT_CACHE,
    ) -> None:
        self.root = root
        self.member, self.mnist_part = _check_member(member, mnist_part)
        self.num_train = _check_count("num_train", num_train)
        self.num_val = _check_count("num_val", num_val)
        self.num_test = _check_count("num_test", num_test)
        self.seed = check_integer("MultiFashionMNIST: seed", seed, low=0)
        self.verify = verify
        self.cache = cache
        pools = {source.name: self._read(source) for source in dict.fromkeys(MEMBERS[member])}
        self.scans = {name: pool.parts for name, pool in pools.items()}
        first, second = (pools[name] for name in self._source_names())
        self.pairs = self._draw(first, second)
        arrays = self._make_or_load(first, second)
        self._splits = {
            name: TensorSplit(
                {
                    "image": torch.from_numpy(arrays[f"x_{name}"])[:, None],
                    **{task: torch.from_numpy(arrays[f"y_{name}"][:, i].copy()) for i, task in enumerate(TASK_NAMES)},
                },
                divisors={"image": WHITE},
            )
            for name in SPLITS
        }

    @property
    def tasks(self) -> tuple[Task, ...]:
        """``top_left`` and ``bottom_right``: the class of either scan."""
        accuracy = {"accuracy": metrics.accuracy(NUM_CLASSES)}
        return tuple(Task(name, losses.cross_entropy, accuracy, NUM_CLASSES) for name in TASK_NAMES)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """One channel, the height and the width of the canvas."""
        return (1, CANVAS, CANVAS)

    def split(self, name: str) -> TensorSplit:
        """Return the split called ``"train"``, ``"val"`` or ``"test"``; ``"image"`` is in [0, 1].

        Raises:
            UnknownNameError: If there is no such split.
        """
        return pick_split(self.key, self._splits, name)

    @classmethod
    def problems(
        cls,
        root: str | os.PathLike[str],
        *,
        member: str = "fashion_and_mnist",
        mnist_part: str = "all",
        verify: bool = True,
    ) -> list[str]:
        """Return what is wrong with the files that a member needs, one line for each; empty if nothing is.

        Args:
            root: As in the constructor, like the other arguments.
            member: Which member.
            mnist_part: Which part of MNIST.
            verify: Compare with the published checksums.
        """
        _check_member(member, mnist_part)
        sources = list(dict.fromkeys(MEMBERS[member]))
        return [
            problem
            for source in sources
            for part in _file_parts(source, mnist_part)
            for problem in source.problems(Path(root), part, alone=len(sources) == 1, verify=verify)
        ]

    def _read(self, source: Source) -> _Pool:
        """Read a source and split its scans.

        Raises:
            FileError: If its files are not as they should be.
        """
        root, alone = Path(self.root), len(set(self._source_names())) == 1
        try:
            read = [
                source.read(root, part, alone=alone, verify=self.verify)
                for part in _file_parts(source, self.mnist_part)
            ]
        except FileError as error:
            if (
                source is MNIST
                and self.mnist_part == "all"
                and not source.problems(root, "t10k", alone=alone, verify=self.verify)
            ):
                raise FileError(f"{error}; or pass mnist_part='test' to make do with the 10,000 test digits") from error
            raise
        return _split_pool(source.name, read)

    def _source_names(self) -> list[str]:
        return [source.name for source in MEMBERS[self.member]]

    def _draw(self, first: _Pool, second: _Pool) -> dict[str, Pairs]:
        """Draw the pairs of all splits.

        Raises:
            FileError: If a pair of different classes is wanted, and a split has one class only.
        """
        names = self._source_names()
        different = names[0] == names[1]
        given = (self.num_train, self.num_val, self.num_test)
        pairs = {}
        for position, (split, size) in enumerate(zip(SPLITS, given, strict=True)):
            ones, others = first.parts[split], second.parts[split]
            if different and len(np.unique(first.labels[ones])) < 2:
                raise FileError(
                    f"{self.root}: all scans of {names[0]} for {split} are of one class; two are needed for a pair"
                )
            pairs[split] = draw_pairs(
                (ones, first.labels[ones]),
                (others, second.labels[others]),
                PAIRS_PER_SCAN * min(len(ones), len(others)) if size is None else size,
                PLACEMENT,
                different_classes=different,
                key=(self.seed, position),
            )
        return pairs

    def _make_or_load(self, first: _Pool, second: _Pool) -> dict[str, np.ndarray]:
        """Return the images and labels of all splits, from the cache if they are there."""
        if self.cache is None:
            return self._make(first, second)
        folder = _cache.default_folder() if self.cache == DEFAULT_CACHE else Path(self.cache).expanduser()
        key: dict[str, Any] = {
            "format": FORMAT,
            "member": self.member,
            "mnist_part": self.mnist_part,
            "num_pairs": [len(self.pairs[split]) for split in SPLITS],
            "seed": self.seed,
            "sources": [first.digests, second.digests],
        }
        path = _cache.cache_path(folder, self.member, key)
        arrays = _cache.load(path, key)
        if arrays is None:
            arrays = self._make(first, second)
            _cache.save(path, key, arrays)
        return arrays

    def _make(self, first: _Pool, second: _Pool) -> dict[str, np.ndarray]:
        arrays = {}
        for split, pairs in self.pairs.items():
            arrays[f"x_{split}"] = overlay(first.images, second.images, pairs, PLACEMENT.canvas)
            arrays[f"y_{split}"] = np.stack([first.labels[pairs.first], second.labels[pairs.second]], axis=1)
        return arrays


def _split_pool(name: str, read: list[Scans]) -> _Pool:
    """Join the parts of a source and split its scans: the training part, or the test part where it is alone.

    Raises:
        FileError: If a split would be empty.
    """
    labels = np.concatenate([scans.labels for scans in read])
    shares = TRAIN_SHARES if len(read) > 1 else TEST_SHARES
    parts = split_scans(read[0].labels, shares, random_stream(SPLIT_SEED))
    if len(read) > 1:
        parts.append(np.arange(len(read[0].labels), len(labels)))
    if not all(part.size for part in parts):
        raise FileError(f"{name}: {len(labels)} images are too few for three splits; at least {sum(shares)} are needed")
    return _Pool(
        np.concatenate([scans.images for scans in read]),
        labels,
        dict(zip(SPLITS, parts, strict=True)),
        [digest for scans in read for digest in scans.digest],
    )


def _file_parts(source: Source, mnist_part: str) -> tuple[str, ...]:
    """Return the parts of a source that are read, as its files call them."""
    return ("t10k",) if source is MNIST and mnist_part == "test" else ("train", "t10k")


def _check_member(member: str, mnist_part: str) -> tuple[str, str]:
    check_choice("MultiFashionMNIST: member", member, MEMBERS)
    check_choice("MultiFashionMNIST: mnist_part", mnist_part, MNIST_PARTS)
    if mnist_part == "test" and MNIST not in MEMBERS[member]:
        raise OptionError(f"MultiFashionMNIST: mnist_part must be 'all' for {member}, which takes nothing from MNIST")
    return member, mnist_part


def _check_count(name: str, value: int | None) -> int | None:
    return None if value is None else check_integer(f"MultiFashionMNIST: {name}", value, low=1)
