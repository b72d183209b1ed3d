"""Turn the IDX files of a data set into tensors, with a validation split.

Reads   data/raw/*-ubyte, and the entry of data/datasets.yaml that `fetch.dataset` names
Writes  data/tensors/{train,validation,test}_images.npy   uint8 (N, height, width, 1)
        data/tensors/{train,validation,test}_labels.npy   uint8 (N, classes), one-hot
        data/tensors/manifest.json                        class names, SHA-256 of each tensor
"""

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

# Another file has another hash, and fetch accepts none but those of the catalogue.
WRITE = f"then write them with write_idx and put size and SHA-256 into {paths.CATALOGUE}"


class PreprocessParams(params.Section):
    """The `preprocess` section of params.yaml."""

    validation_size: int = Field(ge=0)
    max_images: int | None = Field(ge=1)
    seed: int = Field(ge=0)


def load_raw(
    prefix: str, classes: int, limit: int | None
) -> tuple[tensors.UInt8, NDArray[np.integer[Any]]]:
    """Map the first `limit` images of `prefix`, `train` or `t10k`, and check all of them.

    Returns images, uint8 (N, height, width), and labels, integers (N,), 0 to `classes` - 1.
    Raises StageError or IdxError that names the file, and says how to convert it.
    """
    images_path = paths.RAW / f"{prefix}-images-idx3-ubyte"
    labels_path = paths.RAW / f"{prefix}-labels-idx1-ubyte"
    images, labels = idx.read_idx(images_path), idx.read_idx(labels_path)
    if images.dtype != np.uint8 or images.ndim != 3:
        raise StageError(
            f"{images_path}: must hold uint8 of shape (N, height, width), but holds "
            f"{tensors.describe(images)}; convert floats 0..1 with (255 * a).round().astype('u1'), "
            "flat images with a.reshape(-1, height, width), colours with a.mean(axis=3)"
            f".astype('u1'), {WRITE}"
        )
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise StageError(
            f"{labels_path}: must hold integers of shape (N,), but holds "
            f"{tensors.describe(labels)}; convert floats with a.astype('u1'), several columns "
            f"with a[:, 0], {WRITE}"
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
                f"from 1, convert them with a - 1, {WRITE}"
            )
    return images[:limit], labels[:limit]


def warn_of_absent(labels: NDArray[np.integer[Any]], classes: list[str]) -> None:
    """Print a warning that names the classes which no label, (N,), stands for."""
    counts = np.bincount(labels, minlength=len(classes))
    absent = [name for name, count in zip(classes, counts, strict=True) if not count]
    if absent:
        names = ", ".join(map(repr, absent[:5])) + (", ..." if len(absent) > 5 else "")
        print(
            f"warning: no training image is of class {names} ({len(absent)} of {len(classes)} "
            f"classes): the network cannot learn it; check that the names in {paths.CATALOGUE} "
            "stand for labels 0, 1, 2, ..., and preprocess.max_images",
            file=sys.stderr,
        )


def hold_out(labels: NDArray[np.integer[Any]], size: int, seed: int) -> NDArray[np.bool_]:
    """Choose `size` labels at random, with the classes in the same proportions as in `labels`.

    Returns a mask of shape (N,). Where the quotas are not whole, the classes with the largest
    remainders get one more (Hamilton's method).
    """
    counts = np.bincount(labels)
    quotas, remainders = np.divmod(counts * size, len(labels))
    quotas[np.argsort(-remainders, kind="stable")[: size - quotas.sum()]] += 1
    random = np.random.default_rng(seed)
    mask = np.zeros(len(labels), dtype=np.bool_)
    for label, quota in enumerate(quotas):
        mask[random.permutation(np.flatnonzero(labels == label))[:quota]] = True
    return mask


def main() -> None:
    """Check the raw files, split them, write the tensors."""
    settings = params.load("preprocess", PreprocessParams)
    dataset = catalogue.selected()
    # Hashed once more: a cache or a remote may have damaged what fetch verified.
    for raw_name, pinned in dataset.files.items():
        if not (paths.RAW / raw_name).exists():
            raise StageError(f"{paths.RAW / raw_name}: not found; run `dvc repro preprocess`")
        catalogue.verify(paths.RAW / raw_name, pinned)
    classes = len(dataset.classes)
    train_images, train_labels = load_raw("train", classes, settings.max_images)
    test_images, test_labels = load_raw("t10k", classes, settings.max_images)
    if train_images.shape[1:] != test_images.shape[1:]:
        raise StageError(
            f"{paths.RAW}: training images have shape {train_images.shape[1:]}, but test images "
            f"{test_images.shape[1:]}; scale one to the other, {WRITE}"
        )
    if settings.validation_size >= len(train_labels):
        raise StageError(
            f"{paths.PARAMS}: preprocess.validation_size must be less than the number of training "
            f"images, {len(train_labels)}, got {settings.validation_size}"
        )
    held_out = hold_out(train_labels, settings.validation_size, settings.seed)
    warn_of_absent(train_labels[~held_out], dataset.classes)
    splits = {
        "train": (train_images, train_labels, ~held_out),
        "validation": (train_images, train_labels, held_out),
        "test": (test_images, test_labels, np.ones(len(test_labels), dtype=np.bool_)),
    }
    one_hot = np.eye(classes, dtype=np.uint8)

    with ExitStack() as outputs:
        written: dict[str, Path] = {}
        for split, (images, labels, mask) in splits.items():
            for name in (f"{split}_images.npy", f"{split}_labels.npy"):
                written[name] = outputs.enter_context(files.replacing(paths.TENSORS / name))
            tensors.write_images(written[f"{split}_images.npy"], images, np.flatnonzero(mask))
            np.save(written[f"{split}_labels.npy"], one_hot[labels[mask]])
        manifest = outputs.enter_context(files.replacing(paths.MANIFEST))
        tensors.write_manifest(manifest, dataset.classes, written)
    print(", ".join(f"{mask.sum():,} {split}" for split, (_, _, mask) in splits.items()), "images")


if __name__ == "__main__":
    errors.run(main)
