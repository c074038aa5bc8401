import gzip

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from counterpoint.data._idx import read_idx
from counterpoint.errors import FileError


@given(shape=st.lists(st.integers(0, 5), min_size=3, max_size=3), packed=st.booleans(), seed=st.integers(0, 9))
def test_what_is_written_is_read(tmp_path_factory, shape, packed, seed):
    array = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    content = bytes([0, 0, 8, 3]) + b"".join(n.to_bytes(4, "big") for n in shape) + array.tobytes()
    path = tmp_path_factory.mktemp("idx") / "images"
    path.write_bytes(gzip.compress(content) if packed else content)
    read, digest = read_idx(path, 3)
    np.testing.assert_array_equal(read, array)
    plain = path.with_name("plain")
    plain.write_bytes(content)
    assert digest == read_idx(plain, 3)[1]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda _: b"", "begins with the bytes 00 00 08 01, this one with nothing"),
        (lambda content: content[:3], "this one with 00 00 08"),
        (lambda content: content[:6], "cut short inside its header"),
        (lambda content: content[:-1], "cut short: shape (30,) takes 38 bytes, got 37"),
        (lambda content: content + b"\0", "longer than its header says: shape (30,) takes 38 bytes, got 39"),
        (lambda content: b"\0\0\x08\x03" + content[4:], "00 00 08 03"),
        (lambda content: b"\0\0\x0d\x01" + content[4:], "00 00 0d 01"),  # floats
        (lambda content: b"PK\x03\x04" + content[4:], "50 4b 03 04"),
        (lambda content: gzip.compress(content)[:-9], "cannot be unpacked"),
        (lambda content: gzip.compress(content)[:-8] + b"\1" * 8, "cannot be unpacked"),  # wrong check sum
        (lambda content: gzip.compress(content) + b"more", "cannot be unpacked"),
        (lambda content: gzip.compress(content) * 2, "longer than its header says"),
        (lambda content: gzip.compress(content)[:12] + b"\xff" * 20, "cannot be unpacked"),
    ],
)
def test_a_bad_file_is_refused_in_one_line(tmp_path, idx, change, says):
    path = tmp_path / "t10k-labels-idx1-ubyte"
    path.write_bytes(change(idx(np.arange(30) % 10)))
    with pytest.raises(FileError) as caught:
        read_idx(path, 1)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert says in message
    assert message.endswith("put the original file there")
    assert "\n" not in message


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(FileError, match="cannot be read"):
            read_idx(path, 1)
