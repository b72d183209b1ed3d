"""IDX files: the format that MNIST and its kin are published in, plain or in gzip.

Bytes 0 and 1 are zero, byte 2 is the type, byte 3 the number of dimensions; then one big-endian
uint32 a dimension, then the elements, row-major and big-endian.
"""

import gzip
import math
import stat
import struct
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

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
_MAX_DIMENSIONS = 64  # of a NumPy array; the format has room for 255
_CHUNK = 1 << 16  # bytes; gzip takes four times as much


class IdxError(StageError, ValueError):
    """A file that is not valid IDX, or an array that IDX cannot hold."""


class _Header(NamedTuple):
    dtype: np.dtype[Any]  # big-endian, as in the file
    shape: tuple[int, ...]
    length: int  # bytes in front of the elements
    total: int  # bytes of the whole file, when it is what its header claims


def read_idx(path: str | Path) -> NDArray[Any]:
    """Read a plain or gzip-compressed IDX file.

    Returns an array of the file's type and shape, in the machine's byte order.
    Raises IdxError that names the file, what was found and what was expected. A malformed file
    takes no more memory than it is long, plus 1 MB.
    """
    with _opened(Path(path)) as file:
        header = _read_header(file, path)
        _check_total(_total(file, header), header, path)
        array = np.empty(header.shape, header.dtype)
        file.seek(header.length)
        if _fill(array, file) != array.nbytes:
            raise IdxError(f"{path}: changed while it was read; run it again")
    if not array.dtype.isnative:
        array = array.byteswap(inplace=True).view(array.dtype.newbyteorder())
    return array


def map_idx(path: str | Path) -> NDArray[Any]:
    """Map a plain IDX file into memory, read-only, so that it may be larger than memory.

    Returns an array of the file's type and shape, in the file's byte order (big-endian).
    Raises IdxError as `read_idx` does, and for a gzip-compressed file.
    """
    with _opened(Path(path)) as file:
        if isinstance(file, gzip.GzipFile):
            raise IdxError(f"{path}: is compressed by gzip; unpack it to map it into memory")
        header = _read_header(file, path)
        _check_total(_total(file, header), header, path)
        return np.memmap(file, header.dtype, "r", header.length, header.shape)


def write_idx(path: str | Path, array: NDArray[Any]) -> None:
    """Write an array as IDX; compressed by gzip, with the same bytes each time, for `*.gz`.

    Raises IdxError for a type or a length that the format does not have.
    """
    big_endian = array.dtype.newbyteorder(">")
    code = next((code for code, dtype in TYPES.items() if dtype == big_endian), None)
    if code is None:
        raise IdxError(f"{path}: IDX cannot hold {array.dtype}; convert to one of {_TYPES_TEXT}")
    if max(array.shape, default=0) > 0xFFFFFFFF:
        raise IdxError(f"{path}: IDX holds at most 2^32-1 along a dimension, got {array.shape}")
    with files.replacing(Path(path)) as temporary, temporary.open("wb") as raw:
        compressed = str(path).endswith(".gz")
        file = gzip.GzipFile("", "wb", fileobj=raw, mtime=0) if compressed else raw
        with file:
            file.write(struct.pack(f">HBB{array.ndim}I", 0, code, array.ndim, *array.shape))
            for part in np.nditer(
                array,
                ["external_loop", "buffered", "zerosize_ok"],  # no second copy of a large array
                op_dtypes=[big_endian],
                order="C",
                casting="equiv",
                buffersize=_CHUNK // big_endian.itemsize,
            ):
                file.write(cast("NDArray[Any]", part).tobytes())


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """Open a file as its first bytes demand: names are not to be relied on."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise IdxError(f"{path}: is not a regular file; give the path of an IDX file")
    with path.open("rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        if not compressed:
            yield file
            return
        try:
            with gzip.GzipFile(fileobj=file) as unpacked:
                yield cast(BinaryIO, unpacked)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise IdxError(f"{path}: damaged gzip: {error}; fetch it again") from None


def _read_header(file: BinaryIO, path: str | Path) -> _Header:
    start = file.read(4)
    if len(start) < 4:
        raise IdxError(f"{path}: has {len(start)} bytes, an IDX file has at least 4")
    if start[:2] != b"\0\0":
        raise IdxError(f"{path}: starts with {start[:2].hex(' ')}, an IDX file with 00 00")
    code, dimensions = start[2:]
    if code not in TYPES:
        raise IdxError(f"{path}: element type is {code:02x}, expected one of {_TYPES_TEXT}")
    if dimensions > _MAX_DIMENSIONS:
        raise IdxError(f"{path}: has {dimensions} dimensions, NumPy at most {_MAX_DIMENSIONS}")
    lengths = file.read(4 * dimensions)
    if len(lengths) < 4 * dimensions:
        raise IdxError(
            f"{path}: ends after {4 + len(lengths)} bytes, "
            f"a header of {dimensions} dimensions has {4 + 4 * dimensions}"
        )
    shape = struct.unpack(f">{dimensions}I", lengths)
    dtype = TYPES[code]
    # NumPy multiplies the lengths that are not zero even for an array without elements.
    if math.prod(filter(None, shape)) * dtype.itemsize > sys.maxsize and 0 in shape:
        raise IdxError(f"{path}: has shape {shape}, more than NumPy can index")
    length = 4 + 4 * dimensions
    return _Header(dtype, shape, length, length + math.prod(shape) * dtype.itemsize)


def _total(file: BinaryIO, header: _Header) -> int:
    """Count the file's bytes, from just after its header, without keeping them."""
    if not isinstance(file, gzip.GzipFile):
        return file.seek(0, 2)
    total = header.length
    # One byte too many settles it; a gzip bomb is not unpacked further.
    while chunk := file.read(min(_CHUNK, header.total + 1 - total)):
        total += len(chunk)
    return total


def _check_total(total: int, header: _Header, path: str | Path) -> None:
    if total != header.total:
        shape = " x ".join(map(str, header.shape)) or "one"
        found = "more" if total > header.total else f"{total}"
        raise IdxError(
            f"{path}: has {found} bytes, its header ({shape} of {header.dtype.name}) "
            f"claims {header.total}; fetch it again"
        )


def _fill(array: NDArray[Any], file: BinaryIO) -> int:
    """Read the elements of `array` from `file`; return the number of bytes there were."""
    data = array.reshape(-1).view(np.uint8).data
    filled = 0
    while count := file.readinto(data[filled : filled + _CHUNK]):  # type: ignore[attr-defined]
        filled += count
    return filled
