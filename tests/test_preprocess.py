"""The split is stratified and seeded, and raw files are what the catalogue pins."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from project import CLASSES, ROOT, Project, disk_of, small_images

from stages import preprocess
from stages.common.errors import StageError
from stages.dataset.idx import read_idx, write_idx

TRAIN, TEST = small_images(150, 150), small_images(60, 60)
ARRAYS: dict[str, np.ndarray] = {
    "train-images": TRAIN[0],
    "train-labels": TRAIN[1],
    "t10k-images": TEST[0],
    "t10k-labels": TEST[1],
}


# --- Which images are chosen --------------------------------------------------------------------


@pytest.mark.parametrize(("size", "seed"), [(0, 0), (1, 0), (100, 0), (997, 3), (1000, 1)])
def test_a_sample_keeps_the_proportions_of_the_classes(size: int, seed: int) -> None:
    labels = np.random.default_rng(7).choice(4, 1000, p=[0.6, 0.3, 0.09, 0.01]).astype(np.uint8)
    chosen = preprocess.sample(labels, size, seed)
    assert len(chosen) == size
    assert (np.diff(chosen) > 0).all()
    exact = np.bincount(labels, minlength=4) * size / len(labels)
    assert (abs(np.bincount(labels[chosen], minlength=4) - exact) < 1).all()


def test_a_sample_is_a_random_choice_that_the_seed_repeats() -> None:
    labels = np.repeat(np.arange(5, dtype=np.uint8), 200)
    one, again, other = (preprocess.sample(labels, 250, seed) for seed in (10**30, 10**30, 2))
    assert (one == again).all()
    assert len(np.intersect1d(one, other)) < 150
    # Not a block: each half of the images of a class gives about half of its share.
    assert 80 < (one % 200 < 100).sum() < 170
    # Of equal remainders, the first classes' count, however many classes there are.
    labels = np.repeat(np.arange(300), np.tile([1, 2], 150))
    assert labels[preprocess.sample(labels, 100, 0)].tolist() == list(range(1, 200, 2))


# --- From raw files to tensors ------------------------------------------------------------------


class Place:
    """A folder that preprocess runs in, with the small data set's raw files."""

    def __init__(self, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.path = path
        self.capsys = capsys
        self.tensors = path / "data/tensors"
        (path / "data/raw").mkdir(parents=True)
        self.params()
        self.write()

    def params(self, validation_size: int = 30, max_images: int = 0, seed: int = 0) -> None:
        section = {"validation_size": validation_size, "max_images": max_images, "seed": seed}
        content = {"fetch": {"dataset": "small"}, "preprocess": section}
        (self.path / "params.yaml").write_text(yaml.safe_dump(content))

    def raw(self, name: str) -> Path:
        return self.path / f"data/raw/{name}-idx{3 if name.endswith('images') else 1}-ubyte"

    def write(self, classes: list[str] = CLASSES, **changes: np.ndarray) -> None:
        """Write the raw files, some changed, and pin them in the catalogue."""
        arrays = ARRAYS | {name.replace("_", "-"): new for name, new in changes.items()}
        for name, array in arrays.items():
            write_idx(self.raw(name), array)
        self.pin(classes)

    def pin(self, classes: list[str] = CLASSES) -> None:
        entry: dict[str, Any] = {
            **dict.fromkeys(("title", "licence", "credit"), "x"),
            "classes": classes,
            "mirrors": ["x"],
            "files": {
                file.name: {
                    "size": file.stat().st_size,
                    "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
                }
                for file in (self.path / "data/raw").iterdir()
            },
        }
        (self.path / "data/datasets.yaml").write_text(yaml.safe_dump({"small": entry}))

    def run(self) -> tuple[str, str]:
        """Run the stage; return what it wrote to stdout and stderr."""
        preprocess.main()
        out, err = self.capsys.readouterr()
        return out, err

    def error(self) -> str:
        with pytest.raises(StageError) as error:
            preprocess.main()
        return str(error.value)

    def load(self, name: str) -> Any:
        return np.load(self.tensors / f"{name}.npy")

    def digest(self) -> bytes:
        """Return the manifest, which holds the hash of every tensor."""
        return (self.tensors / "manifest.json").read_bytes()


@pytest.fixture
def place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Place:
    monkeypatch.chdir(tmp_path)
    return Place(tmp_path, capsys)


def test_tensors_hold_the_raw_images_and_labels(place: Place) -> None:
    assert place.run() == ("120 train, 30 validation, 60 test images\n", "")
    np.testing.assert_array_equal(place.load("test_images")[..., 0], TEST[0])
    np.testing.assert_array_equal(place.load("test_labels").argmax(axis=1), TEST[1])
    assert place.load("test_labels").shape == (60, 3)
    # Training and validation images are the training files, each image once, with its own label.
    place.params(seed=5)
    held_out = {0: preprocess.sample(TRAIN[1], 30, 0), 5: preprocess.sample(TRAIN[1], 30, 5)}
    assert (held_out[0] != held_out[5]).any()
    for seed, chosen in held_out.items():
        place.params(seed=seed)
        place.run()
        rest = [index for index in range(150) if index not in chosen]
        for split, expected in (("validation", chosen), ("train", rest)):
            images, labels = (place.load(f"{split}_{kind}") for kind in ("images", "labels"))
            assert images.dtype == labels.dtype == np.uint8
            np.testing.assert_array_equal(images[..., 0], TRAIN[0][expected])
            np.testing.assert_array_equal(labels.argmax(axis=1), TRAIN[1][expected])
    manifest = json.loads(place.digest())
    assert manifest["classes"] == CLASSES
    assert manifest["sha256"] == {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in place.tensors.glob("*.npy")
    }


@pytest.mark.parametrize(
    ("validation_size", "max_images", "printed"),
    [
        (0, 0, "150 train, 0 validation, 60 test"),
        (0, 90, "90 train, 0 validation, 60 test"),
        (30, 40, "32 train, 8 validation, 40 test"),
        (1, 40, "39 train, 1 validation, 40 test"),  # one at least
        (149, 40, "1 train, 39 validation, 40 test"),
        (149, 1, "1 train, 0 validation, 1 test"),
        (30, 10**30, "120 train, 30 validation, 60 test"),
    ],
)
def test_a_quick_try_takes_a_share_of_everything(
    place: Place, validation_size: int, max_images: int, printed: str
) -> None:
    place.params(validation_size, max_images)
    assert place.run()[0] == f"{printed} images\n"


def test_a_quick_try_of_data_that_are_sorted_by_class(place: Place) -> None:
    order, test_order = (np.argsort(labels, kind="stable") for _, labels in (TRAIN, TEST))
    place.write(
        train_images=TRAIN[0][order],
        train_labels=TRAIN[1][order],
        t10k_images=TEST[0][test_order],
        t10k_labels=TEST[1][test_order],
    )
    place.params(max_images=30)
    assert place.run() == ("24 train, 6 validation, 30 test images\n", "")
    for split, (images, all_labels) in (("train", TRAIN), ("validation", TRAIN), ("test", TEST)):
        labels = place.load(f"{split}_labels").argmax(axis=1)
        shares = np.bincount(all_labels) / len(all_labels)
        assert (abs(np.bincount(labels, minlength=3) - shares * len(labels)) < 2).all()
        # Each image has its own label, and comes once.
        known = {image.tobytes(): label for image, label in zip(images, all_labels, strict=True)}
        found = [image.tobytes() for image in place.load(f"{split}_images")]
        assert [known[image] for image in found] == labels.tolist()
        assert len(set(found)) == len(labels)
    first = place.load("test_images")
    place.params(max_images=30, seed=1)
    place.run()
    assert (first != place.load("test_images")).any()


@pytest.mark.parametrize("dtype", ["int16", "int32"])
def test_labels_of_any_integer_type(place: Place, dtype: str) -> None:
    place.run()
    expected = place.digest()
    place.write(train_labels=TRAIN[1].astype(dtype), t10k_labels=TEST[1].astype(dtype))
    place.run()
    assert place.digest() == expected


# --- What is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"train_labels": TRAIN[1][:149]},
            "/train-labels-idx1-ubyte: holds 149 labels for the 150 images of data/raw/train-images"
            "-idx3-ubyte; check data/datasets.yaml",
        ),
        (
            {"t10k_labels": TEST[1][:59]},
            "/t10k-labels-idx1-ubyte: holds 59 labels for the 60 images of data/raw/t10k-images-",
        ),
        (
            {"train_labels": TRAIN[1].astype("i2") - 1},
            "/train-labels-idx1-ubyte: holds label -1, but data/datasets.yaml names 3 classes",
        ),
        (
            {"t10k_labels": TEST[1] + 1},
            "/t10k-labels-idx1-ubyte: holds label 3, but data/datasets.yaml names 3 classes, "
            "0 to 2; add the missing names there or, if the labels count from 1, convert them as",
        ),
        (
            {"train_images": TRAIN[0][:0], "train_labels": TRAIN[1][:0]},
            "/train-images-idx3-ubyte: holds no images; check data/datasets.yaml",
        ),
        (
            {"train_images": TRAIN[0][:, :0]},
            "/train-images-idx3-ubyte: holds no images; check data/datasets.yaml",
        ),
        (
            {"t10k_images": TEST[0][:, :10]},
            ": training images have shape (12, 12), but test images (10, 12); scale one to the "
            "other and enter the new files into data/datasets.yaml",
        ),
    ],
)
def test_images_and_labels_must_fit(changes: dict[str, Any], expected: str, place: Place) -> None:
    place.write(**changes)
    assert place.error().startswith(f"data/raw{expected}")
    assert not place.tensors.exists()


