"""The split is stratified and seeded, and raw files are what the catalogue pins."""

import hashlib
import json
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import CLASSES, Project, idx_bytes, small_images

from stages import preprocess
from stages.dataset.idx import read_idx, write_idx

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


def encode(array: np.ndarray) -> bytes:
    """Encode uint8, int16, int32 or float32 as IDX, written here from the format's definition."""
    code, dtype = {"uint8": (8, "u1"), "int16": (11, ">i2"), "int32": (12, ">i4")}.get(
        array.dtype.name, (13, ">f4")
    )
    header = idx_bytes(np.empty(array.shape, np.uint8))[: 4 + 4 * array.ndim]
    return header[:2] + bytes([code]) + header[3:] + array.astype(dtype).tobytes()


def file_name(name: str) -> str:
    return name + ("-idx3-ubyte" if name.endswith("images") else "-idx1-ubyte")


def pin(project: Project, classes: list[str] = CLASSES) -> None:
    """Put the raw files that are there, and the names of the classes, into the catalogue."""
    path = project.path / "data/datasets.yaml"
    catalogue = yaml.safe_load(path.read_text())
    for file in (project.path / RAW).glob("*-ubyte"):
        content = file.read_bytes()
        catalogue["small"]["files"][file.name] = {
            "size": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
        }
    catalogue["small"]["classes"] = classes
    path.write_text(yaml.safe_dump(catalogue))


def write_raw(project: Project, /, classes: list[str] = CLASSES, **changes: Any) -> None:
    """Write the small data set's raw files, some changed, and pin them in the catalogue."""
    folder = project.path / RAW
    folder.mkdir(parents=True, exist_ok=True)
    arrays = raw_arrays() | {name.replace("_", "-"): new for name, new in changes.items()}
    for name, array in arrays.items():
        (folder / file_name(name)).write_bytes(encode(array))
    pin(project, classes)


def load_tensors(project: Project) -> dict[str, np.ndarray]:
    return {path.stem: np.load(path) for path in (project.path / "data/tensors").glob("*.npy")}


def test_tensors_hold_the_raw_images_and_labels(project: Project) -> None:
    write_raw(project)
    assert project.stage("preprocess") == "120 train, 30 validation, 60 test images\n"
    folder = project.path / "data/tensors"
    loaded = load_tensors(project)
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
    loaded, raw = load_tensors(project), raw_arrays()
    for split, prefix in (("train", "train"), ("test", "t10k")):
        np.testing.assert_array_equal(
            loaded[f"{split}_images"][..., 0], raw[f"{prefix}-images"][:40]
        )
        np.testing.assert_array_equal(
            loaded[f"{split}_labels"].argmax(axis=1), raw[f"{prefix}-labels"][:40]
        )


def test_the_seed_of_params_yaml_chooses_the_validation_images(project: Project) -> None:
    write_raw(project)
    chosen = []
    for seed in (0, 5):
        project.set_params({"preprocess": {"seed": seed}})
        project.stage("preprocess")
        raw, mask = raw_arrays(), preprocess.hold_out(raw_arrays()["train-labels"], 30, seed)
        loaded = load_tensors(project)
        for split, expected in (("validation", mask), ("train", ~mask)):
            np.testing.assert_array_equal(
                loaded[f"{split}_images"][..., 0], raw["train-images"][expected]
            )
        chosen.append(mask)
    assert (chosen[0] != chosen[1]).any()


@pytest.mark.parametrize("dtype", ["int16", "int32"])
def test_labels_of_any_integer_type(project: Project, dtype: str) -> None:
    write_raw(project)
    project.stage("preprocess")
    expected = (project.path / "data/tensors/manifest.json").read_bytes()
    raw = raw_arrays()
    write_raw(
        project,
        train_labels=raw["train-labels"].astype(dtype),
        t10k_labels=raw["t10k-labels"].astype(dtype),
    )
    project.stage("preprocess")
    assert (project.path / "data/tensors/manifest.json").read_bytes() == expected


TRAIN = small_images(150, 150)
TEST = small_images(60, 60)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"train_labels": TRAIN[1][:149]},
            "train-labels-idx1-ubyte: holds 149 labels for the 150 images of data/raw/train-images-"
            "idx3-ubyte; check data/datasets.yaml",
        ),
        (
            {"t10k_labels": TEST[1][:59]},
            "t10k-labels-idx1-ubyte: holds 59 labels for the 60 images of data/raw/t10k-images-",
        ),
        (
            {"train_labels": TRAIN[1].astype("i2") - 1},
            "train-labels-idx1-ubyte: holds label -1, but data/datasets.yaml names 3 classes",
        ),
        (
            {"t10k_labels": TEST[1] + 1},
            "t10k-labels-idx1-ubyte: holds label 3, but data/datasets.yaml names 3 classes, "
            "0 to 2; add the missing names there or, if the labels count from 1, convert them with "
            "a - 1, then write",
        ),
        (
            {"train_images": TRAIN[0][:0], "train_labels": TRAIN[1][:0]},
            "train-images-idx3-ubyte: holds no images; check data/datasets.yaml",
        ),
        (
            {"t10k_images": TEST[0][:, :10]},
            "training images have shape (12, 12), but test images (10, 12); scale one to the other",
        ),
    ],
)
def test_images_and_labels_must_fit(
    changes: dict[str, Any], expected: str, project: Project
) -> None:
    write_raw(project, **changes)
    printed = project.stage("preprocess", status=1)
    assert printed.startswith("error: data/raw")
    assert expected in printed
    assert printed.count("\n") == 1
    assert not (project.path / "data/tensors").exists()


