"""Make a data set of pictures: pack them as IDX files, and add it to the catalogue.

Reads   SOURCE: a folder with a folder of pictures for each class, or with train/ and test/ that
        have such folders; or an .npz file as Keras (x_train, y_train, x_test, y_test) or MedMNIST
        (train_images, train_labels, test_images, test_labels) have them
Writes  data/mirror/NAME/{train,t10k}-{images-idx3,labels-idx1}-ubyte.gz
        data/mirror/NAME/pictures.csv   which picture each image is: part, index, class, picture
        data/datasets.yaml              the entry NAME

Nothing is written before everything is read. The packed images are in memory, a byte a pixel: 47 MB
for 60,000 of 28x28.
"""

import argparse
import csv
import gzip
import hashlib
import json
import os
import re
import warnings
import zipfile
import zlib
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from PIL import Image, ImageOps
from tqdm import tqdm

from stages.common import errors, files, params, paths
from stages.common.errors import StageError
from stages.common.tensors import UInt8, describe
from stages.dataset import catalogue, idx

NPZ_KEYS = (
    ("x_train", "y_train", "x_test", "y_test"),
    ("train_images", "train_labels", "test_images", "test_labels"),
)

_STEPS = 300  # of training, at least: 1,800 scans of digits need about as many


class Picture(NamedTuple):
    """A picture, the path that messages call it by, and the number of its class."""

    name: str
    label: int
    source: Path | UInt8


class Pictures(NamedTuple):
    """Everything that is to be packed."""

    classes: list[str]
    train: list[Picture]
    test: list[Picture]


def folders(parent: Path) -> list[str]:
    """Return the names of the folders in a folder, sorted as Keras and torchvision sort them."""
    return sorted(path.name for path in parent.iterdir() if path.is_dir() and path.name[0] != ".")


def find(parent: Path, left_out: Counter[str]) -> tuple[list[str], list[Picture]]:
    """Return the classes and their pictures, however deep in the folder of a class they are.

    Counts the files that are left out. Raises StageError unless there are two classes or more,
    with a picture in each.
    """
    Image.init()
    readable = {end for end, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    classes, pictures = folders(parent), []
    if len(classes) < 2:
        raise StageError(
            f"{parent}: must have a folder of pictures for each class, at least two, but has "
            f"{len(classes)}; move the pictures of each class into a folder with its name"
        )
    for path in sorted(path for path in parent.rglob("*") if not path.is_dir()):
        inner = path.relative_to(parent).parts
        hidden = any(part[0] == "." for part in inner)
        if hidden or len(inner) == 1 or path.suffix.lower() not in readable:
            left_out[path.suffix or path.name] += 1
        else:
            pictures.append(Picture(str(path), classes.index(inner[0]), path))
    if empty := sorted(set(range(len(classes))) - {picture.label for picture in pictures}):
        raise StageError(
            f"{parent / classes[empty[0]]}: has no picture that can be read; add some or delete it"
        )
    return classes, pictures


def mixed(pictures: list[Picture], seed: int) -> list[Picture]:
    """Sort by a hash of the file name: a picture that is moved to another class keeps its place."""

    def key(picture: Picture) -> tuple[bytes, str]:
        file = os.fsencode(Path(picture.name).name)
        return hashlib.sha256(b"%d %s" % (seed, file)).digest(), picture.name

    return sorted(pictures, key=key)


def from_folder(folder: Path, share: float, seed: int) -> Pictures:
    """Find all pictures; without a test/, the first `share` of each class, mixed, is for testing.

    So a class has as many as it can, but one at least, and when labels are corrected or pictures
    added, nearly all others stay where they are.
    """
    left_out: Counter[str] = Counter()
    names = folders(folder)
    if {"train", "test"} <= {*names} and folders(folder / "train"):
        classes, train = find(folder / "train", left_out)
        tested, test = find(folder / "test", left_out)
        if odd := sorted({*classes} ^ {*tested}):
            raise StageError(
                f"{folder}: only one of train/ and test/ has the class {odd[0]!r}; "
                "both must have the same"
            )
        left_out.update(f"{name}/" for name in names if name not in ("train", "test"))
    else:
        classes, pictures = find(folder, left_out)
        train, test = [], []
        for label in range(len(classes)):
            of_class = mixed([picture for picture in pictures if picture.label == label], seed)
            count = min(max(1, round(share * len(of_class))), len(of_class) - 1)
            test += of_class[:count]
            train += of_class[count:]
        if not test:
            raise StageError(f"{folder}: has one picture of each class; add some to test with")
    if left_out:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(left_out.items()))
        print(f"left out, because hidden or no picture of a class: {kinds}")
    return Pictures(classes, mixed(train, seed), mixed(test, seed))


