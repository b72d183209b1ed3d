"""Make a data set of pictures: pack them as IDX files, and add it to the catalogue.

Reads   SOURCE: a folder with a folder of pictures for each class, or with train/ and test/ that
        have such folders; or an .npz file as Keras (x_train, y_train, x_test, y_test) or MedMNIST
        (train_images, train_labels, test_images, test_labels) have them
Writes  data/mirror/NAME/{train,t10k}-{images-idx3,labels-idx1}-ubyte.gz
        data/mirror/NAME/pictures.csv   which picture each image is: part, index, class, picture
        data/datasets.yaml              the entry NAME

Nothing is written before everything is read. The packed images are in memory, two bytes a pixel:
94 MB for 60,000 of 28x28.
"""

import argparse
import gzip
import hashlib
import io
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from PIL import Image, ImageOps
from ruamel.yaml import YAML
from tqdm import tqdm

from stages.common import errors, files, params, paths
from stages.common.errors import StageError
from stages.common.tensors import UInt8
from stages.dataset import idx

KERAS = ("x_train", "y_train", "x_test", "y_test")
MEDMNIST = ("train_images", "train_labels", "test_images", "test_labels")


class Picture(NamedTuple):
    """A picture: its part (train or t10k), its class, and the path that messages call it by."""

    part: str
    label: Any
    name: str
    source: Path | UInt8


def from_folder(folder: Path, share: float, seed: int) -> list[Picture]:
    """Find the pictures, those to train first; without a test/, `share` of each class is to test.

    The names of the files alone decide which: a picture moved to another class changes little else.
    """

    def order(name: str) -> tuple[bytes, str]:
        file = os.fsencode(f"{seed}/{Path(name).name}")
        return hashlib.sha256(file).digest(), name

    parts = [folder / "train", folder / "test"] if (folder / "test").is_dir() else [folder]
    inside = {path.name for part in parts for path in part.iterdir() if path.is_dir()}
    pictures = list[Picture]()
    for label in sorted(name for name in inside if not name.startswith(".")):
        train, *test = (sorted(find(part / label), key=order) for part in parts)
        if not test:
            count = min(max(1, round(share * len(train))), len(train) - 1)
            train, test = train[count:], [train[:count]]
        for part_name, names in (("train", train), ("t10k", test[0])):
            pictures += [Picture(part_name, label, name, Path(name)) for name in names]
    if left_out := sum(path.is_file() for path in folder.rglob("*")) - len(pictures):
        print(f"left out {left_out} files that are hidden or no pictures of a class")
    return sorted(pictures, key=lambda picture: (picture.part == "t10k", order(picture.name)))


