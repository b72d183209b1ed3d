"""Draw the figures: mistakes, successes, the confusion matrix, the training curves.

Reads   data/tensors/{train,test}_{images,labels}.npy, data/tensors/manifest.json,
        metrics/predictions.csv, metrics/history.csv
Writes  metrics/figures/{sample,mismatch,match,confusion,training}.png
        metrics/confusion.csv   the counts of the confusion matrix, for `dvc plots`
"""

import logging
import sys
import textwrap
import unicodedata
import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font, StyleFlags
from numpy.typing import NDArray
from pydantic import Field

from stages.common import errors, files, params, paths
from stages.common.errors import StageError
from stages.dataset import tensors

ROWS, COLUMNS = 2, 5  # of the grids of digits
# An image alone; hiding ticks instead of leaving them out takes twice the time.
BARE: dict[str, Any] = {"xticks": (), "yticks": (), "frame_on": False}


class PlotParams(params.Section):
    """The `plot` section of params.yaml."""

    seed: int = Field(ge=0)


def width(text: str) -> float:
    """Estimate how many small letters are as wide as a text."""
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    return len(text) + wide + 0.35 * sum(map(str.isupper, text))


def wrap(prefix: str, name: str, columns: int) -> str:
    """Break a title into at most two lines, each as wide as so many small letters."""
    characters = int(columns * len(name) / width(name))
    return "\n".join(textwrap.wrap(f"{prefix} {name}", characters, max_lines=2, placeholder=" …"))


def shorten(name: str, columns: int) -> str:
    """Leave out the middle of a longer name: its end is often what tells it from others."""
    characters = int(columns * len(name) / width(name))
    return name if len(name) <= characters else f"{name[: characters - 9]}…{name[-8:]}"


def draw_image(axes: Axes, image: tensors.UInt8, title: str) -> None:
    """Draw one image, (height, width, 1), as ink on paper."""
    axes.imshow(image[..., 0], cmap="gray_r", vmin=0, vmax=255)
    axes.set_title(title, fontsize=8, parse_math=False)  # $ is a character, and no formula


def sample(image: tensors.UInt8, name: str) -> Figure:
    """Draw the first training image."""
    figure = Figure(figsize=(3, 3), layout="constrained")
    title = wrap("first training image:", name, 40)
    draw_image(figure.subplots(subplot_kw=BARE), image, title)
    return figure


def grid(images: tensors.UInt8, predictions: pd.DataFrame, title: str, seed: int) -> Figure:
    """Draw up to ten images of `predictions` chosen at random, with predicted and true class."""
    count = min(ROWS * COLUMNS, len(predictions))
    chosen = predictions.sample(count, random_state=seed)
    figure = Figure(figsize=(9, 5), layout="constrained")
    figure.suptitle(f"{title}: {count} of {len(predictions):,}" if count else f"{title}: none")
    cells = figure.subplots(ROWS, COLUMNS, subplot_kw=BARE).ravel()
    for axes, image, row in zip(cells, images[chosen.index], chosen.itertuples(), strict=False):
        lines = (
            wrap("predicted", str(row.predicted), 26),
            wrap("true", str(row.actual), 26),
            f"confidence {row.confidence:.1%}",
        )
        draw_image(axes, image, "\n".join(lines))
    return figure


def count_pairs(predictions: pd.DataFrame, classes: list[str]) -> NDArray[np.int64]:
    """Count the images of each true class (row) that were taken for each class (column)."""
    counts = pd.crosstab(predictions["actual"], predictions["predicted"])
    return counts.reindex(index=classes, columns=classes, fill_value=0).to_numpy()


def write_pairs(path: Path, matrix: NDArray[np.int64], classes: list[str]) -> None:
    """Write a row for each pair of classes that occurs: actual, predicted, count.

    The diagonal comes first and whole, so that both axes of a plot have the classes in their order.
    """
    diagonal = np.eye(len(classes), dtype=np.bool_)
    pairs = [*np.argwhere(diagonal), *np.argwhere(matrix * ~diagonal)]
    rows = [(classes[row], classes[column], matrix[row, column]) for row, column in pairs]
    table = pd.DataFrame(rows, columns=["actual", "predicted", "count"])
    table.to_csv(path, index=False, lineterminator="\n")


def confusion(matrix: NDArray[np.int64], classes: list[str]) -> Figure:
    """Draw how often each class was taken for each other; the shade marks the mistakes."""
    count = len(classes)
    mistakes = matrix * ~np.eye(count, dtype=np.bool_)
    names = [shorten(name, 30) for name in classes]
    longest = max(map(width, names))
    # Inches of a cell: as small as the counts allow, and the matrix at most 54 inches wide.
    size, cell = (8, 0.42) if count <= 20 else (6, 0.16)
    cell = max(cell, 0.0095 * size * len(str(matrix.max())) + 0.03)
    legible = cell * count < 54
    cell = min(cell, 54 / count)
    side = max(2.6 + cell * count + 0.085 * max(longest - 12, 0), 4.4)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    # The root keeps single mistakes visible; half of the scale keeps the counts on it legible.
    shade = np.sqrt(mistakes)
    axes.imshow(shade, cmap="Oranges", vmin=0, vmax=2 * max(shade.max(), 1))
    for row, column in np.argwhere(matrix) if legible else ():
        weight = "bold" if row == column else "normal"
        text = str(matrix[row, column])
        axes.text(column, row, text, ha="center", va="center", fontsize=size, weight=weight)
    axes.set_xticks(range(count), names, parse_math=False)
    axes.set_yticks(range(count), names, parse_math=False)
    if count > 20:
        axes.tick_params(labelsize=min(size, 60 * cell))
    if longest >= 3:
        axes.tick_params(axis="x", rotation=90)
    axes.set_title("confusion matrix of the test images", wrap=True)
    axes.set(xlabel="predicted", ylabel="true")
    return figure


