"""Output files that are either whole or absent."""

import glob
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path; rename it to `path` on success, delete it on failure.

    The temporary path has the same file name, in a temporary folder beside `path`. Nothing is
    there yet: whoever creates the file gives it the mode that the umask asks for. Several outputs
    that belong together go into one `contextlib.ExitStack`: then none of them is replaced before
    all are written. Raises OSError if the folder of `path` cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path)
    prefix = f".{path.name}.{os.getpid()}."
    with TemporaryDirectory(
        prefix=prefix, suffix=".tmp", dir=path.parent, ignore_cleanup_errors=True
    ) as folder:
        temporary = Path(folder, path.name)
        yield temporary
        os.replace(temporary, path)


def _remove_leftovers(path: Path) -> None:
    """Remove the temporary folders of processes that were killed, told by the process id."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.*.tmp"):
        try:
            os.kill(int(leftover.name.split(".")[-3]), 0)
        except ProcessLookupError:
            shutil.rmtree(leftover, ignore_errors=True)
        except (OSError, OverflowError, ValueError):
            pass  # another user's process, or no folder of ours


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write figures for people and `dvc metrics`: floats to six decimals, keys in their order."""
    rounded = json.loads(json.dumps(content), parse_float=lambda digits: round(float(digits), 6))
    path.write_text(json.dumps(rounded, indent=2) + "\n", encoding="utf-8", newline="\n")