def find(folder: Path) -> list[str]:
    """Return the pictures of a class, however deep they are; raise StageError if it has none."""
    pictures = [
        str(path)
        for path in folder.rglob("*")
        if Image.registered_extensions().get(path.suffix.lower()) in Image.OPEN
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    if not pictures:
        raise StageError(f"{folder}: has no picture that can be read; add some or delete the class")
    return pictures


def from_npz(path: Path) -> list[Picture]:
    """Read an .npz file; its classes are its labels."""
    pictures = list[Picture]()
    try:
        with np.load(path, allow_pickle=False) as archive:
            keys = KERAS if KERAS[0] in archive else MEDMNIST
            for part, key, of in (("train", *keys[:2]), ("t10k", *keys[2:])):
                images = archive[key].astype(np.uint8, casting="equiv")
                pairs = zip(archive[of].ravel().tolist(), images, strict=True)
                for index, (label, image) in enumerate(pairs):
                    pictures.append(Picture(part, label, f"{path}/{key}[{index}]", image))
    except Exception as error:  # a damaged file makes NumPy raise almost anything
        raise StageError(
            f"{path}: must be a folder, or an .npz file with {', '.join(KERAS)} (or "
            f"{', '.join(MEDMNIST)}), images uint8 and a label for each, but: {error}"
        ) from None
    return pictures


def read(
    source: Path | UInt8, size: tuple[int, int] | None = None, invert: bool = False
) -> Image.Image:
    """Read a picture as 8-bit grey, upright, what is transparent in it white.

    With a size (height, width), it is scaled to fit, and padded with the median of its outermost
    pixels. Of several frames the first is taken. If it is damaged, Pillow raises almost anything.
    """
    image = Image.open(source) if isinstance(source, Path) else Image.fromarray(source.squeeze())
    with image:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits, which some formats have in 32
        image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("L")
    if size:
        pixels = np.asarray(image)
        border = np.concatenate([*pixels[[0, -1]], *pixels.T[[0, -1]]])
        image = ImageOps.pad(image, size[::-1], color=int(np.median(border)))
    return ImageOps.invert(image) if invert else image


def pack(pictures: list[Picture], size: tuple[int, int] | None, invert: bool) -> UInt8:
    """Return the pictures as an array (N, height, width), with a progress bar on a terminal.

    Raises StageError if one cannot be read, or has another size than the first.
    """
    images: list[UInt8] = []
    for _, _, name, source in tqdm(pictures, "pack", unit=" pictures", disable=None):
        try:
            images.append(np.asarray(read(source, size, invert)))
        except Exception as error:
            raise StageError(f"{name}: cannot be read ({error}); replace or delete it") from None
        if images[-1].shape != images[0].shape:
            raise StageError(
                f"{name}: has height and width {images[-1].shape}, but {pictures[0].name} has "
                f"{images[0].shape}; scale them all, for example with --size 28"
            )
    return np.stack(images)


def write(
    folder: Path, source: Path, classes: list[Any], pictures: list[Picture], images: UInt8
) -> dict[str, Any]:
    """Write the images and labels, and which picture is which; return what `files` must pin."""
    numbers = {label: number for number, label in enumerate(classes)}
    label_type = np.uint8 if len(classes) <= 256 else np.int32
    pinned, rows = {}, []
    for part in ("train", "t10k"):
        chosen = [picture for picture in pictures if picture.part == part]
        for index, (_, label, name, _) in enumerate(chosen):
            rows.append((part, index, label, os.path.relpath(name, source)))
        labels = np.array([numbers[picture.label] for picture in chosen], label_type)
        own, images = images[: len(chosen)], images[len(chosen) :]
        for kind, content in (("images-idx3-ubyte", own), ("labels-idx1-ubyte", labels)):
            path = folder / f"{part}-{kind}.gz"
            idx.write_idx(path, content)
            unpacked = gzip.decompress(path.read_bytes())
            sha256 = hashlib.sha256(unpacked).hexdigest()
            pinned[path.stem] = {"size": len(unpacked), "sha256": sha256}
    table = pd.DataFrame(rows, columns=["part", "index", "class", "picture"])
    with files.replacing(folder / "pictures.csv") as temporary:
        table.to_csv(temporary, index=False, lineterminator="\n", errors="surrogateescape")
    return pinned


def add_entry(name: str, entry: dict[str, Any]) -> None:
    """Write an entry into the catalogue, in place of the one of that name; keep all other lines."""
    yaml, block = YAML(), io.StringIO()
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.dump({name: entry}, block)
    content = paths.CATALOGUE.read_text(encoding="utf-8").rstrip("\n") + "\n"
    # An entry ends with its last indented line: comments and gaps after it belong to the next.
    old = rf"^{name}:.*\n(?:\n* .*\n)*"
    changed, found = re.subn(old, lambda _: block.getvalue(), content, flags=re.MULTILINE)
    if not found:
        changed += f"\n{block.getvalue()}"
    with files.replacing(paths.CATALOGUE) as temporary:
        temporary.write_text(changed, encoding="utf-8")


def arguments() -> argparse.Namespace:
    """Read the command line."""

    def size(value: str) -> tuple[int, int]:
        height, _, width = value.partition("x")
        return int(height), int(width or height)

    parser = argparse.ArgumentParser(
        prog="python -m tools.pack", description="make a data set of pictures"
    )
    add = parser.add_argument
    add("source", type=Path, help="a folder with a folder of pictures for each class; or .npz")
    add("--name", required=True, help="its name in data/datasets.yaml")
    add("--title", help="its title there; the name unless given")
    add("--size", type=size, help="N or HxW: scale to this height and width, and pad")
    add("--invert", action="store_true", help="for dark ink on light paper")
    add("--test", type=float, default=0.2, help="share to test with, without a test/ (%(default)s)")
    add("--seed", type=int, default=0, help="decides which those are (%(default)s)")
    add("--replace", action="store_true", help="make the data set of this name anew")
    return parser.parse_args()


def main() -> None:
    """Read the pictures, write the files, enter them into the catalogue, say what is next."""
    given = arguments()
    source, name = given.source, given.name
    folder = paths.CATALOGUE.parent / "mirror" / name
    # YAML and DVC's command line would read a number as a number.
    if not re.fullmatch("[A-Za-z][A-Za-z0-9_-]*", name):
        raise StageError(f"--name {name}: must be letters, digits, - and _, such as my-digits")
    old = params.read_yaml(paths.CATALOGUE).get(name, {})
    mirrors = [f"{folder}/"]
    if old and not (given.replace and old["mirrors"] == mirrors):  # others may be published data
        raise StageError(
            f"--name {name}: is taken in {paths.CATALOGUE}; choose another, or give --replace if "
            "this tool made it"
        )
    pictures = from_folder(source, given.test, given.seed) if source.is_dir() else from_npz(source)
    classes = sorted({picture.label for picture in pictures})
    if len(classes) < 2:
        raise StageError(
            f"{source}: has pictures of {len(classes)} classes, but needs two or more; move those "
            "of each class into a folder with its name"
        )
    images = pack(pictures, given.size, given.invert)
    entry = {"title": name, "licence": "not stated", "credit": "not stated", **old}
    entry |= {"title": given.title or entry["title"], "classes": [*map(str, classes)]}
    entry |= {"mirrors": mirrors, "files": write(folder, source, classes, pictures, images)}
    add_entry(name, entry)
    train = sum(picture.part == "train" for picture in pictures)
    # The parameters are for tens of thousands: with fewer, train for 300 steps of 64 at least.
    validation, epochs = train // 10, 1 + 300 * 64 // train
    print(
        f"packed {train:,} pictures to train and {len(pictures) - train:,} to test, of "
        f"{len(classes)} classes, {images.shape[1]}x{images.shape[2]} pixels, into {folder}/; "
        f"state their licence in {paths.CATALOGUE}\nnext: dvc exp run -S fetch.dataset={name} "
        f"-S preprocess.validation_size={validation} -S train.epochs={epochs}"
    )


if __name__ == "__main__":
    errors.run(main)
