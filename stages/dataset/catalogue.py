"""The catalogue of data sets: where each is to be had, and what its bytes must hash to."""

import hashlib
from pathlib import Path
from typing import Annotated, Literal, get_args
from urllib.parse import urlsplit

from pydantic import AfterValidator, ConfigDict, Field

from stages.common import params, paths
from stages.common.errors import StageError

FileName = Literal[
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
]
FILE_NAMES: tuple[FileName, ...] = get_args(FileName)


class File(params.Section):
    """What one file must be, once it is unpacked."""

    size: int = Field(gt=0)  # bytes
    sha256: str = Field(pattern=r"\A[0-9a-f]{64}\z")


def _distinct(names: list[str]) -> list[str]:
    if len(set(names)) < len(names):
        raise ValueError("must be distinct")
    return names


def _mirror(mirror: str) -> str:
    try:
        url = urlsplit(mirror)
        web = url.scheme in ("http", "https") and url.hostname and url.port != 0
        valid = (web and " " not in mirror) or (mirror and not url.scheme)
    except ValueError:
        valid = False
    if not (valid and mirror.isprintable()):
        raise ValueError("must be an http(s) address or a folder")
    return mirror


class DataSet(params.Section):
    """One entry of the catalogue."""

    title: str
    licence: str
    credit: str
    classes: Annotated[
        list[Annotated[str, Field(min_length=1)]], Field(min_length=1), AfterValidator(_distinct)
    ]
    mirrors: list[Annotated[str, AfterValidator(_mirror)]] = Field(min_length=1)
    files: dict[FileName, File]


class _Choice(params.Section):
    """The one parameter of fetch that other stages need too."""

    model_config = ConfigDict(extra="ignore")

    dataset: str


def selected() -> DataSet:
    """Return the entry that `fetch.dataset` in params.yaml chooses.

    Raises StageError that names the file and the key at fault.
    """
    name = params.load("fetch", _Choice).dataset
    entries = params.read_yaml(paths.CATALOGUE)
    if name not in entries:
        known = ", ".join(sorted(map(str, entries)))
        raise StageError(f"{paths.PARAMS}: fetch.dataset must be one of {known}, got {name!r}")
    dataset = params.validate(entries[name], DataSet, paths.CATALOGUE, name)
    missing = [file for file in FILE_NAMES if file not in dataset.files]
    if missing:
        raise StageError(f"{paths.CATALOGUE}: {name}.files.{missing[0]} is missing")
    return dataset


def verify(path: Path, expected: File) -> None:
    """Compare a file with what the catalogue says of it.

    Raises StageError that names the file, both sizes or both hashes, and what to do.
    """
    advice = "delete it, then run `dvc repro --force fetch`"
    with path.open("rb") as file:
        size = file.seek(0, 2)
        if size != expected.size:
            raise StageError(f"{path}: has {size} bytes, not {expected.size}; {advice}")
        file.seek(0)
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected.sha256:
        raise StageError(f"{path}: SHA-256 is {found}, not {expected.sha256}; {advice}")
