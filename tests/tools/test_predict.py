"""Pictures as the network wants them, and the way from a folder of pictures to a prediction."""

import gzip
import re
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import ROOT, Project
from PIL import Image, ImageDraw, ImageOps

from tools.predict import prepare

DIGITS = np.frombuffer(
    gzip.decompress((ROOT / "data/mirror/mnist/t10k-images-idx3-ubyte.gz").read_bytes())[16:],
    np.uint8,
).reshape(-1, 28, 28)[:10]


def cut(digit: np.ndarray) -> np.ndarray:
    """Return a digit with a pixel around it."""
    rows, columns = (np.flatnonzero(digit.any(axis)) for axis in (1, 0))
    return digit[rows[0] - 1 : rows[-1] + 2, columns[0] - 1 : columns[-1] + 2]


def photograph(digit: np.ndarray, light: Any = 220, pen: float = 0.2) -> Image.Image:
    """Draw a digit, 90 pixels wide, off the centre of a sheet, with noise."""
    ink = Image.new("L", (300, 400))
    ink.paste(Image.fromarray(digit).resize((90, 90)), (170, 40))
    noise = np.random.default_rng(0).normal(0, 4, (400, 300))
    sheet = light * (1 - np.asarray(ink) / 255 * (1 - pen)) + noise
    return Image.fromarray(sheet.clip(0, 255).astype(np.uint8))


def shadow(digit: np.ndarray) -> Image.Image:
    """Photograph with a lamp on one side, and the edge of a shadow across the digit."""
    y, x = np.mgrid[0:400, 0:300]
    return photograph(digit, (130 + x / 3) * (1 - 0.35 / (1 + np.exp((y - x / 4 - 40) / 15))))


def dust(digit: np.ndarray) -> Image.Image:
    sheet = photograph(digit)
    for x, y in ((15, 350), (50, 20), (280, 250)):
        ImageDraw.Draw(sheet).ellipse((x, y, x + 3, y + 3), 60)
    return sheet


@pytest.mark.parametrize(
    "picture",
    [
        Image.fromarray,
        lambda digit: Image.fromarray(255 - digit),
        lambda digit: ImageOps.scale(Image.fromarray(255 - cut(digit)), 20),
        photograph,
        lambda digit: photograph(digit, light=110, pen=0.5),
        lambda digit: photograph(digit, light=60, pen=3.5),  # chalk
        lambda digit: photograph(digit).resize((1800, 2400)),
        shadow,
        dust,
    ],
    ids=["as it is", "inverted", "tight", "paper", "grey", "chalk", "large", "shadow", "dust"],
)
def test_pictures_become_what_mnist_has(picture: Callable[[np.ndarray], Image.Image]) -> None:
    likeness = [
        np.corrcoef(prepare(picture(digit), (28, 28)).ravel(), digit.ravel())[0, 1]
        for digit in DIGITS
    ]
    # Where the centre of mass is between two pixels, a digit may come out a pixel from there.
    assert np.median(likeness) > 0.95
    assert min(likeness) > 0.6


@pytest.mark.parametrize("size", [(28, 28), (56, 56), (12, 16)])
@pytest.mark.parametrize("thickness", [2, 30])
@pytest.mark.parametrize("length", [90, 240])
def test_box_and_centre(size: tuple[int, int], thickness: int, length: int) -> None:
    sheet = Image.new("L", (300, 400), 230)
    ImageDraw.Draw(sheet).rectangle((20, 50, 19 + thickness, 49 + length), 30)
    found = prepare(sheet, size)
    assert found.shape == size
    rows, columns = (np.flatnonzero((found > 99).any(axis)) for axis in (1, 0))
    box = 20 / 28 * min(size)
    assert abs(len(rows) - box) <= 1
    assert abs(len(columns) - max(1, box * thickness / length)) <= 1
    for middle, length_ in ((rows.mean(), size[0]), (columns.mean(), size[1])):
        assert abs(middle - length_ // 2) <= 0.75
    assert (found.min(), found[rows[1] : rows[-1]].max()) == (0, 255)


@pytest.mark.parametrize(
    "sheet",
    [
        np.full((800, 600), 255.0),
        np.zeros((28, 28)),
        np.full((1, 1), 200.0),
        np.full((700, 1), 10.0),
        200 + np.random.default_rng(0).normal(0, 8, (800, 600)),
        np.linspace(90, 230, 600) * np.ones((800, 1)),
    ],
    ids=["white", "black", "a pixel", "a line", "noise", "shadow"],
)
def test_blank_sheets(sheet: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"^nothing is drawn on it$"):
        prepare(Image.fromarray(sheet.clip(0, 255).astype(np.uint8)), (28, 28))


def test_pictures_in_and_out(project: Project) -> None:
    def run(tool: str, *arguments: str, **options: Any) -> str:
        command = (sys.executable, "-m", f"tools.{tool}")
        return project.run(*command, *arguments, **options)

    assert run("pack", "pictures", "--name", "mine", status=1) == (
        "error: pictures: is no folder and no .npz file; give one that exists\n"
    )
    random = np.random.default_rng(0)
    for right, name in enumerate(("left", "right")):
        folder = project.path / "pictures" / name
        folder.mkdir(parents=True)
        for index in range(60):
            picture = random.integers(180, 256, (20 + index % 5, 20), dtype=np.uint8)
            picture[:, 3 + 10 * right : 7 + 10 * right] = 0
            Image.fromarray(picture).save(folder / f"{name}{index}.{('png', 'bmp')[index % 2]}")
    printed = run("pack", "pictures", "--name", "mine", "--size", "12", "--invert")
    assert "packed 96 pictures to train and 24 to test, of 2 classes, 12x12 pixels" in printed

    # What it says is next, but without DVC, and the time that its figures take.
    settings = re.findall(r"-S (\w+)\.(\w+)=(\S+)", printed)
    assert ("fetch", "dataset", "mine") in settings
    for section, key, value in settings:
        project.set_params({section: {key: yaml.safe_load(value)}})
    for stage in ("fetch", "preprocess", "train"):
        project.stage(stage)

    files = [f"pictures/{name}/{name}{index}.png" for name in ("left", "right") for index in (0, 2)]
    Image.new("L", (9, 9), 99).save(project.path / "blank.png")
    plain = run("predict", *files, "--plain", "--invert").splitlines()
    for file, line in zip(files, plain, strict=True):
        name = file.split("/")[1]
        other = {"left": "right", "right": "left"}[name]
        found = re.fullmatch(rf"{file}: {name} \((0\.\d\d|1\.00)\), or {other} \((0\.\d\d)\)", line)
        assert found, line
        assert abs(float(found[1]) + float(found[2]) - 1) < 0.02
        assert float(found[1]) > 0.6
    # Bad ones in between, and prepared as MNIST's.
    printed = run("predict", "blank.png", "no.png", "params.yaml", files[0], status=1)
    *bad, good = sorted(printed.splitlines())
    assert good.startswith(f"{files[0]}: ")
    assert [line.partition(" '")[0] for line in bad] == [
        "error: blank.png: nothing is drawn on it; write larger or darker, or give --plain",
        "error: no.png: not a picture that can be read (No such file or directory); replace or "
        "delete it",
        "error: params.yaml: not a picture that can be read (cannot identify image file",
    ]

    manifest = project.path / "data/tensors/manifest.json"
    manifest.write_text(manifest.read_text().replace('"left"', '"left", "up"'))
    assert run("predict", files[0], status=1) == (
        "error: data/model/model.keras: tells 2 classes apart, but data/tensors/manifest.json "
        "names 3; run `dvc repro`\n"
    )
