"""The split is stratified and seeded, and raw files are what the catalogue pins."""

import hashlib
import json

import numpy as np
import pytest
import yaml
from conftest import CLASSES, Project, idx_bytes, small_images

from stages import preprocess

RAW = "data/raw"


@pytest.mark.parametrize(("size", "seed"), [(0, 0), (1, 0), (100, 0), (997, 3), (999, 1)])
def test_the_split_keeps_the_proportions_of_the_classes(size: int, seed: int) -> None:
    labels = np.random.default_rng(7).choice(4, 1000, p=[0.6, 0.3, 0.09, 0.01]).astype(np.uint8)
    mask = preprocess.hold_out(labels, size, seed)
    assert mask.sum() == size
    exact = np.bincount(labels, minlength=4) * size / len(labels)
    assert (abs(np.bincount(labels[mask], minlength=4) - exact) < 1).all()


def test_the_split_is_a_random_choice_that_the_seed_repeats() -> None:
    labels = np.repeat(np.arange(5, dtype=np.uint8), 200)
    one, again, other = (preprocess.hold_out(labels, 250, seed) for seed in (1, 1, 2))
    assert (one == again).all()
    assert (one != other).sum() > 100
    # Not a block: each half of the images of a class gives about half of its share.
    assert 80 < one.reshape(5, 2, 100)[:, 0].sum() < 170


def raw_arrays() -> dict[str, np.ndarray]:
    return {
        **dict(zip(("train-images", "train-labels"), small_images(150, 150), strict=True)),
        **dict(zip(("t10k-images", "t10k-labels"), small_images(60, 60), strict=True)),
    }


def write_raw(project: Project, **changes: np.ndarray) -> None:
    """Write the small data set's raw files, some changed, and pin them in the catalogue."""
    folder = project.path / RAW
    folder.mkdir(parents=True, exist_ok=True)
    path = project.path / "data/datasets.yaml"
    catalogue = yaml.safe_load(path.read_text())
    arrays = raw_arrays() | {name.replace("_", "-"): new for name, new in changes.items()}
    for name, array in arrays.items():
        name += "-idx3-ubyte" if name.endswith("images") else "-idx1-ubyte"
        content = idx_bytes(array)
        (folder / name).write_bytes(content)
        catalogue["small"]["files"][name] = {
            "size": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
        }
    path.write_text(yaml.safe_dump(catalogue))


def test_tensors_hold_the_raw_images_and_labels(project: Project) -> None:
    write_raw(project)
    assert project.stage("preprocess") == "120 train, 30 validation, 60 test images\n"
    folder = project.path / "data/tensors"
    loaded = {path.stem: np.load(path) for path in folder.glob("*.npy")}
    raw = raw_arrays()
    np.testing.assert_array_equal(loaded["test_images"][..., 0], raw["t10k-images"])
    np.testing.assert_array_equal(loaded["test_labels"].argmax(axis=1), raw["t10k-labels"])
    assert {array.dtype for array in loaded.values()} == {np.dtype(np.uint8)}
    assert loaded["test_labels"].shape == (60, 3)
    # Training and validation images are the training files, each image once, with its own label.
    pairs = {
        (image.tobytes(), int(label))
        for image, label in zip(raw["train-images"], raw["train-labels"], strict=True)
    }
    found = [
        (image.tobytes(), int(label.argmax()))
        for split in ("train", "validation")
        for image, label in zip(loaded[f"{split}_images"], loaded[f"{split}_labels"], strict=True)
    ]
    assert len(found) == 150
    assert set(found) == pairs
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["classes"] == CLASSES
    assert manifest["sha256"] == {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.npy")
    }


def test_no_validation_and_a_limited_number_of_images(project: Project) -> None:
    write_raw(project)
    project.set_params({"preprocess": {"validation_size": 0, "max_images": 40}})
    assert project.stage("preprocess") == "40 train, 0 validation, 40 test images\n"
    first = np.load(project.path / "data/tensors/train_images.npy")
    np.testing.assert_array_equal(first[..., 0], raw_arrays()["train-images"][:40])


TRAIN = small_images(150, 150)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"train_labels": TRAIN[1][:149]}, "holds 149 labels for the 150 images of data/raw/train"),
        ({"train_images": TRAIN[0][:, 0]}, "must hold uint8 with 3 dimension(s), but holds uint8"),
        ({"train_labels": TRAIN[1][:, None]}, "must hold uint8 with 1 dimension(s), but holds"),
        ({"train_labels": TRAIN[1] + 1}, "holds label 3, but data/datasets.yaml names 3 classes"),
        (
            {"train_images": TRAIN[0][:0], "train_labels": TRAIN[1][:0]},
            "train-images-idx3-ubyte: holds no images",
        ),
    ],
)
def test_images_and_labels_must_fit(
    changes: dict[str, np.ndarray], expected: str, project: Project
) -> None:
    write_raw(project, **changes)
    printed = project.stage("preprocess", status=1)
    assert printed.startswith("error: data/raw/train-")
    assert expected in printed
    assert printed.count("\n") == 1
    assert not (project.path / "data/tensors").exists()


def test_raw_files_that_are_not_what_the_catalogue_pins(project: Project) -> None:
    write_raw(project)
    path = project.path / RAW / "train-images-idx3-ubyte"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    printed = project.stage("preprocess", status=1)
    assert printed.startswith(f"error: {RAW}/train-images-idx3-ubyte: SHA-256 is ")
    assert hashlib.sha256(content).hexdigest() in printed
    path.write_bytes(content[:-1])
    printed = project.stage("preprocess", status=1)
    assert f"has {len(content) - 1} bytes, not {len(content)}" in printed
    path.unlink()
    printed = project.stage("preprocess", status=1)
    assert printed.startswith(f"error: {RAW}/train-images-idx3-ubyte: ")
    assert printed.count("\n") == 1


def test_a_validation_split_that_leaves_nothing_to_train_on(project: Project) -> None:
    write_raw(project)
    project.set_params({"preprocess": {"validation_size": 150}})
    assert project.stage("preprocess", status=1) == (
        "error: params.yaml: preprocess.validation_size must be less than the number of training "
        "images, 150, got 150\n"
    )


def test_a_full_disk_leaves_the_old_tensors(project: Project) -> None:
    write_raw(project)
    project.stage("preprocess")
    folder = project.path / "data/tensors"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    project.set_params({"preprocess": {"seed": 1}})
    # No file may grow beyond 8 KiB (16 blocks of 512 bytes), so none of coverage's either.
    script = "unset COVERAGE_PROCESS_CONFIG; ulimit -f 16; exec python -m stages.preprocess"
    printed = project.run("sh", "-c", script, status=1)
    assert printed == "error: cannot read or write: File too large; mend that and run it again\n"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_file_where_the_folder_should_be(project: Project) -> None:
    write_raw(project)
    (project.path / "data/tensors").write_text("in the way")
    printed = project.stage("preprocess", status=1)
    assert printed.startswith("error: data/tensors: ")
    assert printed.count("\n") == 1