@pytest.mark.parametrize(
    ("name", "array", "found", "conversion"),
    [
        (
            "train-images",
            (TRAIN[0] / 255).astype("f4"),
            "float32 of shape (150, 12, 12)",
            '(255 * images).round().astype("u1")',
        ),
        (
            "train-images",
            TRAIN[0].reshape(150, 144),
            "uint8 of shape (150, 144)",
            "images.reshape(-1, 28, 28)",
        ),
        (
            "train-images",
            np.repeat(TRAIN[0][..., None], 3, axis=3),
            "uint8 of shape (150, 12, 12, 3)",
            'images.mean(axis=3).astype("u1")',
        ),
        (
            "train-labels",
            np.repeat(TRAIN[1][:, None], 8, axis=1).astype("i4"),
            "int32 of shape (150, 8)",
            'read_idx("train-labels-idx2-int")[:, 0]',
        ),
        ("train-labels", TRAIN[1].astype("f4"), "float32 of shape (150,)", 'labels.astype("u1")'),
        ("train-labels", TRAIN[1] + 1, "label 3", "labels - 1"),
    ],
)
def test_the_page_that_the_message_names_converts_the_file(
    name: str, array: np.ndarray, found: str, conversion: str, place: Place
) -> None:
    place.run()
    expected = place.digest()
    place.write(**dict[str, Any]({name.replace("-", "_"): array}))
    printed, path = place.error(), place.raw(name)
    assert printed.startswith(f"{path.relative_to(place.path)}: ")
    assert f"holds {found}" in printed
    assert printed.endswith("convert them as docs/data.md shows")
    assert conversion in (ROOT / "docs/data.md").read_text()
    known = {
        "images": read_idx(path),
        "labels": read_idx(path),
        "read_idx": lambda _: read_idx(path),
    }
    write_idx(path, eval(conversion.replace("28", "12"), known))
    place.pin()
    place.run()
    assert place.digest() == expected


