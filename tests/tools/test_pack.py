"""Folders and archives of pictures as data sets, read again by other means than the pipeline's."""

import csv
import gzip
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import idx2numpy
import numpy as np
import pytest
from PIL import Image, ImageDraw
from project import ROOT

from stages.common.errors import StageError
from stages.dataset import catalogue
from tools import pack

CATALOGUE = (ROOT / "data/datasets.yaml").read_text(encoding="utf-8")
ENTRIES, MIRROR = Path("data/datasets.yaml"), Path("data/mirror/mine")
Run = Callable[..., None]


@pytest.fixture(autouse=True)
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The tool, in a folder with a catalogue and with parameters that choose `mine`."""
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    ENTRIES.write_text(CATALOGUE, encoding="utf-8")
    Path("params.yaml").write_text("fetch: {dataset: mine}")

    def main(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["pack", "--name", "mine", *arguments])
        pack.main()

    return main


def draw(path: str, shade: int = 0, size: tuple[int, int] = (6, 8), **options: Any) -> None:
    """Save a grey picture of a shade, with a corner that tells up from down."""
    picture = Image.new("L", size, shade)
    picture.putpixel((0, 0), 255 - shade)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, **options)


def small(*classes: str, count: int = 10) -> None:
    for number, name in enumerate(classes):
        for index in range(count):
            draw(f"pictures/{name}/{name[0]}{index}.png", shade=100 * number + index)


def packed(prefix: str) -> tuple[np.ndarray, np.ndarray]:
    """Return images and labels, by another reader of IDX."""
    names = [f"{prefix}-{name}.gz" for name in ("images-idx3-ubyte", "labels-idx1-ubyte")]
    contents = [gzip.decompress((MIRROR / name).read_bytes()) for name in names]
    return tuple(idx2numpy.convert_from_string(content) for content in contents)


def rows() -> dict[str, tuple[np.ndarray, int]]:
    """Return image and label of each picture, by its path; check the class beside it."""
    parts = {prefix: packed(prefix) for prefix in ("train", "t10k")}
    with (MIRROR / "pictures.csv").open(encoding="utf-8", errors="surrogateescape") as file:
        lines = [*csv.DictReader(file)]
    assert len(lines) == sum(len(labels) for _, labels in parts.values())
    found, classes = {}, catalogue.selected().classes
    for line in lines:
        image, label = (array[int(line["index"])] for array in parts[line["part"]])
        found[line["picture"]] = image, label
        assert classes[label] == line["class"]
    return found


def files() -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in Path("data").rglob("*") if path.is_file()}


def test_every_kind_of_picture_is_packed_as_it_looks(run: Run) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 6), dtype=np.uint8)
    grey = Image.fromarray(pixels)
    half = np.where(np.arange(48).reshape(8, 6) % 2, 255, 0).astype(np.uint8)
    clear = grey.convert("RGBA")
    clear.putalpha(Image.fromarray(half))
    index = Image.fromarray((half > 0).astype(np.uint8), "P")
    index.putpalette([shade for shade in range(256) for _ in "RGB"])
    deep = pixels.astype(np.uint16) * 256 + 200
    turned = Image.Exif()
    turned[0x0112] = 6  # shown turned by 90 degrees clockwise
    smooth = Image.linear_gradient("L").resize((6, 8))
    pictures: dict[str, tuple[Image.Image, dict[str, Any], np.ndarray]] = {
        "grey.png": (grey, {}, pixels),
        os.fsdecode(b"not-utf-8-\xe9.png"): (grey, {}, pixels),
        "photo.jpg": (smooth, {"quality": 95}, np.asarray(smooth)),
        "colour.bmp": (grey.convert("RGB"), {}, pixels),
        # 0.299 R + 0.587 G + 0.114 B
        "colours.png": (Image.new("RGB", (6, 8), (200, 100, 50)), {}, np.full((8, 6), 124)),
        "scan.TIF": (grey, {}, pixels),
        "web.webp": (grey.convert("RGB"), {"lossless": True}, pixels),
        "clear.png": (clear, {}, np.where(half, pixels, 255)),
        "clear.gif": (index, {"transparency": 0}, np.where(half, 1, 255)),
        "deep.png": (Image.fromarray(deep), {}, deep // 257),
        "deep.tiff": (Image.fromarray(deep), {}, deep // 257),
        "deep.pgm": (Image.fromarray(deep.astype(np.int32)), {}, deep // 257),
        "turned.png": (Image.fromarray(np.rot90(pixels)), {"exif": turned}, pixels),
    }
    small("b", count=1)
    Path("pictures/a").mkdir()
    for file, (picture, options, _) in pictures.items():
        picture.save(f"pictures/a/{file}", **options)
    run("pictures")
    found = rows()
    assert found.keys() == {"b/b0.png", *(f"a/{file}" for file in pictures)}
    for file, (_, _, expected) in pictures.items():
        off = 7 if file == "photo.jpg" else 0
        np.testing.assert_allclose(found[f"a/{file}"][0], expected, rtol=0, atol=off, err_msg=file)


def test_the_catalogue_gets_an_entry_and_keeps_all_else(run: Run) -> None:
    names = ["1e3", "a: \u00e9", "null"]
    small(*names)
    run("pictures", "--title", r"Mine: \all")
    dataset = catalogue.selected()
    texts = {"title": r"Mine: \all", "licence": "not stated", "credit": "not stated"}
    mirrors = ["data/mirror/mine/"]
    assert dataset.model_dump(exclude={"files"}) == texts | {"classes": names, "mirrors": mirrors}

    # Made anew, between others: the texts that people wrote stay, and all lines around.
    content = ENTRIES.read_text(encoding="utf-8")
    content = content.replace("licence: not stated", "licence: CC0\n\n  # of the entry")
    after = "\n# about the next\n\nmine-2:\n  title: x # y\n"
    ENTRIES.write_text((content + after).rstrip(), encoding="utf-8")
    draw("pictures/1e3/new.png")
    run("pictures", "--replace")
    changed = ENTRIES.read_text(encoding="utf-8")
    assert changed.startswith(f"{CATALOGUE}\nmine:\n")
    assert changed.endswith(f"\n{after}")
    assert len(changed.splitlines()) == len((content + after).splitlines()) - 2
    dataset = catalogue.selected()
    assert (dataset.title, dataset.licence) == (r"Mine: \all", "CC0")
    assert dataset.files["train-labels-idx1-ubyte"].size == 8 + len(packed("train")[1]) == 8 + 25


def test_the_same_pictures_give_the_same_bytes_and_a_corrected_label_changes_one(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    small("b", "a")
    for folder in ("x", "y"):
        draw(f"pictures/a/{folder}/same.png", shade=ord(folder))
    run("pictures")
    before, labels = files(), packed("train")[1]
    shutil.copytree("pictures", "elsewhere/again", copy_function=shutil.copy)
    shutil.rmtree(MIRROR)
    # Another file system lists files in another order.
    found = Path.rglob
    monkeypatch.setattr(Path, "rglob", lambda *of: reversed([*found(*of)]))
    run("elsewhere/again", "--replace")
    assert files() == before
    run("pictures", "--replace", "--seed", "1")
    assert files()[f"{MIRROR}/pictures.csv"] != before[f"{MIRROR}/pictures.csv"]

    last = before[f"{MIRROR}/pictures.csv"].decode().split("\nt10k")[0].rpartition(",")[2]
    Path("pictures", last).rename(Path("pictures", "ab".replace(last[0], ""), last[2:]))
    run("pictures", "--replace")
    changed = {path for path, content in files().items() if content != before[path]}
    assert changed == {
        f"{MIRROR}/train-labels-idx1-ubyte.gz",
        f"{MIRROR}/pictures.csv",
        str(ENTRIES),
    }
    assert np.flatnonzero(packed("train")[1] != labels).tolist() == [len(labels) - 1]


def test_each_class_gives_its_share_to_test(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    small("b", "a", "few")
    for index in range(1, 10):
        Path(f"pictures/few/f{index}.png").unlink()
    run("pictures", "--test", "0.04")
    assert capsys.readouterr().out == (
        "packed 19 pictures to train and 2 to test, of 3 classes, 8x6 pixels, into "
        "data/mirror/mine/; state their licence in data/datasets.yaml\nnext: dvc exp run -S "
        "fetch.dataset=mine -S preprocess.validation_size=1 -S train.epochs=1011\n"
    )
    labels, tested = packed("train")[1], packed("t10k")[1]
    assert np.bincount(labels).tolist() == [9, 9, 1]
    assert np.bincount(tested).tolist() == [1, 1]  # one at least, but not the only one
    # Mixed: the first images are not all of one class.
    assert len(set(labels[:8].tolist())) > 1
    for picture, (image, label) in rows().items():
        assert "abf"[label] == picture[0]
        assert image[1, 1] == {"b": 0, "a": 100, "f": 200}[picture[0]] + int(picture[-5])


def test_train_and_test_are_taken_as_they_are_and_other_files_left_out(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    for part, count in (("train", 3), ("test", 2), ("val", 1)):
        for name in ("10", "9"):
            for index in range(count):
                draw(f"pictures/{part}/{name}/deeper/{index}.png", shade=index)
    for file in ("9/Thumbs.db", "9/notes.pdf", "9/.x.png", "9/.cache/x.png", ".git/x.png", "x.png"):
        draw(f"pictures/train/{file}", format="PNG")
    run("pictures")
    assert [packed(prefix)[1].tolist().count(1) for prefix in ("train", "t10k")] == [3, 2]
    found = rows()
    assert {picture.split("/")[0] for picture in found} == {"train", "test"}
    assert len(found) == 10
    assert found["train/10/deeper/2.png"][0][1, 1] == 2
    assert catalogue.selected().classes == ["10", "9"]
    printed = capsys.readouterr().out
    assert printed.startswith("left out 8 files that are hidden or no pictures of a class\npacked")


def test_pictures_are_scaled_to_fit_and_padded(run: Run) -> None:
    small("a", "b", count=1)
    # Strokes that end at the border: most of it is paper all the same.
    for file, size, stroke in (
        ("a/wide", (200, 100), (0, 10, 199, 90)),
        ("b/tall", (100, 200), (10, 0, 90, 199)),
    ):
        picture = Image.new("L", size, 200)
        ImageDraw.Draw(picture).rectangle(stroke, 20)
        picture.save(f"pictures/{file}.png")
    run("pictures", "--size", "10x30", "--invert")
    for file, width, height in (("a/wide", 20, 8), ("b/tall", 4, 10)):
        image = rows()[f"{file}.png"][0]
        assert image.shape == (10, 30)
        assert {int(image[y, x]) for y in (0, -1) for x in (0, -1)} == {55}
        ink = image > 145  # halfway between 55 and 235
        assert abs(ink.any(axis=0).sum() - width) <= 1
        assert abs(ink.any(axis=1).sum() - height) <= 1
        assert abs(int(image[5, 15]) - 235) <= 5


@pytest.mark.parametrize(
    ("keys", "colours", "labels"),
    [
        (pack.KERAS, 0, [3, 12, 3, 5, 12]),
        (pack.MEDMNIST, 1, [[3], [12], [3], [5], [12]]),
        (pack.KERAS, 3, ["x", "y", "x", "a", "y"]),
        (pack.KERAS, 0, range(256)),
        (pack.KERAS, 0, range(257)),  # more classes than a byte holds
    ],
    ids=["keras", "medmnist", "names", "256", "257"],
)
def test_archives_of_arrays(run: Run, keys: tuple[str, ...], colours: int, labels: Any) -> None:
    images = np.random.default_rng(0).integers(0, 256, (len(labels), 6, 7), dtype=np.uint8)
    stored = np.stack([images] * colours, axis=3) if colours else images
    arrays: Any = zip(keys, (stored[:-2], labels[:-2], stored[-2:], labels[-2:]), strict=True)
    np.savez("my.npz", val_images=stored, **dict(arrays))
    run("my.npz")
    classes, numbers = np.unique(np.ravel(labels), return_inverse=True)
    for prefix, part in (("train", slice(-2)), ("t10k", slice(-2, None))):
        np.testing.assert_array_equal(packed(prefix)[0], images[part])
        assert packed(prefix)[1].tolist() == numbers[part].tolist()
    assert packed("train")[1].dtype == ("u1" if len(classes) <= 256 else ">i4")
    assert catalogue.selected().classes == [*map(str, classes)]
    assert rows()[f"{keys[2]}[1]"][1] == numbers[-1]


FORM = (
    "must be a folder, or an .npz file with x_train, y_train, x_test, y_test (or "
    "train_images, train_labels, test_images, test_labels), images uint8 and a label for each, but"
)


TAKEN = "is taken in data/datasets.yaml; choose another, or give --replace if this tool made it"


def sources() -> None:
    """Make everything that cannot be packed."""
    for name in ("page", "cut", "sizes", "empty", "parts/train", "parts/test", "one"):
        shutil.copytree("pictures", name)
    Path("page/a/p.png").write_text("<html>")
    draw("cut/a/c.bmp", size=(99, 99))
    Path("cut/a/c.bmp").write_bytes(Path("cut/a/c.bmp").read_bytes()[:99])
    draw("sizes/b/z.png", size=(7, 9))
    Path("empty/zero").mkdir()
    draw("parts/train/y/0.png")
    shutil.rmtree("one/b")
    arrays: dict[str, Any] = {"x_train": np.zeros((2, 4, 4), "u1"), "y_train": [0, 1]}
    arrays |= {"x_test": np.zeros((1, 4, 4), "u1"), "y_test": [0]}
    np.savez("floats.npz", **arrays | {"x_test": np.zeros((1, 4, 4), "f4")})
    np.savez("labels.npz", **arrays | {"y_test": [0, 1]})
    np.savez("objects.npz", **arrays | {"y_test": np.array([None])})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("page", "page/a/p.png: cannot be read (cannot identify image file 'page/a/p.png'); repla"),
        ("cut", "cut/a/c.bmp: cannot be read (image file is truncated (0 bytes not processed)); r"),
        ("sizes", "; scale them all, for example with --size 28"),
        ("empty", "empty/zero: has no picture that can be read; add some or delete the class"),
        ("parts", "parts/test/y: has no picture that can be read; add some or delete the class"),
        ("one", "one: has pictures of 1 classes, but needs two or more; move those of each class"),
        ("my.npz", f"my.npz: {FORM}: [Errno 2] No such file or directory: 'my.npz'"),
        ("floats.npz", f"{FORM}: Cannot cast array data from"),
        ("labels.npz", f"{FORM}: zip() argument 2 is shorter than argument"),
        ("objects.npz", f"{FORM}: Object arrays cannot be loaded"),
        ("pictures --name x/y", "--name x/y: must be letters, digits, - and _, such as my-digi"),
        ("pictures --name 12", "--name 12: must be letters, digits, - and _, such as my-digits"),
        ("pictures --name mnist --replace", f"--name mnist: {TAKEN}"),
        ("pictures --name Old_1", f"--name Old_1: {TAKEN}"),
    ],
)
def test_what_cannot_be_packed(run: Run, arguments: str, message: str) -> None:
    small("b", "a", count=2)
    run("pictures", "--name", "Old_1")
    sources()
    before = files()
    with pytest.raises(StageError) as error:
        run(*arguments.split())
    assert message in str(error.value)
    assert files() == before
