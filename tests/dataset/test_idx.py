"""IDX files are read exactly, or refused with a message; never guessed at."""

import gzip
import math
import re
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis.extra.numpy as arrays
import idx2numpy
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from stages.dataset.idx import IdxError, read_idx, write_idx

TYPE_CODES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}

# Bytes written by hand, and what they mean: bits where `==` would not tell.
BY_HAND: dict[str, tuple[str, NDArray[Any]]] = {
    "uint8": (
        "00 00 08 02  00000002 00000003  00 01 7f  80 fe ff",
        np.array([[0, 1, 127], [128, 254, 255]], "u1"),
    ),
    "int8": (
        "00 00 09 01  00000005  80 ff 00 01 7f",
        np.array([-128, -1, 0, 1, 127], "i1"),
    ),
    "int16": (
        "00 00 0b 01  00000004  8000 ffff 0102 7fff",
        np.array([-32768, -1, 258, 32767], "i2"),
    ),
    "int32": (
        "00 00 0c 01  00000004  80000000 ffffffff 01020304 7fffffff",
        np.array([-(2**31), -1, 16909060, 2**31 - 1], "i4"),
    ),
    "float32: 1.5, -0.0, infinities, a NaN with a payload, the least number": (
        "00 00 0d 01  00000006  3fc00000 80000000 7f800000 ff800000 7fc01234 00000001",
        np.array([0x3FC00000, 0x80000000, 0x7F800000, 0xFF800000, 0x7FC01234, 1], "u4").view("f4"),
    ),
    "float64: 1.5, -0.0, -infinity, a signalling NaN": (
        "00 00 0e 01  000000043ff8000000000000 8000000000000000 fff0000000000000 7ff0000000abcdef",
        np.array([0x3FF8 << 48, 1 << 63, 0xFFF << 52, (0x7FF << 52) + 0xABCDEF], "u8").view("f8"),
    ),
    "one element, no dimension": ("00 00 08 00  07", np.array(7, "u1")),
    "no element": ("00 00 0c 01  00000000", np.zeros(0, "i4")),
    "no element, three dimensions": (
        "00 00 0d 03  00000002 00000000 00000003",
        np.zeros((2, 0, 3), "f4"),
    ),
    "long and empty": ("00 00 08 02  ffffffff 00000000", np.zeros((2**32 - 1, 0), "u1")),
    "64 dimensions": ("00 00 08 40" + "00000001" * 64 + "2a", np.full((1,) * 64, 42, "u1")),
}


def same(found: NDArray[Any], expected: NDArray[Any]) -> bool:
    """Compare shape, type (byte order aside) and bits, so that -0.0 and NaN payloads count."""
    big_endian = expected.dtype.newbyteorder(">")
    return (
        found.shape == expected.shape
        and found.dtype.newbyteorder(">") == big_endian
        and found.astype(big_endian, casting="equiv").tobytes()
        == expected.astype(big_endian, casting="equiv").tobytes()
    )


@pytest.mark.parametrize("name", list(BY_HAND))
def test_bytes_written_by_hand(tmp_path: Path, name: str) -> None:
    text, expected = BY_HAND[name]
    content = bytes.fromhex(text)
    path = tmp_path / "file"
    path.write_bytes(content)
    assert same(read_idx(path), expected)
    assert same(read_idx(str(path)), expected)
    write_idx(tmp_path / "again", expected)
    assert (tmp_path / "again").read_bytes() == content


arrays_of_all_types: st.SearchStrategy[NDArray[Any]] = arrays.arrays(
    st.sampled_from([np.dtype(order + name) for name in TYPE_CODES for order in "<>"]),
    arrays.array_shapes(min_dims=0, max_dims=6, min_side=0, max_side=6),
)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch")


@pytest.mark.slow
@settings(deadline=None)
@given(arrays_of_all_types)
def test_what_we_write_we_and_idx2numpy_read(scratch: Path, array: NDArray[Any]) -> None:
    write_idx(scratch / "ours", array)
    assert same(read_idx(scratch / "ours"), array)
    assert same(idx2numpy.convert_from_file(str(scratch / "ours")), array)
    write_idx(scratch / "ours.gz", array)
    assert gzip.decompress((scratch / "ours.gz").read_bytes()) == (scratch / "ours").read_bytes()
    if array.size and array.ndim:  # idx2numpy writes neither empty arrays nor single elements
        native = array.astype(array.dtype.newbyteorder("="))
        idx2numpy.convert_to_file(str(scratch / "theirs"), native)
        assert same(read_idx(scratch / "theirs"), array)


@pytest.mark.parametrize(
    "view",
    [lambda a: a[::2, ::-1], lambda a: a.T, lambda a: np.asfortranarray(a), lambda a: a[:, 1]],
)
def test_arrays_in_any_memory_layout(
    tmp_path: Path, view: Callable[[NDArray[Any]], NDArray[Any]]
) -> None:
    array = view(np.arange(30_000, dtype="i4").reshape(200, 150))
    write_idx(tmp_path / "a", array)
    assert same(read_idx(tmp_path / "a"), array)


