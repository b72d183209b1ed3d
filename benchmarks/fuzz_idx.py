"""Read mutated IDX files: each gives the right array or an IdxError, in the memory promised.

    python -m benchmarks.fuzz_idx --runs 1000000

Mutates the headers and bodies of valid files of every type and of 0 to 4 dimensions, and
compresses some. Stops at the first file that breaks the promise, and prints it. A million files
take some minutes; the same `--seed` gives the same files.
"""

import argparse
import gzip
import math
import random
import struct
import tempfile
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from tqdm import tqdm

from stages.dataset import idx

WIDTHS = {0x08: 1, 0x09: 1, 0x0B: 2, 0x0C: 4, 0x0D: 4, 0x0E: 8}  # bytes an element, by type
LENGTHS = (0, 1, 2, 3, 255, 256, 65536, 2**31 - 1, 2**31, 2**32 - 1)
BOUND = 1 << 20  # bytes of memory beyond the file's length


def valid(rng: random.Random) -> bytearray:
    """Return a valid IDX file of at most some thousand bytes."""
    code = rng.choice(list(WIDTHS))
    shape = [rng.randrange(5) for _ in range(rng.randrange(5))]
    elements = math.prod(shape)
    header = struct.pack(f">HBB{len(shape)}I", 0, code, len(shape), *shape)
    return bytearray(header + rng.randbytes(elements * WIDTHS[code]))


def _flip(content: bytearray, rng: random.Random) -> None:
    if content:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)


def _overwrite(content: bytearray, rng: random.Random) -> None:
    if content:
        content[rng.randrange(len(content))] = rng.randrange(256)


def _cut(content: bytearray, rng: random.Random) -> None:
    del content[rng.randrange(len(content) + 1) :]


def _extend(content: bytearray, rng: random.Random) -> None:
    content += rng.randbytes(rng.randrange(1, 20))


def _delete(content: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(content) + 1)
    del content[start : start + rng.randrange(1, 9)]


def _retype(content: bytearray, rng: random.Random) -> None:
    if len(content) > 2:
        content[2] = rng.choice([*WIDTHS, 0x0A, 0xFF])


def _redimension(content: bytearray, rng: random.Random) -> None:
    if len(content) > 3:
        content[3] = rng.choice([0, 1, 2, 3, 4, 5, 32, 63, 64, 65, 255])


def _resize(content: bytearray, rng: random.Random) -> None:
    """Claim another length for a dimension."""
    if len(content) >= 8:
        at = 4 * rng.randrange(1, min(len(content) // 4, 6))
        content[at : at + 4] = struct.pack(">I", rng.choice(LENGTHS))


def _compress(content: bytearray, rng: random.Random) -> None:
    content[:] = gzip.compress(content, rng.randrange(10), mtime=0)


MUTATIONS: tuple[Callable[[bytearray, random.Random], None], ...] = (
    _flip,
    _overwrite,
    _cut,
    _extend,
    _delete,
    _retype,
    _redimension,
    _resize,
    _compress,
)


def _mutate(content: bytearray, rng: random.Random) -> None:
    for _ in range(rng.randrange(4)):
        rng.choice(MUTATIONS)(content, rng)


def agrees(array: NDArray[Any], content: bytes) -> bool:
    """Compare an array with the bytes that it was read from, which are decoded here again."""
    zeros, code, dimensions = struct.unpack_from(">HBB", content)
    return (
        zeros == 0
        and array.shape == struct.unpack_from(f">{dimensions}I", content, 4)
        and array.itemsize == WIDTHS[code]
        and array.astype(array.dtype.newbyteorder(">"), casting="equiv").tobytes()
        == content[4 + 4 * dimensions :]
    )


def run(path: Path, rng: random.Random) -> str:
    """Read one mutated file; return whether it was read or refused."""
    content = valid(rng)
    _mutate(content, rng)
    path.write_bytes(content)
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    try:
        array = idx.read_idx(path)
    except idx.IdxError:
        array = None
    except BaseException as error:
        raise SystemExit(f"{type(error).__name__} from {content.hex()}") from error
    taken = tracemalloc.get_traced_memory()[1] - before
    if taken > len(content) + BOUND:
        raise SystemExit(f"{taken} bytes of memory for {content.hex()}")
    if array is None:
        return "refused"
    if not agrees(array, bytes(content)):
        raise SystemExit(f"wrong array from {content.hex()}")
    return "read"


def main() -> None:
    """Read as many files as asked, and print the outcomes."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    outcomes: Counter[str] = Counter()
    memory = Path("/dev/shm")  # a million files are hard on a disk
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        tracemalloc.start()
        for _ in tqdm(range(arguments.runs), desc="fuzz", disable=None):
            outcomes[run(Path(folder) / "file", rng)] += 1
    for outcome, count in sorted(outcomes.items()):
        print(f"{count:>9,} {outcome}")
    print(f"{outcomes.total():>9,} files: nothing but IdxError, no memory above the bound")


if __name__ == "__main__":
    main()