def from_npz(path: Path) -> Pictures:
    """Read an .npz file; its classes are the labels that occur, sorted."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            keys = next((keys for keys in NPZ_KEYS if {*keys} <= {*archive.files}), None)
            if keys is None:
                needed = ", or ".join(", ".join(keys) for keys in NPZ_KEYS)
                raise StageError(f"{path}: must have {needed}, but has {', '.join(archive.files)}")
            arrays = [archive[key] for key in keys]
    except (ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise StageError(f"{path}: not an .npz file of plain arrays ({error})") from None
    for key, images, labels in zip(keys[::2], arrays[::2], arrays[1::2], strict=True):
        if images.dtype != np.uint8 or (images.ndim != 3 and images.shape[3:] not in ((1,), (3,))):
            raise StageError(
                f"{path}: {key} must be uint8 of shape (N, height, width), (N, height, width, 1) "
                f"or (N, height, width, 3), but is {describe(images)}; convert it"
            )
        if labels.dtype.kind not in "iuU" or labels.shape not in ((len(images),), (len(images), 1)):
            raise StageError(
                f"{path}: the labels of {key} must be whole numbers or names, of shape "
                f"({len(images)},), but are {describe(labels)}; convert them"
            )
    classes, numbers = np.unique(np.append(arrays[1], arrays[3]), return_inverse=True)
    if len(classes) < 2 or not len(arrays[0]) or not len(arrays[2]):
        raise StageError(f"{path}: must have images to train, to test, and of two classes at least")
    sources = [
        (f"{path}/{key}[{i}]", image[..., 0] if image.shape[2:] == (1,) else image)
        for key, images in zip(keys[::2], arrays[::2], strict=True)
        for i, image in enumerate(images)
    ]
    pictures = [
        Picture(name, int(number), image)
        for (name, image), number in zip(sources, numbers, strict=True)
    ]
    count = len(arrays[0])
    return Pictures([str(name) for name in classes], pictures[:count], pictures[count:])


def border(picture: Image.Image) -> int:
    """Return the median of a grey picture's outermost pixels: its background."""
    pixels = np.asarray(picture)
    return int(np.median(np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])))


def read(
    picture: Picture, size: tuple[int, int] | None = None, invert: bool = False
) -> Image.Image:
    """Read a picture as 8-bit grey, upright, what is transparent in it white.

    With a size (height, width), it is scaled to fit, and padded with its background. Of several
    frames the first is taken. Raises StageError that names the picture.
    """
    source = picture.source
    try:
        with (
            warnings.catch_warnings(action="ignore"),
            Image.open(source) if isinstance(source, Path) else Image.fromarray(source) as opened,
        ):
            image = ImageOps.exif_transpose(opened)
            if image.mode.startswith("I"):  # 16 bits, which some formats have in 32
                image = Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            image = image.convert("L")
            if size:
                image = ImageOps.pad(image, size[::-1], color=border(image))
            return ImageOps.invert(image) if invert else image
    except Exception as error:  # a damaged file makes Pillow raise almost anything
        why = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise StageError(
            f"{picture.name}: not a picture that can be read ({why}); replace or delete it"
        ) from None