def test_writing_the_same_array_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.gz", "b.gz"):
        write_idx(tmp_path / name, np.arange(100, dtype="i2"))
    a, b = ((tmp_path / name).read_bytes() for name in ("a.gz", "b.gz"))
    assert a == b
    assert b[4:8] == bytes(4)  # no time in it


def test_an_array_is_read_only_and_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.write(bytes.fromhex("00 00 08 02 00000400 00100000"))
        file.truncate(12 + (1 << 30))  # 1 GB of zeros that take no room on the disk
    tracemalloc.start()
    try:
        array = read_idx(path)
        assert array[-1, -1] == 0
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    with pytest.raises(ValueError, match="read-only"):
        array[0, 0] = 1


def test_what_was_read_may_be_converted_and_written_in_its_place(tmp_path: Path) -> None:
    write_idx(tmp_path / "a", np.array([3, 1, 2], "i4"))
    labels = read_idx(tmp_path / "a")
    write_idx(tmp_path / "a", labels.astype("u1"))
    assert read_idx(tmp_path / "a").tolist() == labels.tolist() == [3, 1, 2]


# --- Malformed files ---------------------------------------------------------------------------

TYPES = "08 uint8, 09 int8, 0b int16, 0c int32, 0d float32, 0e float64"
SOMETHING_ELSE = (
    "but an IDX file starts with 00 00; it is something else, or a web page that was saved in its "
    "place"
)
MALFORMED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "has 0 bytes, but an IDX file has at least 4"),
    "three bytes": (b"\0\0\x08", "has 3 bytes, but an IDX file has at least 4"),
    "packed": (gzip.compress(b"x"), "is compressed by gzip; unpack it with gunzip"),
    "HTML": (b"<!doctype html>", f"starts with 3c 21, {SOMETHING_ELSE}"),
    "second byte": (b"\0\1\x08\1\0\0\0\0", f"starts with 00 01, {SOMETHING_ELSE}"),
    "type": (b"\0\0\x0a\1\0\0\0\0", f"element type is 0a, expected one of {TYPES}"),
    "header cut short": (
        bytes.fromhex("00 00 08 03 0000000a 00"),
        "ends after 9 bytes, but a header of 3 dimensions has 16",
    ),
    "too many dimensions": (
        bytes.fromhex("00 00 08 41" + "00000001" * 65 + "00"),
        f"has shape {(1,) * 65}, which NumPy cannot hold",
    ),
    "2^96 bytes": (
        bytes.fromhex("00 00 08 03" + "ffffffff" * 3),
        "has 16 bytes, but its header (4294967295 x 4294967295 x 4294967295 of uint8) "
        f"promises {16 + (2**32 - 1) ** 3}; fetch it again",
    ),
    "more than NumPy can index, all of it empty": (
        bytes.fromhex("00 00 08 04" + "ffffffff" * 3 + "00000000"),
        "has shape (4294967295, 4294967295, 4294967295, 0), which NumPy cannot hold",
    ),
    "one byte missing": (
        bytes.fromhex("00 00 0b 01 00000002 0001 00"),
        "has 11 bytes, but its header (2 of int16) promises 12; fetch it again",
    ),
    "one byte too many": (
        bytes.fromhex("00 00 0b 01 00000002 0001 0002 00"),
        "has 13 bytes, but its header (2 of int16) promises 12; fetch it again",
    ),
    "no dimension, no element": (
        bytes.fromhex("00 00 08 00"),
        "has 4 bytes, but its header (one of uint8) promises 5; fetch it again",
    ),
}


@pytest.mark.parametrize("name", list(MALFORMED))
def test_malformed(tmp_path: Path, name: str) -> None:
    content, why = MALFORMED[name]
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(IdxError) as error:
        read_idx(path)
    assert isinstance(error.value, ValueError)
    assert str(error.value) == f"{path}: {why}"


@pytest.mark.parametrize("dtype", ["bool", "uint16", "int64", "float16", "complex64", "U1", "O"])
def test_types_that_idx_does_not_have(tmp_path: Path, dtype: str) -> None:
    path = tmp_path / "file"
    array = np.zeros(3, dtype)
    why = f"{path}: IDX cannot hold {array.dtype}; convert to one of {TYPES}"
    with pytest.raises(IdxError, match=re.escape(why)):
        write_idx(path, array)
    assert not path.exists()


@settings(deadline=None)
@given(st.binary(max_size=64))
def test_any_bytes_give_an_array_or_an_idx_error(scratch: Path, content: bytes) -> None:
    path = scratch / "any"
    path.write_bytes(b"\0\0" + content)
    try:
        array = read_idx(path)
    except IdxError:
        return
    # What is accepted says the same as the bytes, which are unpacked here independently.
    _, code, dimensions = struct.unpack_from(">HBB", b"\0\0" + content)
    assert array.shape == struct.unpack_from(f">{dimensions}I", content, 2)
    assert TYPE_CODES[array.dtype.str[1:]] == code
    assert len(content) == 2 + 4 * dimensions + math.prod(array.shape) * array.itemsize
