"""Draw the figures: mistakes, successes, the confusion matrix, the training curve.

Reads   data/tensors/{train,test}_{images,labels}.npy, data/tensors/manifest.json,
        metrics/predictions.csv, metrics/history.csv
Writes  metrics/figures/{sample,mismatch,match,confusion,training}.png
"""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
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


def show(axes: Axes, image: tensors.UInt8, title: str) -> None:
    """Draw one image, (height, width, 1), ink on paper."""
    axes.imshow(image[..., 0], cmap="gray_r", vmin=0, vmax=255)
    axes.set_title(title, fontsize=8)


def sample(image: tensors.UInt8, name: str) -> Figure:
    """Draw the first training image."""
    figure = Figure(figsize=(3, 3), layout="constrained")
    show(figure.subplots(subplot_kw=BARE), image, f"first training image: {name}")
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
            f"predicted {row.predicted}",
            f"true {row.actual}",
            f"confidence {row.confidence:.1%}",
        )
        show(axes, image, "\n".join(lines))
    return figure


def confusion(predictions: pd.DataFrame, classes: list[str]) -> Figure:
    """Draw how often each class was taken for each other; the shade marks the mistakes."""
    counts = pd.crosstab(predictions["actual"], predictions["predicted"])
    matrix = counts.reindex(index=classes, columns=classes, fill_value=0).to_numpy()
    mistakes = matrix * ~np.eye(len(classes), dtype=np.bool_)
    side = 2.6 + 0.42 * len(classes)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    # The root keeps single mistakes visible; half of the scale keeps the counts on it legible.
    shade = np.sqrt(mistakes)
    axes.imshow(shade, cmap="Oranges", vmin=0, vmax=2 * max(shade.max(), 1))
    for (row, column), count in np.ndenumerate(matrix):
        if count:
            weight = "bold" if row == column else "normal"
            axes.text(column, row, str(count), ha="center", va="center", fontsize=8, weight=weight)
    axes.set_xticks(range(len(classes)), classes)
    if max(map(len, classes)) > 2:
        axes.tick_params(axis="x", rotation=90)
    axes.set_yticks(range(len(classes)), classes)
    axes.set(title="confusion matrix of the test images", xlabel="predicted", ylabel="true")
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
    except (ValueError, pd.errors.ParserError) as error:
        raise StageError(f"{path}: not a table: {error}; run `dvc repro --force`") from None
    if missing := columns - set(table.columns):
        raise StageError(
            f"{path}: lacks the column(s) {', '.join(sorted(missing))}; run `dvc repro --force`"
        )
    return table


def main() -> None:
    """Draw all figures, then replace the old ones."""
    p = params.load("plot", PlotParams)
    classes = tensors.read_manifest().classes
    train_images, train_labels = tensors.load("train")
    test_images, _ = tensors.load("test")
    # A class may be named 7 or NA: names stay text.
    text = {"dtype": {"actual": str, "predicted": str}, "keep_default_na": False}
    predictions = read_table(paths.PREDICTIONS, {"actual", "predicted", "confidence"}, **text)
    history = read_table(paths.HISTORY, {"step", "loss", "accuracy"})
    if len(predictions) != len(test_images):
        raise StageError(
            f"{paths.PREDICTIONS}: must have a row for each of the {len(test_images)} test images, "
            f"but has {len(predictions)}; run `dvc repro`"
        )
    matched = predictions["actual"] == predictions["predicted"]

    # The user's own matplotlib settings must not reach the committed files.
    with matplotlib.rc_context(), ExitStack() as outputs:
        matplotlib.rcdefaults()
        figures = {
            "sample": sample(train_images[0], classes[train_labels[0].argmax()]),
            "mismatch": grid(test_images, predictions[~matched], "misclassified", p.seed),
            "match": grid(test_images, predictions[matched], "correctly classified", p.seed),
            "confusion": confusion(predictions, classes),
            "training": training(history),
        }
        for name, figure in figures.items():
            path = outputs.enter_context(files.replacing(paths.FIGURES / f"{name}.png"))
            # Without its version in the file, another matplotlib may still give the same bytes.
            figure.savefig(path, format="png", dpi=110, metadata={"Software": None})
    print(f"{len(figures)} figures in {paths.FIGURES}: {(~matched).sum()} misclassified images")


if __name__ == "__main__":
    errors.run(main)
