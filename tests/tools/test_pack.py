"""Folders and archives of pictures as data sets, read again by other means than the pipeline's."""

import csv
import gzip
import hashlib
import io
import shutil
import sys
from pathlib import Path
from typing import Any

import idx2numpy
import numpy as np
import pytest
import yaml
from conftest import ROOT
from PIL import Image, ImageDraw

from stages.common.errors import StageError
from stages.dataset import catalogue
from tools import pack

CATALOGUE = (ROOT / "data/datasets.yaml").read_text(encoding="utf-8")
MIRROR = Path("data/mirror/mine")


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with catalogue and parameters, in which the tool runs."""
    folder = tmp_path / "root"
    (folder / "data").mkdir(parents=True)
    (folder / "data/datasets.yaml").write_text(CATALOGUE, encoding="utf-8")
    content = (ROOT / "params.yaml").read_text(encoding="utf-8").replace(": mnist ", ": mine ")
    (folder / "params.yaml").write_text(content, encoding="utf-8")
    monkeypatch.chdir(folder)
    return folder


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str, name: str = "mine") -> None:
    monkeypatch.setattr(sys, "argv", ["pack", *arguments, "--name", name])
    pack.main()


def draw(path: str, shade: int = 0, size: tuple[int, int] = (6, 8), **options: Any) -> None:
    """Save a grey picture of a shade, with a corner that tells up from down."""
    picture = Image.new("L", size, shade)
    picture.putpixel((0, 0), 255 - shade)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, **options)


def packed(prefix: str) -> tuple[np.ndarray, np.ndarray]:
    """Return images and labels, by another reader of IDX."""
    return tuple(
        idx2numpy.convert_from_string(
            gzip.decompress((MIRROR / f"{prefix}-{name}.gz").read_bytes())
        )
        for name in ("images-idx3-ubyte", "labels-idx1-ubyte")
    )


def rows() -> dict[str, tuple[np.ndarray, int]]:
    """Return image and label of each picture, by its path."""
    parts = {prefix: packed(prefix) for prefix in ("train", "t10k")}
    with (MIRROR / "pictures.csv").open(encoding="utf-8") as table:
        lines = list(csv.DictReader(table))
    assert len(lines) == sum(len(labels) for _, labels in parts.values())
    return {
        line["picture"]: tuple(array[int(line["index"])] for array in parts[line["part"]])
        for line in lines
    }


def small(classes: tuple[str, ...] = ("b", "a"), count: int = 10) -> None:
    for number, name in enumerate(classes):
        for index in range(count):
            draw(f"pictures/{name}/{name}{index}.png", shade=100 * number + index)


def test_every_kind_of_picture_is_packed_as_it_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    grey = Image.fromarray(random.integers(0, 256, (8, 6), dtype=np.uint8))
    pixels = np.asarray(grey)
    half = np.where(np.arange(48).reshape(8, 6) % 2, 255, 0).astype(np.uint8)
    clear = grey.convert("RGBA")
    clear.putalpha(Image.fromarray(half))
    on_white = np.where(half, pixels, 255)
    palette = Image.fromarray(pixels // 32 * 32).quantize(8)
    deep = pixels.astype(np.uint16) * 256 + 200
    turned = Image.Exif()
    turned[0x0112] = 6  # shown turned by 90 degrees clockwise
    lying = Image.fromarray(np.rot90(pixels))
    colours = Image.new("RGB", (6, 8), (200, 100, 50))
    pictures: dict[str, tuple[Image.Image, dict[str, Any], np.ndarray]] = {
        "grey.png": (grey, {}, pixels),
        "upper.PNG": (grey, {}, pixels),
        "colour.bmp": (grey.convert("RGB"), {}, pixels),
        "colours.png": (colours, {}, np.full((8, 6), 124)),  # 0.299 R + 0.587 G + 0.114 B
        "bits.png": (Image.fromarray(half).convert("1"), {}, half),
        "palette.gif": (palette, {}, pixels // 32 * 32),
        "scan.tif": (grey, {}, pixels),
        "web.webp": (grey.convert("RGB"), {"lossless": True}, pixels),
        "clear.png": (clear, {}, on_white),
        "clear.gif": (
            Image.fromarray((half > 0).astype(np.uint8), "P"),
            {"transparency": 0},
            np.where(half, 1, 255),
        ),
        "deep.png": (Image.fromarray(deep), {}, deep // 257),
        "deep.tiff": (Image.fromarray(deep), {}, deep // 257),
        "deep.pgm": (Image.fromarray(deep.astype(np.int32)), {}, deep // 257),
        "turned.png": (lying, {"exif": turned}, pixels),
    }
    pictures["clear.gif"][0].putpalette([i for shade in range(256) for i in (shade,) * 3])
    for name in ("a", "b"):
        Path("pictures", name).mkdir(parents=True)
        for file, (picture, options, _) in pictures.items():
            picture.save(f"pictures/{name}/{file}", **options)
        smooth = Image.linear_gradient("L").resize((6, 8))
        smooth.save(f"pictures/{name}/photo.jpg", quality=95)
    run(monkeypatch, "pictures")
    found = rows()
    assert np.abs(found["a/photo.jpg"][0].astype(int) - np.asarray(smooth)).max() < 8
    for file, (_, _, expected) in pictures.items():
        np.testing.assert_array_equal(found[f"a/{file}"][0], expected, file)
        assert [found[f"{name}/{file}"][1] for name in "ab"] == [0, 1]


def test_the_catalogue_gets_an_entry_and_keeps_all_else(monkeypatch: pytest.MonkeyPatch) -> None:
    small(("1e3", "a: \u00e9"))
    run(monkeypatch, "pictures", "--title", "Mine: all")
    content = Path("data/datasets.yaml").read_text(encoding="utf-8")
    assert content.startswith(CATALOGUE)
    dataset = catalogue.selected()
    assert (dataset.title, dataset.classes) == ("Mine: all", ["1e3", "a: \u00e9"])
    assert dataset.mirrors == ["data/mirror/mine/"]
    for name, pinned in dataset.files.items():
        unpacked = gzip.decompress((MIRROR / f"{name}.gz").read_bytes())
        assert pinned.size == len(unpacked)
        assert pinned.sha256 == hashlib.sha256(unpacked).hexdigest()

    # Made anew, between others: the texts that people wrote stay, and all lines around.
    content = content.replace('"not stated"', '"CC0"')
    after = "\n# about the next\n\nnext:\n  title: x # y\n"
    Path("data/datasets.yaml").write_text(content + after, encoding="utf-8")
    draw("pictures/1e3/new.png")
    run(monkeypatch, "pictures", "--replace")
    changed = Path("data/datasets.yaml").read_text(encoding="utf-8")
    assert changed.startswith(CATALOGUE)
    assert changed.endswith(after)
    entry = yaml.safe_load(changed)["mine"]
    assert (entry["title"], entry["licence"], entry["credit"]) == ("Mine: all", "CC0", "CC0")
    size = entry["files"]["train-labels-idx1-ubyte"]["size"]
    assert size == 8 + len(packed("train")[1]) == 8 + 17
    assert len(changed.splitlines()) == len((content + after).splitlines())


def test_the_same_pictures_give_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    small()
    run(monkeypatch, "pictures")
    before = {path.name: path.read_bytes() for path in MIRROR.iterdir()}
    entry = Path("data/datasets.yaml").read_bytes()
    shutil.copytree("pictures", "elsewhere/again", copy_function=shutil.copy)
    shutil.rmtree(MIRROR)
    run(monkeypatch, "elsewhere/again", "--replace")
    assert {path.name: path.read_bytes() for path in MIRROR.iterdir()} == before
    assert len(before) == 5
    assert Path("data/datasets.yaml").read_bytes() == entry
    run(monkeypatch, "pictures", "--replace", "--seed", "1")
    assert (MIRROR / "pictures.csv").read_bytes() != before["pictures.csv"]


def test_each_class_gives_its_share_to_test(monkeypatch: pytest.MonkeyPatch) -> None:
    small(("b", "a", "few"), 10)
    for index in range(2, 10):
        Path(f"pictures/few/few{index}.png").unlink()
    run(monkeypatch, "pictures", "--test", "0.3")
    (images, labels), (_, tested) = packed("train"), packed("t10k")
    assert np.bincount(labels).tolist() == [7, 7, 1]
    assert np.bincount(tested).tolist() == [3, 3, 1]
    # Mixed: the first images are not all of one class.
    assert len(set(labels[:8].tolist())) > 1
    for picture, (image, label) in rows().items():
        assert "abf"[label] == picture[0]
        shade = {"b": 0, "a": 100, "few": 200}[picture.split("/")[0]] + int(picture[-5])
        assert image[1, 1] == shade
    assert images.shape[1:] == (8, 6)


def test_a_corrected_label_changes_one_label(monkeypatch: pytest.MonkeyPatch) -> None:
    small()
    run(monkeypatch, "pictures")
    before, (_, labels) = (
        {path.name: path.read_bytes() for path in MIRROR.iterdir()},
        packed("train"),
    )
    last = (MIRROR / "pictures.csv").read_text().split("\nt10k")[0].rpartition(",")[2]
    Path("pictures", last).rename(Path("pictures", "ab".replace(last[0], ""), last[2:]))
    run(monkeypatch, "pictures", "--replace")
    changed = {path.name for path in MIRROR.iterdir() if path.read_bytes() != before[path.name]}
    assert changed == {"train-labels-idx1-ubyte.gz", "pictures.csv"}
    assert np.flatnonzero(packed("train")[1] != labels).tolist() == [len(labels) - 1]


def test_train_and_test_are_taken_as_they_are_and_other_files_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for part, count in (("train", 3), ("test", 2), ("val", 1)):
        for name in ("10", "9"):
            for index in range(count):
                draw(f"pictures/{part}/{name}/deeper/{index}.png", shade=index)
    for file in ("train/9/Thumbs.db", "train/9/notes.txt", "train/9/.x.png", "test/stray.png"):
        draw(f"pictures/{file}", format="PNG")
    draw("pictures/train/9/.ipynb_checkpoints/copy.png")
    draw("pictures/train/.git/x.png")
    run(monkeypatch, "pictures")
    assert [len(packed(prefix)[1]) for prefix in ("train", "t10k")] == [6, 4]
    assert rows()["train/10/deeper/2.png"][1] == 0
    assert catalogue.selected().classes == ["10", "9"]
    printed = capsys.readouterr().out
    assert (
        "left out, because hidden or no picture of a class: 1 .db, 4 .png, 1 .txt, 1 val/"
        in printed
    )


@pytest.mark.parametrize(
    ("options", "shape", "paper", "ink"),
    [
        (["--size", "28"], (28, 28), 200, 20),
        (["--size", "10x30"], (10, 30), 200, 20),
        (["--size", "28", "--invert"], (28, 28), 55, 235),
    ],
)
def test_pictures_are_scaled_to_fit_and_padded(
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    shape: tuple[int, int],
    paper: int,
    ink: int,
) -> None:
    for name in ("a", "b"):
        for index, (width, height) in enumerate([(200, 100), (90, 90)]):
            picture = Image.new("L", (width, height), 200)
            box = (width * 0.25, height * 0.25, width * 0.75, height * 0.75)
            ImageDraw.Draw(picture).rectangle(box, 20)
            Path("pictures", name).mkdir(parents=True, exist_ok=True)
            picture.save(f"pictures/{name}/{index}.png")
    run(monkeypatch, "pictures", *options)
    image = rows()["a/0.png"][0]
    assert image.shape == shape
    assert {int(image[y, x]) for y in (0, -1) for x in (0, -1)} == {paper}
    dark = np.abs(image.astype(int) - ink) < np.abs(image.astype(int) - paper)
    rows_of, columns = dark.any(axis=1).sum(), dark.any(axis=0).sum()
    # Half as wide as the picture, which fills the width of the first and the height of the second.
    wide = min(shape[1], 2 * shape[0])
    assert abs(columns - wide / 2) <= 1
    assert abs(rows_of - wide / 4) <= 1
    assert image[shape[0] // 2, shape[1] // 2] == ink


@pytest.mark.parametrize("form", ["keras", "medmnist", "colours", "names"])
def test_archives_of_arrays(monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (5, 6, 7), dtype=np.uint8)
    labels: np.ndarray = np.array([3, 12, 3, 5, 12])
    keys = ["x_train", "y_train", "x_test", "y_test"]
    stored, classes = images, ["3", "5", "12"]
    if form == "medmnist":
        keys = ["train_images", "train_labels", "test_images", "test_labels"]
        stored, labels = images[..., None], labels[:, None]
    elif form == "colours":
        stored = np.stack([images] * 3, axis=3)
    elif form == "names":
        labels, classes = np.array(["x", "y", "x", "a", "y"]), ["a", "x", "y"]
    arrays: Any = zip(keys, (stored[:3], labels[:3], stored[3:], labels[3:]), strict=True)
    np.savez("my.npz", val_images=stored, **dict(arrays))
    run(monkeypatch, "my.npz")
    numbers = [classes.index(str(label)) for label in labels.ravel()]
    for prefix, part in (("train", slice(3)), ("t10k", slice(3, 5))):
        np.testing.assert_array_equal(packed(prefix)[0], images[part])
        assert packed(prefix)[1].tolist() == numbers[part]
    assert catalogue.selected().classes == classes
    assert f"t10k,1,{classes[numbers[4]]},{keys[2]}[1]\n" in (MIRROR / "pictures.csv").read_text()


def test_more_classes_than_a_byte_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.zeros((257, 4, 4), np.uint8)
    np.savez("my.npz", x_train=images, y_train=range(257), x_test=images[:1], y_test=[256])
    run(monkeypatch, "my.npz")
    assert packed("train")[1].tolist() == list(range(257))
    assert packed("t10k")[1].tolist() == [256]


ARCHIVE: dict[str, Any] = {
    "x_train": np.zeros((2, 4, 4), np.uint8),
    "y_train": [0, 1],
    "x_test": np.zeros((1, 4, 4), np.uint8),
    "y_test": [0],
}


def archive(**changes: Any) -> None:
    arrays = {key: value for key, value in (ARCHIVE | changes).items() if value is not None}
    np.savez("my.npz", **arrays)


def broken(name: str) -> None:
    """Make the folder or file of a test that fails."""
    small()
    match name:
        case "damaged":
            whole = io.BytesIO()
            Image.new("L", (99, 99)).save(whole, "PNG")
            Path("pictures/a/half.png").write_bytes(whole.getvalue()[:60])
        case "no picture":
            Path("pictures/a/page.png").write_text("<html>")
        case "empty class":
            Path("pictures/zero").mkdir()
            Path("pictures/zero/notes.txt").write_text("x")
        case "one class":
            shutil.rmtree("pictures/b")
        case "no classes":
            shutil.rmtree("pictures/b")
            shutil.rmtree("pictures/a")
        case "sizes":
            draw("pictures/b/zzz.png", size=(7, 9))
        case "parts":
            draw("pictures/train/x/0.png")
            draw("pictures/train/y/0.png")
            draw("pictures/test/x/0.png")
            draw("pictures/test/z/0.png")
        case "singles":
            shutil.rmtree("pictures")
            small(count=1)
        case "class name":
            Path("pictures/a").rename("pictures/a\tb")


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("damaged", "pictures/a/half.png: not a picture that can be read (image file is truncated"),
        ("no picture", "pictures/a/page.png: not a picture that can be read (cannot identify"),
        ("empty class", "pictures/zero: has no picture that can be read; add some or delete it"),
        ("one class", "pictures: must have a folder of pictures for each class, at least two, but"),
        (
            "no classes",
            "pictures: must have a folder of pictures for each class, at least two, but",
        ),
        ("parts", "pictures: only one of train/ and test/ has the class 'y'; both must"),
        ("singles", "pictures: has one picture of each class; add some to test with"),
        ("class name", "data/datasets.yaml: mine.classes.0 must be a line of printable"),
    ],
)
def test_a_folder_that_cannot_be_packed(
    monkeypatch: pytest.MonkeyPatch, root: Path, case: str, message: str
) -> None:
    broken(case)
    refused(monkeypatch, root, message)


def refused(
    monkeypatch: pytest.MonkeyPatch, root: Path, message: str, *options: str, **more: str
) -> None:
    """Check that the tool says this, and writes nothing."""
    before = {path: path.is_file() and path.read_bytes() for path in root.rglob("*")}
    with pytest.raises(StageError) as error:
        run(monkeypatch, *(options or ["pictures"]), **more)
    assert str(error.value).startswith(message)
    assert {path: path.is_file() and path.read_bytes() for path in root.rglob("*")} == before


def test_sizes_that_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    broken("sizes")
    with pytest.raises(
        StageError, match=r"pictures/\w+/\w+.png: is (9x7|8x6) pixels, but pictures/"
    ) as error:
        run(monkeypatch, "pictures")
    text = str(error.value)
    assert text.endswith("scale them all, for example with --size 28")
    assert all(part in text for part in ("9x7", "8x6", "pictures/b/zzz.png"))
    assert not MIRROR.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_train": None}, "my.npz: must have x_train, y_train, x_test, y_test, or train_images,"),
        ({"x_train": np.zeros((2, 4, 4))}, "my.npz: x_train must be uint8 of shape (N, height, wi"),
        ({"x_test": np.zeros((1, 16), "u1")}, "my.npz: x_test must be uint8 of shape (N, height, "),
        ({"x_test": np.zeros((1, 4, 4, 2), "u1")}, "my.npz: x_test must be uint8 of shape (N, hei"),
        ({"y_train": [0.0, 1.0]}, "my.npz: the labels of x_train must be whole numbers or names, "),
        ({"y_test": [[0, 1]]}, "my.npz: the labels of x_test must be whole numbers or names, of s"),
        ({"y_train": [0, 1, 1]}, "my.npz: the labels of x_train must be whole numbers or names, o"),
        ({"y_train": [0, 0]}, "my.npz: must have images to train, to test, and of two classes at "),
        ({"x_test": np.zeros((0, 4, 4), "u1"), "y_test": np.zeros(0, int)}, "my.npz: must have im"),
        ({"y_train": np.array([0, None])}, "my.npz: not an .npz file of plain arrays (Object arr"),
        ({"x_test": np.zeros((1, 5, 4), "u1")}, "my.npz/x_test[0]: is 5x4 pixels, but my.npz/x_tr"),
    ],
)
def test_an_archive_that_cannot_be_packed(
    monkeypatch: pytest.MonkeyPatch, root: Path, changes: dict[str, Any], message: str
) -> None:
    archive(**changes)
    refused(monkeypatch, root, message, "my.npz")


def test_files_that_are_none(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    for content in (b"text", b"PK\3\4 and no more", b""):
        Path("my.npz").write_bytes(content)
        refused(monkeypatch, root, "my.npz: not an .npz file of plain arrays (", "my.npz")
    Path("my.zip").write_bytes(b"")
    for source in ("my.zip", "absent", "absent.npz"):
        refused(monkeypatch, root, f"{source}: is no folder and no .npz file; give one", source)


@pytest.mark.parametrize("name", ["", "a b", "../x", "a/b", "12", "null", "1_0", "\u00e9"])
def test_names_that_are_none(monkeypatch: pytest.MonkeyPatch, root: Path, name: str) -> None:
    small()
    refused(monkeypatch, root, f"--name {name}: is not a name; take letters", "pictures", name=name)


def test_names_that_are_taken(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    small()
    taken = "--name {}: is taken in data/datasets.yaml; choose another"
    # What was not packed by this tool is not replaced.
    refused(monkeypatch, root, taken.format("mnist"), "pictures", "--replace", name="mnist")
    run(monkeypatch, "pictures")
    refused(monkeypatch, root, f"{taken.format('mine')}, or give --replace", "pictures")


@pytest.mark.parametrize(
    "options", [["--size", "0"], ["--size", "x2"], ["--size", "a"], ["--test", "1"]]
)
def test_options_that_make_no_sense(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    small()
    with pytest.raises(SystemExit):
        run(monkeypatch, "pictures", *options)
    assert f"error: argument {options[0]}: invalid" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("count", "changes"),
    [
        (48_000, ""),
        (20_000, " -S preprocess.validation_size=2000"),
        (1_440, " -S preprocess.validation_size=144 -S train.epochs=13"),
        (50, " -S preprocess.validation_size=5 -S train.batch_size=5 -S train.epochs=30"),
    ],
)
def test_what_is_next_fits_the_number_of_pictures(count: int, changes: str) -> None:
    assert pack.next_command("mine", count) == f"dvc exp run -S fetch.dataset=mine{changes}"
