"""The catalogue of data sets: where to get each, and what its bytes must hash to."""

import os
from pathlib import Path
from typing import Annotated, Literal, get_args
from urllib.request import url2pathname

from pydantic import AfterValidator, Field

from stages.common import params, paths
from stages.common.errors import StageError

FileName = Literal[
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
]
FILE_NAMES: tuple[FileName, ...] = get_args(FileName)
Line = Annotated[str, Field(pattern=r"\A\P{Cc}+\z")]  # not empty, no control characters


class File(params.Section):
    """What one file must be, once it is unpacked."""

    size: int = Field(gt=0)  # bytes
    sha256: str = Field(pattern=r"\A[0-9a-f]{64}\z")


def _distinct(names: list[str]) -> list[str]:
    if len(set(names)) < len(names):
        raise ValueError("must be distinct")
    return names


class DataSet(params.Section):
    """One entry of the catalogue."""

    title: Line
    licence: str
    credit: str
    classes: Annotated[list[Line], Field(min_length=1), AfterValidator(_distinct)]
    mirrors: list[Line] = Field(min_length=1)
    files: dict[FileName, File]


class _Choice(params.Section, extra="ignore"):
    """The one parameter of fetch that other stages need too."""

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


def folder(mirror: str) -> Path | None:
    """Return the folder that a mirror is, `~` and `$NAME` expanded; None for a web address."""
    if mirror.startswith("file://"):
        return Path(url2pathname(mirror.removeprefix("file://")))
    if "://" in mirror:  # requests knows which it can ask
        return None
    return Path(os.path.expanduser(os.path.expandvars(mirror)))  # noqa: PTH111 (Path's may raise)
