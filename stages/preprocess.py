"""Turn the IDX files of a data set into tensors, with a validation split.

Reads   data/raw/*-ubyte, and the entry of data/datasets.yaml that `fetch.dataset` names
Writes  data/tensors/{train,validation,test}_images.npy   uint8 (N, height, width, 1)
        data/tensors/{train,validation,test}_labels.npy   uint8 (N, classes), one-hot
        data/tensors/manifest.json                        class names, SHA-256 of each tensor
"""

from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from stages.common import errors, files, params, paths
from stages.common.errors import StageError
from stages.dataset import catalogue, idx, tensors


class PreprocessParams(params.Section):
    """The `preprocess` section of params.yaml."""

    validation_size: int = Field(ge=0)
    max_images: int | None = Field(ge=1)
    seed: int = Field(ge=0)


def load_raw(prefix: str, classes: int) -> tuple[tensors.UInt8, tensors.UInt8]:
    """Map the IDX files of `prefix`, `train` or `t10k`, checked against each other.

    Returns images, uint8 (N, height, width), and labels, uint8 (N,).
    Raises StageError or IdxError that names the file.
    """
    images_path = paths.RAW / f"{prefix}-images-idx3-ubyte"
    labels_path = paths.RAW / f"{prefix}-labels-idx1-ubyte"
    images, labels = idx.read_idx(images_path), idx.read_idx(labels_path)
    check_pair(images, labels, classes, images_path, labels_path)
    return images, labels


def check_pair(
    images: NDArray[np.generic],
    labels: NDArray[np.generic],
    classes: int,
    images_path: Path,
    labels_path: Path,
) -> None:
    """Raise StageError unless `images` and `labels` are a data set of so many classes."""
    for array, path, dimensions in ((images, images_path, 3), (labels, labels_path, 1)):
        if array.dtype != np.uint8 or array.ndim != dimensions:
            raise StageError(
                f"{path}: must hold uint8 with {dimensions} dimension(s), "
                f"but holds {array.dtype} with {array.ndim}; check {paths.CATALOGUE}"
            )
    if len(images) != len(labels):
        raise StageError(
            f"{labels_path}: holds {len(labels)} labels for the {len(images)} images of "
            f"{images_path}; check {paths.CATALOGUE}"
        )
    if images.size == 0:
        raise StageError(f"{images_path}: holds no images; check {paths.CATALOGUE}")
    if labels.max() >= classes:
        raise StageError(
            f"{labels_path}: holds label {labels.max()}, but {paths.CATALOGUE} names {classes} "
            f"classes, 0 to {classes - 1}; add the missing names there"
        )


def hold_out(labels: tensors.UInt8, size: int, seed: int) -> NDArray[np.bool_]:
    """Choose `size` labels at random with the classes in the proportions of `labels`.

    Returns a mask of shape (N,). Places left over by rounding down go to the classes with the
    largest remainders (Hamilton's method).
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
    p = params.load("preprocess", PreprocessParams)
    dataset = catalogue.selected()
    # Hashed once more: a cache or a remote may have damaged what fetch verified.
    for raw_name, pinned in dataset.files.items():
        catalogue.verify(paths.RAW / raw_name, pinned)
    classes = len(dataset.classes)
    train_images, train_labels = (array[: p.max_images] for array in load_raw("train", classes))
    test_images, test_labels = (array[: p.max_images] for array in load_raw("t10k", classes))
    if p.validation_size >= len(train_labels):
        raise StageError(
            f"{paths.PARAMS}: preprocess.validation_size must be less than the number of training "
            f"images, {len(train_labels)}, got {p.validation_size}"
        )
    held_out = hold_out(train_labels, p.validation_size, p.seed)
    everything = np.ones(len(test_labels), dtype=np.bool_)
    splits = {
        "train": (train_images, train_labels, ~held_out),
        "validation": (train_images, train_labels, held_out),
        "test": (test_images, test_labels, everything),
    }
    one_hot = np.eye(classes, dtype=np.uint8)

    with ExitStack() as outputs:
        written: dict[str, Path] = {}
        for split, (images, labels, mask) in splits.items():
            for name in (f"{split}_images.npy", f"{split}_labels.npy"):
                written[name] = outputs.enter_context(files.replacing(paths.TENSORS / name))
            tensors.write_images(written[f"{split}_images.npy"], images, np.flatnonzero(mask))
            with written[f"{split}_labels.npy"].open("wb") as file:
                np.save(file, one_hot[labels[mask]])
        manifest = outputs.enter_context(files.replacing(paths.MANIFEST))
        tensors.write_manifest(manifest, dataset.classes, written)
    print(", ".join(f"{mask.sum():,} {split}" for split, (_, _, mask) in splits.items()), "images")


if __name__ == "__main__":
    errors.run(main)
