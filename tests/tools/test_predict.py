"""Pictures as the network wants them, and the way from a folder of pictures to a prediction."""

import gzip
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageOps
from project import ROOT, Project

from stages import fetch, preprocess
from tools import pack
from tools.predict import prepare

DIGITS = np.frombuffer(
    gzip.decompress((ROOT / "data/mirror/mnist/t10k-images-idx3-ubyte.gz").read_bytes())[16:],
    np.uint8,
).reshape(-1, 28, 28)[:5]


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


@pytest.mark.parametrize("size", [(28, 28), (12, 16)])
@pytest.mark.parametrize(("thickness", "length"), [(2, 90), (30, 240)])
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
        np.linspace(60, 230, 600) * np.ones((800, 1)),
    ],
    ids=["white", "black", "a pixel", "a line", "noise", "shadow"],
)
def test_blank_sheets(sheet: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"^nothing is drawn on it; write larger or darker, or "):
        prepare(Image.fromarray(sheet.clip(0, 255).astype(np.uint8)), (28, 28))


# One process for training and all ways to prepare pictures: TensorFlow takes seconds to import.
RUNS = """
import runpy, sys
pictures = sys.argv[1:]
for program in (
    ["stages.train"],
    ["tools.predict", *pictures],
    ["tools.predict", *pictures, "--plain", "--invert"],
    ["tools.predict", *pictures, "--plain"],
):
    sys.argv[1:], status = program[1:], 0
    try:
        runpy.run_module(program[0], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        status = int(end.code)
    print("status", status)
"""


def test_pictures_in_and_out(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project.path)
    random = np.random.default_rng(0)
    for name in ("across", "up"):
        folder = Path("pictures", name)
        folder.mkdir(parents=True)
        for index in range(40):
            picture = random.integers(180, 256, (24, 24), dtype=np.uint8)
            strip = picture if name == "across" else picture.T
            strip[9 + index % 5 : 13 + index % 5, 3:21] = 0
            Image.fromarray(picture).save(folder / f"{name}{index}.png")
    arguments = ["pack", "pictures", "--name", "mine", "--size", "12", "--invert"]
    monkeypatch.setattr(sys, "argv", arguments)
    project.set_params({"fetch": {"dataset": "mine"}, "preprocess": {"validation_size": 6}})
    project.set_params({"train": {"epochs": 16}})
    for step in (pack, fetch, preprocess):
        step.main()

    Image.new("L", (9, 9), 99).save("blank.png")
    good = {f"pictures/{name}/{name}{i}.png": name for name in ("across", "up") for i in (0, 2)}
    command = (sys.executable, "-uc", RUNS, "no.png", *good, "blank.png")
    _, printed = project.run(*command).split("status 0\n")
    prepared, inverted, plain, _ = (lines.splitlines() for lines in printed.split("status 1\n"))
    for lines in (prepared, inverted):
        for line, (file, name) in zip(lines[1:5], good.items(), strict=True):
            other = {"across": "up", "up": "across"}[name]
            match = re.fullmatch(rf"{file}: {name} \((\d\.\d\d)\), or {other} \((\d.\d\d)\)", line)
            assert match, line
            assert abs(float(match[1]) + float(match[2]) - 1) < 0.02
            assert float(match[1]) > 0.6
    assert inverted[1:] != plain[1:]
    # Bad ones do not keep others from theirs.
    missing = "error: no.png: cannot be read: [Errno 2] No such file or directory: 'no.png'"
    blank = "error: blank.png: cannot be read: nothing is drawn on it; write larger or darker, or"
    assert [prepared[0], prepared[5], plain[0]] == [missing, f"{blank} give --plain", missing]