def pack(pictures: list[Picture], size: tuple[int, int] | None, invert: bool) -> UInt8:
    """Return the pictures as an array (N, height, width), with a progress bar on a terminal.

    Raises StageError if one cannot be read, or has another size than the first.
    """
    first = np.asarray(read(pictures[0], size, invert))
    packed = np.empty((len(pictures), *first.shape), np.uint8)
    for index, picture in enumerate(tqdm(pictures, "pack", unit=" pictures", disable=None)):
        image = np.asarray(read(picture, size, invert))
        if image.shape != first.shape:
            raise StageError(
                f"{picture.name}: is {text(image.shape)} pixels, but {pictures[0].name} is "
                f"{text(first.shape)}; scale them all, for example with --size 28"
            )
        packed[index] = image
    return packed


def text(size: tuple[int, ...]) -> str:
    """Return a size as --size takes it: height x width."""
    return "x".join(map(str, size))


def entry_of(name: str, replace: bool) -> dict[str, Any]:
    """Return the texts of an entry: those of the old one, if there is one and it may be replaced.

    Raises StageError if the name cannot be used.
    """
    # What YAML or the command line read as a number, a date or null would not find the entry.
    if not re.fullmatch(r"\w[\w-]*", name, re.ASCII) or yaml.safe_load(name) != name:
        raise StageError(
            f"--name {name}: is not a name; take letters, digits, - and _, for example my-digits"
        )
    entry: dict[str, Any] = {"title": name, "licence": "not stated", "credit": "not stated"}
    mirrors = [f"{paths.CATALOGUE.parent}/mirror/{name}/"]
    if old := params.read_yaml(paths.CATALOGUE).get(name):
        if old["mirrors"] != mirrors:
            raise StageError(f"--name {name}: is taken in {paths.CATALOGUE}; choose another")
        if not replace:
            raise StageError(
                f"--name {name}: is taken in {paths.CATALOGUE}; choose another, or give --replace"
            )
        entry = {key: old[key] for key in entry}
    return entry | {"mirrors": mirrors}


def with_entry(content: str, name: str, entry: dict[str, Any]) -> str:
    """Return the text of the catalogue with an entry added, or in place of the one of that name.

    All lines of other entries, and the comments before them, stay as they are.
    """
    texts = {key: value for key, value in entry.items() if key != "files"}
    # JSON is YAML, and quotes what YAML would read as a number.
    block = [f"{name}:"]
    block += [f"  {key}: {json.dumps(value, ensure_ascii=False)}" for key, value in texts.items()]
    block += ["  files:"]
    for file, pinned in entry["files"].items():
        block += [f"    {file}:", *(f"      {key}: {value}" for key, value in pinned.items())]
    lines = content.rstrip("\n").split("\n")
    keys = [i for i, line in enumerate(lines) if re.match(r"[^\s#]", line)] + [len(lines)]
    old = [i for i in keys[:-1] if re.match(rf"{name}\s*:", lines[i])]
    if old:
        end = keys[keys.index(old[0]) + 1]
        while re.match(r"\s*(#|$)", lines[end - 1]):  # belongs to the next entry
            end -= 1
        lines[old[0] : end] = block
    else:
        lines += ["", *block]
    return "\n".join(lines) + "\n"


