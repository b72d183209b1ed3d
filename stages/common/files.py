"""Output files that are either whole or absent, and the hashes of files."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path; rename it to `path` on success, delete it on failure.

    It is `.tmp-NAME` beside `path`: the next run writes over what a killed one left. Several
    outputs that belong together go into one `contextlib.ExitStack`: then none of them is replaced
    before all are written. Under `dvc repro` the old files are gone before that: DVC removes the
    outputs of a stage that it is about to run. Raises OSError, with the name of the file or of its
    folder, if it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{path.name}")
    try:
        temporary.unlink(missing_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:  # Python does not say where a disk is full
        error.filename = error.filename or str(path.parent)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write figures for people and `dvc metrics`: floats to six decimals, keys in their order."""
    rounded = json.loads(json.dumps(content), parse_float=lambda digits: round(float(digits), 6))
    path.write_text(json.dumps(rounded, indent=2) + "\n", encoding="utf-8", newline="\n")


def sha256(path: Path) -> str:
    """Hash a file, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
