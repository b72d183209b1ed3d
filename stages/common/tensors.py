"""The tensors in data/tensors: .npy files, the manifest that pins them, and their checks."""

import json
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from stages.common import files, params, paths
from stages.common.errors import StageError

UInt8: TypeAlias = NDArray[np.uint8]

_REMEDY = "run `make verify`, then `dvc repro`"
_CHUNK = 4096  # images written at once: a few MB


class Manifest(params.Section):
    """What preprocess wrote: the names of the classes, and the SHA-256 of each tensor file."""

    classes: list[str]
    sha256: dict[str, str]


def load(split: str, folder: Path = paths.TENSORS) -> tuple[UInt8, UInt8]:
    """Map one split's tensors into memory, read-only, checked against the manifest.

    Returns images, uint8 (N, height, width, 1), and one-hot labels, uint8 (N, classes).
    Raises StageError that names the file if one is missing, damaged or not what it should be.
    DVC does not check this: it trusts its cache.
    """
    manifest = read_manifest(folder)
    images_path, labels_path = (folder / f"{split}_{kind}.npy" for kind in ("images", "labels"))
    images, labels = _map(images_path, manifest), _map(labels_path, manifest)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 1:
        raise _must_be(images_path, "uint8 of shape (N, height, width, 1)", describe(images))
    count, classes = len(images), len(manifest.classes)
    if labels.dtype != np.uint8 or labels.shape != (count, classes):
        raise _must_be(labels_path, f"uint8 of shape ({count}, {classes})", describe(labels))
    # Whole numbers that are not negative and add up to 1: a single 1, and zeros.
    if (labels.sum(axis=1, dtype=np.int64) != 1).any():
        raise _must_be(labels_path, "one-hot", "not")
    return images, labels


def read_manifest(folder: Path = paths.TENSORS) -> Manifest:
    """Read the manifest; raise StageError if it is missing or damaged."""
    path = folder / paths.MANIFEST.name
    if not path.exists():
        raise _not_found(path)
    try:
        return params.validate(params.read_yaml(path), Manifest, path, "manifest")
    except StageError as error:
        raise StageError(f"{error}; {_REMEDY}") from None


def write_manifest(path: Path, classes: list[str], written: dict[str, Path]) -> None:
    """Write the manifest of the tensor files, given by name and by the path where each is now."""
    hashes = {name: files.sha256(file) for name, file in written.items()}
    content = json.dumps({"classes": classes, "sha256": hashes}, indent=2)
    path.write_text(content + "\n", encoding="utf-8", newline="\n")


def write_images(path: Path, images: UInt8, chosen: NDArray[np.int64]) -> None:
    """Write `images[chosen]`, (N, height, width), as a .npy of shape (n, height, width, 1).

    A few thousand images are in memory at a time, whatever the size of the file.
    """
    with path.open("wb") as file:
        shape = (len(chosen), *images.shape[1:], 1)
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, len(chosen), _CHUNK):
            file.write(images[chosen[start : start + _CHUNK]].tobytes())


def describe(array: NDArray[Any]) -> str:
    """Say what an array is, for messages."""
    return f"{array.dtype.name} of shape {array.shape}"


def _map(path: Path, manifest: Manifest) -> UInt8:
    if not path.exists():
        raise _not_found(path)
    found, pinned = files.sha256(path), manifest.sha256.get(path.name)
    if found != pinned:
        raise _must_be(path, f"SHA-256 {pinned} as in {paths.MANIFEST.name}", found)
    array: UInt8 = np.load(path, mmap_mode="r")
    return array


def _not_found(path: Path) -> StageError:
    return StageError(f"{path}: not found; run `dvc repro preprocess`")


def _must_be(path: Path, expected: str, found: str) -> StageError:
    return StageError(f"{path}: must be {expected}, but is {found}; {_REMEDY}")
