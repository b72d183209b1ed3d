"""Output files that are either whole or absent."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path; rename it to `path` on success, delete it on failure.

    The temporary path has the same file name, in a temporary folder beside `path`. Nothing is
    there yet, so the file that is created gets the mode that the umask asks for. Several outputs
    that belong together go into one `contextlib.ExitStack`: then none of them is replaced before
    all are written. Under `dvc repro` the old files are gone before that: DVC removes the outputs
    of a stage that it is about to run. Raises OSError, with the name of the file or of its
    folder, if it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path)
    prefix = f".{path.name}.{os.getpid()}."
    with TemporaryDirectory(
        prefix=prefix, suffix=".tmp", dir=path.parent, ignore_cleanup_errors=True
    ) as folder:
        temporary = Path(folder, path.name)
        try:
            yield temporary
            os.replace(temporary, path)
        except OSError as error:  # Python does not say where a disk is full
            error.filename = error.filename or str(path.parent)
            raise


def _remove_leftovers(path: Path) -> None:
    """Remove the temporary folders of processes that were killed, told by the process id."""
    pattern = re.compile(rf"\.{re.escape(path.name)}\.(\d+)\.\w+\.tmp")
    for leftover in path.parent.iterdir():
        if (found := pattern.fullmatch(leftover.name)) and int(found[1]) not in _others():
            shutil.rmtree(leftover, ignore_errors=True)


def _others() -> set[int]:
    """Return the ids of all other processes; in a container every run may have the same."""
    processes = psutil.process_iter(["status"])
    alive = {process.pid for process in processes if process.info["status"] != "zombie"}
    return alive - {os.getpid()}


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write figures for people and `dvc metrics`: floats to six decimals, keys in their order."""
    rounded = json.loads(json.dumps(content), parse_float=lambda digits: round(float(digits), 6))
    path.write_text(json.dumps(rounded, indent=2) + "\n", encoding="utf-8", newline="\n")
