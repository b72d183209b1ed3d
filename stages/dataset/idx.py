"""Read and write IDX files, the format that MNIST and its relatives are published in.

Bytes 0 and 1 are zero, byte 2 is the element type, byte 3 the number of dimensions. Then come the
length of each dimension as a big-endian uint32, and the elements, row-major and big-endian.
"""

import gzip
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.common import files
from stages.common.errors import StageError

TYPES: dict[int, np.dtype[Any]] = {
    0x08: np.dtype("u1"),
    0x09: np.dtype("i1"),
    0x0B: np.dtype(">i2"),
    0x0C: np.dtype(">i4"),
    0x0D: np.dtype(">f4"),
    0x0E: np.dtype(">f8"),
}
_TYPES_TEXT = ", ".join(f"{code:02x} {dtype.name}" for code, dtype in TYPES.items())


class IdxError(StageError, ValueError):
    """A file that is not valid IDX, or an array that IDX cannot hold."""


def read_idx(path: str | Path) -> NDArray[Any]:
    """Map an unpacked IDX file into memory, so that it may be larger than memory.

    Returns a read-only array of the file's shape and type, in the file's byte order (big-endian);
    NumPy computes with it as with any other.
    Raises IdxError that names the file, what was found and what was expected.
    """
    path = Path(path)
    try:
        content: NDArray[np.uint8] = np.memmap(path, np.uint8, "r")
    except ValueError:  # an empty file cannot be mapped
        content = np.empty(0, np.uint8)
    dtype, shape, start = _read_header(content[: 4 + 4 * 255].tobytes(), path)
    # Python's whole numbers: three lengths are enough to overflow 64 bits.
    expected = start + math.prod(shape) * dtype.itemsize
    if len(content) != expected:
        dimensions = " x ".join(map(str, shape)) or "one"
        raise IdxError(
            f"{path}: has {len(content)} bytes, but its header ({dimensions} of {dtype.name}) "
            f"promises {expected}; fetch it again"
        )
    try:
        return content[start:].view(dtype).reshape(shape)
    except ValueError:  # more than 64 dimensions, or great lengths beside one of 0
        raise IdxError(f"{path}: has shape {shape}, which NumPy cannot hold") from None


def write_idx(path: str | Path, array: NDArray[Any]) -> None:
    """Write an array as IDX; if `path` ends in .gz, compressed, with the same bytes each time.

    Raises IdxError for a type that the format does not have.
    """
    big_endian = array.dtype.newbyteorder(">")
    code = next((code for code, dtype in TYPES.items() if dtype == big_endian), None)
    if code is None:
        raise IdxError(f"{path}: IDX cannot hold {array.dtype}; convert to one of {_TYPES_TEXT}")
    header = struct.pack(f">HBB{array.ndim}I", 0, code, array.ndim, *array.shape)
    elements = np.ascontiguousarray(array, big_endian).reshape(-1).view(np.uint8).data
    with files.replacing(Path(path)) as temporary, temporary.open("wb") as file:
        packed = str(path).endswith(".gz")
        with gzip.GzipFile("", "wb", fileobj=file, mtime=0) if packed else file as output:
            output.write(header)
            output.write(elements)


def _read_header(head: bytes, path: Path) -> tuple[np.dtype[Any], tuple[int, ...], int]:
    """Return element type, shape and length in bytes of the header that `head` begins with."""
    if len(head) < 4:
        raise IdxError(f"{path}: has {len(head)} bytes, but an IDX file has at least 4")
    if head[:2] == b"\x1f\x8b":
        raise IdxError(f"{path}: is compressed by gzip; unpack it with gunzip")
    if head[:2] != b"\0\0":
        raise IdxError(
            f"{path}: starts with {head[:2].hex(' ')}, but an IDX file starts with 00 00; "
            "it is something else, or a web page that was saved in its place"
        )
    code, dimensions = head[2:4]
    if code not in TYPES:
        raise IdxError(f"{path}: element type is {code:02x}, expected one of {_TYPES_TEXT}")
    length = 4 + 4 * dimensions
    if len(head) < length:
        raise IdxError(
            f"{path}: ends after {len(head)} bytes, but a header of {dimensions} dimensions "
            f"has {length}"
        )
    return TYPES[code], struct.unpack_from(f">{dimensions}I", head, 4), length
