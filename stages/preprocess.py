"""Turn the IDX files of a data set into tensors, with a validation split.

Reads   data/raw/*-ubyte, and the entry of data/datasets.yaml that `fetch.dataset` names
Writes  data/tensors/{train,validation,test}_images.npy   uint8 (N, height, width, 1)
        data/tensors/{train,validation,test}_labels.npy   uint8 (N, classes), one-hot
        data/tensors/manifest.json                        class names, SHA-256 of each tensor
"""

import math
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from stages.common import errors, files, params, paths, tensors
from stages.common.errors import StageError
from stages.dataset import catalogue, idx

CONVERT = "convert them as docs/data.md shows"


class PreprocessParams(params.Section):
    """The `preprocess` section of params.yaml."""

    validation_size: int = Field(ge=0)
    max_images: int = Field(ge=0)
    seed: int = Field(ge=0)


def verify_raw(dataset: catalogue.DataSet) -> None:
    """Hash the raw files once more: a cache or a remote may have damaged what fetch verified.

    Raises StageError that names the file, both hashes, and what to do.
    """
    for name, expected in dataset.files.items():
        path = paths.RAW / name
        if not path.exists():
            raise StageError(f"{path}: not found; run `dvc repro preprocess`")
        if (found := files.sha256(path)) != expected.sha256:
            raise StageError(
                f"{path}: SHA-256 is {found}, not {expected.sha256}; "
                "delete it, then run `dvc repro --force fetch`"
            )


def load_raw(prefix: str, classes: int) -> tuple[tensors.UInt8, NDArray[np.integer[Any]]]:
    """Map the images of `prefix`, `train` or `t10k`, and check them.

    Returns images, uint8 (N, height, width), and labels, integers (N,), 0 to `classes` - 1.
    Raises StageError or IdxError that names the file, and says how to convert it.
    """
    images_path = paths.RAW / f"{prefix}-images-idx3-ubyte"
    labels_path = paths.RAW / f"{prefix}-labels-idx1-ubyte"
    images, labels = idx.read_idx(images_path), idx.read_idx(labels_path)
    if images.dtype != np.uint8 or images.ndim != 3:
        raise StageError(
            f"{images_path}: must hold uint8 of shape (N, height, width), but holds "
            f"{tensors.describe(images)}; {CONVERT}"
        )
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise StageError(
            f"{labels_path}: must hold integers of shape (N,), but holds "
            f"{tensors.describe(labels)}; {CONVERT}"
        )
    if len(images) != len(labels):
        raise StageError(
            f"{labels_path}: holds {len(labels)} labels for the {len(images)} images of "
            f"{images_path}; check {paths.CATALOGUE}"
        )
    if images.size == 0:
        raise StageError(f"{images_path}: holds no images; check {paths.CATALOGUE}")
    for label in (int(labels.min()), int(labels.max())):
        if not 0 <= label < classes:
            raise StageError(
                f"{labels_path}: holds label {label}, but {paths.CATALOGUE} names {classes} "
                f"classes, 0 to {classes - 1}; add the missing names there or, if the labels count "
                f"from 1, {CONVERT}"
            )
    return images, labels


def warn_of_absent(labels: NDArray[np.integer[Any]], classes: list[str]) -> None:
    """Print a warning that names the classes which no label, (N,), stands for."""
    counts = np.bincount(labels, minlength=len(classes))
    absent = [name for name, count in zip(classes, counts, strict=True) if not count]
    if absent:
        print(
            f"warning: no training image is of class {', '.join(map(repr, absent[:5]))} "
            f"({len(absent)} of {len(classes)} classes): the network cannot learn it; check that "
            f"the names in {paths.CATALOGUE} stand for labels 0, 1, 2, ..., and "
            "preprocess.max_images",
            file=sys.stderr,
        )


def sample(labels: NDArray[np.integer[Any]], size: int, seed: int) -> NDArray[np.int64]:
    """Choose `size` labels at random, with the classes in the same proportions as in `labels`.

    Returns their indices, ascending. Where the quotas are not whole, the classes with the largest
    remainders get one more (Hamilton's method).
    """
    counts = np.bincount(labels)
    quotas, remainders = np.divmod(counts * size, len(labels))
    quotas[np.argsort(-remainders, kind="stable")[: size - quotas.sum()]] += 1
    random = np.random.default_rng(seed)
    chosen = [
        random.permutation(np.flatnonzero(labels == label))[:quota]
        for label, quota in enumerate(quotas)
    ]
    return np.sort(np.concatenate(chosen))


def main() -> None:
    """Check the raw files, split them, write the tensors."""
    settings = params.load("preprocess", PreprocessParams)
    dataset = catalogue.selected()
    verify_raw(dataset)
    classes = len(dataset.classes)
    images, labels = load_raw("train", classes)
    test_images, test_labels = load_raw("t10k", classes)
    if images.shape[1:] != test_images.shape[1:]:
        raise StageError(
            f"{paths.RAW}: training images have shape {images.shape[1:]}, but test images "
            f"{test_images.shape[1:]}; scale one to the other and enter the new files into "
            f"{paths.CATALOGUE}"
        )
    if settings.validation_size >= len(labels):
        raise StageError(
            f"{paths.PARAMS}: preprocess.validation_size must be less than the number of training "
            f"images, {len(labels)}, got {settings.validation_size}"
        )
    used, tested = (
        sample(all_of, min(settings.max_images or len(all_of), len(all_of)), settings.seed)
        for all_of in (labels, test_labels)
    )
    # The same share of fewer images, but one at least, and one left to train on.
    share = math.ceil(settings.validation_size * len(used) / len(labels))
    held_out = used[sample(labels[used], min(share, len(used) - 1), settings.seed)]
    trained = np.setdiff1d(used, held_out)
    warn_of_absent(labels[trained], dataset.classes)
    splits = {
        "train": (images, labels, trained),
        "validation": (images, labels, held_out),
        "test": (test_images, test_labels, tested),
    }
    one_hot = np.eye(classes, dtype=np.uint8)

    with ExitStack() as outputs:
        written: dict[str, Path] = {}
        for split, (images, labels, chosen) in splits.items():
            for name in (f"{split}_images.npy", f"{split}_labels.npy"):
                written[name] = outputs.enter_context(files.replacing(paths.TENSORS / name))
            tensors.write_images(written[f"{split}_images.npy"], images, chosen)
            np.save(written[f"{split}_labels.npy"], one_hot[labels[chosen]])
        manifest = outputs.enter_context(files.replacing(paths.MANIFEST))
        tensors.write_manifest(manifest, dataset.classes, written)
    print(
        ", ".join(f"{len(chosen):,} {split}" for split, (_, _, chosen) in splits.items()), "images"
    )


if __name__ == "__main__":
    errors.run(main)
