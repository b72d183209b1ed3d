"""Output files that are either whole or absent."""

import fcntl
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` on success, delete it on failure.

    Several outputs that belong together go into one `contextlib.ExitStack`: then none of them is
    replaced before all are written. The file gets the mode that the umask asks for. What a killed
    run left behind is removed first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    with _claim(temporary):
        try:
            yield temporary
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def _claim(temporary: Path) -> BinaryIO:
    """Create a file and lock it while we live: so another run can tell it from a leftover."""
    while True:
        file = temporary.open("xb")
        fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:
            return file
        file.close()  # another run was quicker, and took it for a leftover


def _remove_leftovers(path: Path) -> None:
    for leftover in path.parent.glob(f".{path.name}.*.tmp"):
        # Gone by now, in use, or not ours: none of these is for us to remove.
        with (
            suppress(FileNotFoundError, BlockingIOError, PermissionError),
            leftover.open("r+b") as file,
        ):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            leftover.unlink(missing_ok=True)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write figures for people and `dvc metrics`: floats to six decimals, keys in their order."""
    rounded = json.loads(json.dumps(content), parse_float=lambda digits: round(float(digits), 6))
    path.write_text(json.dumps(rounded, indent=2) + "\n", encoding="utf-8", newline="\n")
