"""Where MNIST and FashionMNIST are on disk, and whether the files are the published ones."""

import dataclasses
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from counterpoint.data._idx import read_idx
from counterpoint.errors import FileError

SIDE = 28
NUM_CLASSES = 10


@dataclasses.dataclass(frozen=True)
class Scans:
    """Scans of one part of a source.

    Attributes:
        images: Grey values, (N, rows, columns), uint8.
        labels: Classes, (N,), int64.
        digest: SHA-256 of the unpacked image file, then of the label file.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    digest: tuple[str, str]


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """One published set of scans: its folder in torchvision's layout, and the checksums of its files.

    Attributes:
        name: Name of the source and of its folder.
        checksums: Name of each unpacked file -> its SHA-256.
    """

    name: str
    checksums: dict[str, str]

    def read(self, root: Path, part: str, *, alone: bool, verify: bool) -> Scans:
        """Read the images and the labels of one part.

        Args:
            root: Folder that holds ``NAME/raw``.
            part: ``"train"`` or ``"t10k"`` (the test part), as the files call them.
            alone: Only this source is wanted, so ``root/raw`` and ``root`` itself are searched too.
            verify: Compare the files with the published checksums.

        Raises:
            FileError: If a file is missing, damaged, not the published one or has values out of range.
        """
        images, image_digest = self._read_file(root, f"{part}-images-idx3-ubyte", 3, alone, verify)
        labels, label_digest = self._read_file(root, f"{part}-labels-idx1-ubyte", 1, alone, verify)
        if len(images) != len(labels):
            path = self.find(root, f"{part}-labels-idx1-ubyte", alone=alone)
            raise FileError(
                f"{path}: {len(labels)} labels, but {len(images)} images beside them; put the files of one set there"
            )
        return Scans(images, labels.astype(np.int64), (image_digest, label_digest))

    def problems(self, root: Path, part: str, *, alone: bool, verify: bool) -> list[str]:
        """Return what is wrong with the two files of one part, one line each; empty if nothing is."""
        found = []
        for name, num_axes in ((f"{part}-images-idx3-ubyte", 3), (f"{part}-labels-idx1-ubyte", 1)):
            try:
                self._read_file(root, name, num_axes, alone, verify)
            except FileError as error:
                found.append(str(error))
        if found:
            return found
        try:
            self.read(root, part, alone=alone, verify=verify)
        except FileError as error:
            found.append(str(error))
        return found

    def find(self, root: Path, name: str, *, alone: bool) -> Path:
        """Return the path of a file, unpacked or with ``.gz``, the unpacked one first as torchvision does.

        Only the first folder that has any file of the source is looked at, so that two sets are never mixed.

        Raises:
            FileError: If it is not there.
        """
        folders = [root / self.name / "raw", root / self.name]
        if alone:
            folders += [root / "raw", root]
        endings = ("", ".gz")
        present = [
            folder
            for folder in folders
            if any((folder / (file + end)).is_file() for file in self.checksums for end in endings)
        ]
        folder = (present or folders)[0]
        for end in endings:
            if (folder / (name + end)).is_file():
                return folder / (name + end)
        raise FileError(f"{folder / name}: missing; put {name} or {name}.gz of {self.name} there")

    def _read_file(
        self, root: Path, name: str, num_axes: int, alone: bool, verify: bool
    ) -> tuple[NDArray[np.uint8], str]:
        """Read one file and check its values; return it with its SHA-256.

        Raises:
            FileError: As :meth:`read`.
        """
        path = self.find(root, name, alone=alone)
        array, digest = read_idx(path, num_axes)
        if num_axes == 3 and array.shape[1:] != (SIDE, SIDE):
            raise FileError(
                f"{path}: images of {SIDE} x {SIDE} are expected, got {array.shape[1]} x {array.shape[2]}; "
                f"put {self.name}'s file there"
            )
        if num_axes == 1 and array.size and int(array.max()) >= NUM_CLASSES:
            position = int(np.argmax(array >= NUM_CLASSES))
            raise FileError(
                f"{path}: labels are 0 to {NUM_CLASSES - 1}, got {array[position]} for item {position}; "
                f"put {self.name}'s file there"
            )
        if verify and digest != self.checksums[name]:
            other = [source.name for source in (MNIST, FASHION_MNIST) if source.checksums[name] == digest]
            problem = f"this is {other[0]}'s file" if other else "altered: its SHA-256 is not the published one"
            raise FileError(
                f"{path}: {problem}; put {self.name}'s file there, or pass verify=False for a set of your own"
            )
        return array, digest


# SHA-256 of the unpacked files. They do not depend on how a mirror packed them, unlike the checksums of the .gz files
# in torchvision. Computed from the files, but for MNIST's training part: for that, the values that public code pins.
MNIST = Source(
    "MNIST",
    {
        "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    },
)
FASHION_MNIST = Source(
    "FashionMNIST",
    {
        "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    },
)