def test_a_class_without_training_images_is_named(place: Place) -> None:
    place.write(classes=["Ω", *CLASSES[1:], "end"])
    assert place.run()[1] == (
        "warning: no training image is of class 'end' (1 of 4 classes): the network cannot learn "
        "it; check that the names in data/datasets.yaml stand for labels 0, 1, 2, ..., and "
        "preprocess.max_images\n"
    )
    # Labels that count from 1, with a name too many: it is the first that is absent.
    place.write(classes=["Ω", *CLASSES], train_labels=TRAIN[1] + 1, t10k_labels=TEST[1] + 1)
    assert "is of class 'Ω' (1 of 4" in place.run()[1]
    place.write(classes=[*CLASSES, *"abcdefg"])
    assert "class 'a', 'b', 'c', 'd', 'e' (7 of 10" in place.run()[1]
    # The only image of its class, and it is held out.
    labels = np.zeros(150, np.uint8)
    labels[7] = 1
    place.write(classes=["a", "b"], train_labels=labels, t10k_labels=labels[:60])
    place.params(validation_size=149)
    assert "is of class 'b' (1 of 2" in place.run()[1]


def test_raw_files_that_are_not_what_the_catalogue_pins(place: Place) -> None:
    path = place.raw("t10k-images")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    found = hashlib.sha256(content).hexdigest()
    assert place.error().startswith(f"data/raw/t10k-images-idx3-ubyte: SHA-256 is {found}, not ")


def test_a_validation_split_that_leaves_nothing_to_train_on(place: Place) -> None:
    place.params(validation_size=150)
    assert place.error() == (
        "params.yaml: preprocess.validation_size must be less than the number of training images, "
        "150, got 150"
    )


def test_a_full_disk_leaves_the_old_tensors(place: Place) -> None:
    place.run()
    before = {path.name: path.read_bytes() for path in place.tensors.iterdir()}
    place.params(seed=1)
    with disk_of(8192), pytest.raises(OSError, match="too large") as error:
        preprocess.main()
    assert error.value.filename == "data/tensors"
    assert {path.name: path.read_bytes() for path in place.tensors.iterdir()} == before


def test_a_raw_file_that_is_missing_or_damaged_comes_back_as_the_message_says(
    project: Project,
) -> None:
    printed = project.stage("preprocess", status=1)
    missing = "data/raw/train-images-idx3-ubyte: not found"
    assert printed == f"error: {missing}; run `dvc repro preprocess`\n"
    project.dvc("repro", "preprocess")
    path = project.path / "data/raw/t10k-labels-idx1-ubyte"
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1])
    printed = project.stage("preprocess", status=1)
    assert printed.endswith("; delete it, then run `dvc repro --force fetch`\n")
    path.unlink()
    project.dvc("repro", "--force", "fetch")
    assert project.stage("preprocess") == "120 train, 30 validation, 60 test images\n"
