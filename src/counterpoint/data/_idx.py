"""Reading of IDX files, the format of MNIST and FashionMNIST, as they are or packed with gzip."""

import gzip
import hashlib
import math
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from counterpoint.errors import FileError

_GZIP_MAGIC = b"\x1f\x8b"
_UNSIGNED_BYTE = 0x08  # type code of the third byte; the fourth is the number of axes
_LAYOUT = {1: "labels (axis: items)", 3: "images (axes: items, rows, columns)"}


def read_idx(path: Path, num_axes: int) -> tuple[NDArray[np.uint8], str]:
    """Read an IDX file of unsigned bytes; whether it is packed is seen from its first bytes, not from its name.

    Args:
        path: The file.
        num_axes: Number of axes that it must have: 1 for labels, 3 for images.

    Returns:
        The array (read-only), and the SHA-256 of the unpacked file, header included.

    Raises:
        FileError: If the file is missing, cannot be unpacked, or is not one IDX array of unsigned bytes with this
            number of axes from its first byte to its last.
    """
    content = _read(path)
    header = 4 + 4 * num_axes
    expected = bytes((0, 0, _UNSIGNED_BYTE, num_axes))
    if content[:4] != expected:
        raise FileError(
            f"{path}: an IDX file of {_LAYOUT[num_axes]} begins with the bytes {expected.hex(' ')}, this one with "
            f"{content[:4].hex(' ') or 'nothing'}; put the original file there"
        )
    if len(content) < header:
        raise FileError(f"{path}: cut short inside its header; put the original file there")
    shape = tuple(np.frombuffer(content, ">u4", num_axes, offset=4).tolist())
    size = header + math.prod(shape)
    if len(content) != size:
        problem = "cut short" if len(content) < size else "longer than its header says"
        raise FileError(
            f"{path}: {problem}: shape {shape} takes {size} bytes, got {len(content)}; put the original file there"
        )
    array = np.frombuffer(content, np.uint8, offset=header).reshape(shape)
    return array, hashlib.sha256(content).hexdigest()


def _read(path: Path) -> bytes:
    """Return the content of a file, unpacked.

    Raises:
        FileError: If it cannot be read or unpacked.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise FileError(f"{path}: cannot be read ({error.strerror}); put the original file there") from error
    if not content.startswith(_GZIP_MAGIC):
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise FileError(
            f"{path}: damaged or cut short, cannot be unpacked ({error}); put the original file there"
        ) from error
