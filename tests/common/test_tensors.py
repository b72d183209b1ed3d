"""Tensors that are damaged, foreign or wrong never reach a stage."""

from pathlib import Path

import numpy as np
import pytest

from stages.common import files, tensors
from stages.common.errors import StageError

CLASSES = ["a", "b", "c"]


def write(folder: Path, images: np.ndarray, labels: np.ndarray) -> None:
    """Write a `train` split and its manifest as preprocess would."""
    np.save(folder / "train_images.npy", images)
    np.save(folder / "train_labels.npy", labels)
    repin(folder)


def repin(folder: Path) -> None:
    files = {path.name: path for path in folder.glob("*.npy")}
    tensors.write_manifest(folder / "manifest.json", CLASSES, files)


def good() -> tuple[np.ndarray, np.ndarray]:
    images = np.arange(5 * 4 * 4, dtype=np.uint8).reshape(5, 4, 4, 1)
    return images, np.eye(3, dtype=np.uint8)[[0, 1, 2, 1, 0]]


def test_good_tensors_load_as_they_were_and_cannot_be_written(tmp_path: Path) -> None:
    write(tmp_path, *good())
    images, labels = tensors.load("train", tmp_path)
    np.testing.assert_array_equal(images, good()[0])
    np.testing.assert_array_equal(labels, good()[1])
    assert isinstance(images, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        images[0] = 0


def test_an_empty_split_is_no_error(tmp_path: Path) -> None:
    write(tmp_path, np.empty((0, 4, 4, 1), np.uint8), np.empty((0, 3), np.uint8))
    images, labels = tensors.load("train", tmp_path)
    assert (len(images), len(labels)) == (0, 0)


IMAGES, LABELS = good()
TWO_ONES = LABELS.copy()
TWO_ONES[1] = [1, 1, 0]


@pytest.mark.parametrize(
    ("images", "labels", "expected"),
    [
        (IMAGES.astype(np.float32), LABELS, "train_images.npy: must be uint8 of shape (N, height"),
        (IMAGES[..., 0], LABELS, "is uint8 of shape (5, 4, 4);"),
        (np.repeat(IMAGES, 3, axis=3), LABELS, "is uint8 of shape (5, 4, 4, 3);"),
        (IMAGES, LABELS[:4], "train_labels.npy: must be uint8 of shape (5, 3), but is uint8 of"),
        (IMAGES, LABELS[:, :2], "must be uint8 of shape (5, 3), but is uint8 of shape (5, 2)"),
        (IMAGES, LABELS.astype(np.int64), "must be uint8 of shape (5, 3), but is int64 of shape"),
        (
            IMAGES,
            np.full((5, 3), [255, 1, 1], np.uint8),
            "train_labels.npy: must be one-hot, but is not; run `make",
        ),
        (IMAGES, TWO_ONES, "train_labels.npy: must be one-hot, but is not; run `make"),
        (IMAGES, LABELS * 0, "train_labels.npy: must be one-hot, but is not; run `make"),
    ],
)
def test_wrong_types_shapes_and_labels(
    images: np.ndarray, labels: np.ndarray, expected: str, tmp_path: Path
) -> None:
    write(tmp_path, images, labels)
    with pytest.raises(StageError) as error:
        tensors.load("train", tmp_path)
    assert expected in str(error.value)
    assert str(tmp_path / "train_") in str(error.value)


@pytest.mark.parametrize(
    ("name", "start"),
    [
        ("train_images.npy", 5 * 4 * 4 - 1),
        ("train_labels.npy", 3 * 4 + 2),
        ("train_images.npy", -128),  # in the header, which must not be read before
    ],
)
def test_damage_is_caught(name: str, start: int, tmp_path: Path) -> None:
    write(tmp_path, *good())
    path = tmp_path / name
    pinned = files.sha256(path)
    content = bytearray(path.read_bytes())
    content[128 + start] ^= 1
    path.write_bytes(content)
    with pytest.raises(StageError) as error:
        tensors.load("train", tmp_path)
    assert str(error.value) == (
        f"{path}: must be SHA-256 {pinned} as in manifest.json, but is {files.sha256(path)}; "
        "run `make verify`, then `dvc repro`"
    )


def test_missing_files(tmp_path: Path) -> None:
    advice = r"not found; run `dvc repro preprocess`"
    with pytest.raises(StageError, match=rf"manifest.json: {advice}"):
        tensors.load("train", tmp_path)
    write(tmp_path, *good())
    with pytest.raises(StageError, match=rf"test_images.npy: {advice}"):
        tensors.load("test", tmp_path)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"classes": "abc"}', "manifest.classes must be a valid list, got 'abc'; "),
        ("{", "manifest.json: not valid YAML in line 1: "),
        ("", "manifest.json: must be a mapping of sections, but is empty; "),
    ],
)
def test_a_manifest_that_is_not_one(tmp_path: Path, content: str, expected: str) -> None:
    write(tmp_path, *good())
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(StageError) as error:
        tensors.load("train", tmp_path)
    assert expected in str(error.value)
    assert str(error.value).endswith("; run `make verify`, then `dvc repro`")


def test_images_are_written_in_pieces_as_numpy_would_write_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensors, "_CHUNK", 2)
    images = np.arange(7 * 3 * 2, dtype=np.uint8).reshape(7, 3, 2)
    chosen = np.array([6, 0, 3, 3, 1])
    tensors.write_images(tmp_path / "a.npy", images, chosen)
    np.save(tmp_path / "b.npy", images[chosen][..., None])
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()
