"""Small sets of scans in the layout of MNIST and FashionMNIST, written by the tests."""

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

NUM_SCANS = {("MNIST", "train"): 60, ("MNIST", "t10k"): 24, ("FashionMNIST", "train"): 90, ("FashionMNIST", "t10k"): 12}


def _idx(array: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


@pytest.fixture
def idx() -> Callable[[np.ndarray], bytes]:
    """The bytes of an IDX file."""
    return _idx


@pytest.fixture(scope="session")
def scans() -> dict[tuple[str, str], tuple[np.ndarray, np.ndarray]]:
    """Source and part -> images, all different, and labels."""
    stream = np.random.default_rng(0)
    return {
        key: (stream.integers(0, 256, (size, 28, 28), dtype=np.uint8), stream.permutation(np.arange(size) % 10))
        for key, size in NUM_SCANS.items()
    }


@pytest.fixture
def write_root(scans, tmp_path) -> Callable[..., Path]:
    """Write the small sets under a folder, packed or not."""

    def write(name: str = "root", *, packed: bool = False, folder: str = "{source}/raw") -> Path:
        for (source, part), (images, labels) in scans.items():
            raw = tmp_path / name / folder.format(source=source)
            raw.mkdir(parents=True, exist_ok=True)
            for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
                content = _idx(array)
                path = raw / f"{part}-{kind}-ubyte{'.gz' if packed else ''}"
                path.write_bytes(gzip.compress(content, mtime=0) if packed else content)
        return tmp_path / name

    return write


@pytest.fixture
def root(write_root) -> Path:
    return write_root()