def write(folder: Path, source: Path, pictures: Pictures, images: UInt8) -> dict[str, Any]:
    """Write the images and labels, and which picture is which; return what `files` must pin."""
    kind = np.uint8 if len(pictures.classes) <= 256 else np.int32
    start, pinned, rows = 0, {}, []
    for prefix, part in (("train", pictures.train), ("t10k", pictures.test)):
        labels = np.array([picture.label for picture in part], kind)
        for file, array in (
            (f"{prefix}-images-idx3-ubyte", images[start : start + len(part)]),
            (f"{prefix}-labels-idx1-ubyte", labels),
        ):
            idx.write_idx(folder / f"{file}.gz", array)
            with gzip.open(folder / f"{file}.gz") as unpacked:
                sha256 = hashlib.file_digest(unpacked, "sha256").hexdigest()
                pinned[file] = {"size": unpacked.tell(), "sha256": sha256}
        for index, picture in enumerate(part):
            path = os.path.relpath(picture.name, source)
            rows.append((prefix, index, pictures.classes[picture.label], path))
        start += len(part)
    with (
        files.replacing(folder / "pictures.csv") as temporary,
        temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="") as table,
    ):
        writer = csv.writer(table, lineterminator="\n")
        writer.writerows([("part", "index", "class", "picture"), *rows])
    return pinned


def next_command(name: str, count: int) -> str:
    """Return the command that trains with `count` pictures; the parameters are for thousands."""
    now = params.read_yaml(paths.PARAMS)
    validation, batch = now["preprocess"]["validation_size"], now["train"]["batch_size"]
    command = f"dvc exp run -S fetch.dataset={name}"
    if validation > count // 5:
        validation = count // 10
        command += f" -S preprocess.validation_size={validation}"
    if batch > count - validation:
        batch = 1 + (count - validation) // 10
        command += f" -S train.batch_size={batch}"
    if (epochs := _STEPS * batch // count) > now["train"]["epochs"]:
        command += f" -S train.epochs={epochs}"
    return command


def arguments() -> argparse.Namespace:
    """Read the command line."""

    def size(value: str) -> tuple[int, int]:
        height, _, width = value.partition("x")
        if min(both := (int(height), int(width or height))) < 1:
            raise ValueError
        return both

    def share(value: str) -> float:
        if not 0 < float(value) < 1:
            raise ValueError
        return float(value)

    parser = argparse.ArgumentParser(
        prog="python -m tools.pack", description="make a data set of pictures"
    )
    add = parser.add_argument
    add("source", type=Path, help="a folder with a folder of pictures for each class; or .npz")
    add("--name", required=True, help="its name in data/datasets.yaml")
    add("--title", help="its title there; the name unless given")
    add("--size", type=size, help="N or HxW: scale to this height and width, and pad")
    add("--invert", action="store_true", help="for dark ink on light paper")
    add("--test", type=share, default=0.2, help="share to test with, without a test/ (%(default)s)")
    add("--seed", type=int, default=0, help="decides which those are (%(default)s)")
    add("--replace", action="store_true", help="make the data set of this name anew")
    return parser.parse_args()


def main() -> None:
    """Read the pictures, write the files, enter them into the catalogue, say what is next."""
    given = arguments()
    source, name = given.source, given.name
    entry = entry_of(name, given.replace)
    if given.title:
        entry["title"] = given.title
    if source.is_dir():
        pictures = from_folder(source, given.test, given.seed)
    elif source.suffix == ".npz" and source.exists():
        pictures = from_npz(source)
    else:
        raise StageError(f"{source}: is no folder and no .npz file; give one that exists")
    entry["classes"] = pictures.classes
    params.validate(entry | {"files": {}}, catalogue.DataSet, paths.CATALOGUE, name)
    images = pack([*pictures.train, *pictures.test], given.size, given.invert)
    folder = Path(entry["mirrors"][0])
    entry["files"] = write(folder, source, pictures, images)
    with files.replacing(paths.CATALOGUE) as temporary:
        temporary.write_text(
            with_entry(paths.CATALOGUE.read_text(encoding="utf-8"), name, entry), encoding="utf-8"
        )
    count = len(pictures.train)
    print(
        f"packed {count:,} pictures to train and {len(pictures.test):,} to test, of "
        f"{len(pictures.classes)} classes, {text(images.shape[1:])} pixels, into {folder}/; "
        f"state their licence in {paths.CATALOGUE}\nnext: {next_command(name, count)}"
    )


if __name__ == "__main__":
    errors.run(main)