@pytest.mark.parametrize(
    ("name", "array", "found", "conversion"),
    [
        (
            "train-images",
            (TRAIN[0] / 255).astype("f4"),
            "float32 of shape (150, 12, 12)",
            "(255 * a).round().astype('u1')",
        ),
        (
            "train-images",
            TRAIN[0].reshape(150, 144),
            "uint8 of shape (150, 144)",
            "a.reshape(-1, height, width)",
        ),
        (
            "train-images",
            np.repeat(TRAIN[0][..., None], 3, axis=3),
            "uint8 of shape (150, 12, 12, 3)",
            "a.mean(axis=3).astype('u1')",
        ),
        (
            "train-labels",
            np.arange(150 * 8, dtype="i4").reshape(150, 8) * [[0]] + TRAIN[1][:, None],
            "int32 of shape (150, 8)",
            "a[:, 0]",
        ),
        ("train-labels", TRAIN[1].astype("f4"), "float32 of shape (150,)", "a.astype('u1')"),
        ("train-labels", TRAIN[1] + 1, "label 3", "a - 1"),
    ],
)
def test_what_the_message_says_converts_the_file(
    name: str, array: np.ndarray, found: str, conversion: str, project: Project
) -> None:
    write_raw(project)
    project.stage("preprocess")
    expected = (project.path / "data/tensors/manifest.json").read_bytes()
    array = array.astype("i4") if array.dtype == np.int64 else array
    write_raw(project, **dict[str, Any]({name.replace("-", "_"): array}))
    printed = project.stage("preprocess", status=1)
    path = project.path / RAW / file_name(name)
    assert printed.startswith(f"error: {path.relative_to(project.path)}: ")
    assert f"holds {found}" in printed
    assert f" {conversion}, " in printed
    assert printed.endswith(
        "write them with write_idx and put size and SHA-256 into data/datasets.yaml\n"
    )
    assert printed.count("\n") == 1
    values = {"a": read_idx(path), "height": 12, "width": 12}
    write_idx(path, eval(conversion, values))
    pin(project)
    project.stage("preprocess")
    assert (project.path / "data/tensors/manifest.json").read_bytes() == expected


def test_a_class_without_training_images_is_named(project: Project) -> None:
    write_raw(project, classes=["Ω", *CLASSES[1:], "end"])
    printed = project.stage("preprocess")
    assert printed.splitlines()[0] == (
        "warning: no training image is of class 'end' (1 of 4 classes): the network cannot learn "
        "it; check that the names in data/datasets.yaml stand for labels 0, 1, 2, ..., and "
        "preprocess.max_images"
    )
    # Labels that count from 1, with a name too many: it is the first that is absent.
    write_raw(
        project,
        classes=["Ω", *CLASSES],
        train_labels=TRAIN[1] + 1,
        t10k_labels=TEST[1] + 1,
    )
    assert "is of class 'Ω' (1 of 4" in project.stage("preprocess")
    write_raw(project, classes=[*CLASSES, *"abcdefg"])
    assert "class 'a', 'b', 'c', 'd', 'e', ... (7 of 10" in project.stage("preprocess")
    # The only image of its class, and it is held out.
    labels = np.zeros(150, np.uint8)
    labels[7] = 1
    write_raw(project, classes=["a", "b"], train_labels=labels, t10k_labels=labels[:60])
    project.set_params({"preprocess": {"validation_size": 149}})
    assert "is of class 'b' (1 of 2" in project.stage("preprocess")


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


def test_a_missing_raw_file_comes_back_as_the_message_says(project: Project) -> None:
    printed = project.stage("preprocess", status=1)
    assert printed.startswith(f"error: {RAW}/")
    assert printed.endswith(": not found; run `dvc repro preprocess`\n")
    project.dvc("repro", "preprocess")
    (project.path / RAW / "t10k-labels-idx1-ubyte").unlink()
    assert project.stage("preprocess", status=1) == (
        f"error: {RAW}/t10k-labels-idx1-ubyte: not found; run `dvc repro preprocess`\n"
    )
    project.dvc("repro", "preprocess")
    project.stage("preprocess")


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
    assert printed == (
        "error: data/tensors: File too large; check the file and its disk, then run it again\n"
    )
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_file_where_the_folder_should_be(project: Project) -> None:
    write_raw(project)
    (project.path / "data/tensors").write_text("in the way")
    printed = project.stage("preprocess", status=1)
    assert printed.startswith("error: data/tensors: ")
    assert printed.count("\n") == 1