def training(history: pd.DataFrame) -> Figure:
    """Draw loss and accuracy over the steps, with the validation figures of each epoch."""
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    figure.suptitle("training")
    for axes, name in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        axes.plot(history["step"], history[name], label="training", linewidth=1)
        validation = history.dropna(subset=f"validation_{name}")
        if len(validation):
            axes.plot(validation["step"], validation[f"validation_{name}"], "o", label="validation")
        axes.set(xlabel="step", ylabel=name)
        axes.grid(alpha=0.3)
        axes.legend()
    # The first steps are far off: a linear axis would flatten all that follows.
    figure.axes[0].set_yscale("log")
    figure.axes[1].set_ylim(top=1.0)
    return figure


def read_table(path: Path, columns: set[str], **options: Any) -> pd.DataFrame:
    """Read a table of metrics/; raise StageError that names it if it is missing or damaged."""
    try:
        table: pd.DataFrame = pd.read_csv(path, **options)
    except FileNotFoundError:
        raise StageError(f"{path}: not found; run `dvc repro`") from None
    except ValueError as error:
        raise StageError(f"{path}: not a table: {error}; run `dvc repro`") from None
    if missing := columns - set(table.columns):
        lacking = ", ".join(sorted(missing))
        raise StageError(f"{path}: lacks the column(s) {lacking}; run `dvc repro`")
    return table


def choose_fonts(names: list[str]) -> None:
    """Add fonts of this machine for characters that matplotlib's own font lacks.

    Prints a warning if there are none. Names that need no other font are drawn the same everywhere.
    """
    default = font_manager.get_font(font_manager.findfont("DejaVu Sans"))
    lacking = {ord(character) for character in "".join(names)} - set(default.get_charmap())
    families = ["DejaVu Sans"]
    # The list that matplotlib keeps does not know of fonts that were installed since.
    for path in sorted(font_manager.findSystemFonts()) if lacking else ():
        try:
            font = FT2Font(path)
            found = lacking & set(font.get_charmap())
            styled = font.style_flags & (StyleFlags.BOLD | StyleFlags.ITALIC)
            if found and font.scalable and not styled:
                font_manager.fontManager.addfont(path)
                families.append(font.family_name)
                lacking -= found
        except (OSError, RuntimeError):  # a font that FreeType or matplotlib cannot read
            continue
    matplotlib.rcParams["font.family"] = families
    if lacking:
        shown = " ".join(map(chr, sorted(lacking)[:10])) + (" ..." if len(lacking) > 10 else "")
        print(
            f"warning: no font on this machine has {shown}: class names show boxes in the figures; "
            "install one (Noto has all scripts), then run `dvc repro --force --single-item plot`",
            file=sys.stderr,
        )


def main() -> None:
    """Draw all figures, then replace the old ones."""
    settings = params.load("plot", PlotParams)
    classes = tensors.read_manifest().classes
    train_images, train_labels = tensors.load("train")
    test_images, _ = tensors.load("test")
    # A class may be named 7 or NA: names stay text.
    text = {"dtype": {"actual": str, "predicted": str}, "keep_default_na": False}
    predictions = read_table(paths.PREDICTIONS, {"actual", "predicted", "confidence"}, **text)
    curves = {"loss", "accuracy", "validation_loss", "validation_accuracy"}
    history = read_table(paths.HISTORY, {"step", *curves})
    if len(predictions) != len(test_images):
        raise StageError(
            f"{paths.PREDICTIONS}: must have a row for each of the {len(test_images)} test images, "
            f"but has {len(predictions)}; run `dvc repro`"
        )
    if unknown := {*predictions["actual"], *predictions["predicted"]} - set(classes):
        raise StageError(
            f"{paths.PREDICTIONS}: names the class {min(unknown)!r}, which is not in "
            f"{paths.MANIFEST}; run `dvc repro`"
        )
    matched = predictions["actual"] == predictions["predicted"]
    matrix = count_pairs(predictions, classes)

    # The user's own matplotlib settings must not reach the committed files.
    with matplotlib.rc_context(), ExitStack() as outputs, warnings.catch_warnings():
        matplotlib.rcdefaults()
        choose_fonts(classes)
        logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # no bold: so be it
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # said already
        figures = {
            "sample": sample(train_images[0], classes[train_labels[0].argmax()]),
            "mismatch": grid(test_images, predictions[~matched], "misclassified", settings.seed),
            "match": grid(test_images, predictions[matched], "correctly classified", settings.seed),
            "confusion": confusion(matrix, classes),
            "training": training(history),
        }
        for name, figure in figures.items():
            path = outputs.enter_context(files.replacing(paths.FIGURES / f"{name}.png"))
            # Without its version in the file, another matplotlib may still give the same bytes.
            figure.savefig(path, format="png", dpi=110, metadata={"Software": None})
        write_pairs(outputs.enter_context(files.replacing(paths.CONFUSION)), matrix, classes)
    print(f"{len(figures)} figures in {paths.FIGURES}: {(~matched).sum()} misclassified images")


if __name__ == "__main__":
    errors.run(main)
