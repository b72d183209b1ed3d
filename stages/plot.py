"""Draw the figures: mistakes, successes, the confusion matrix, the training curves.

Reads   data/tensors/{train,test}_{images,labels}.npy, data/tensors/manifest.json,
        metrics/predictions.csv, metrics/history.csv
Writes  metrics/figures/{sample,mismatch,match,confusion,training}.png
        metrics/confusion.csv   the counts of the confusion matrix, for `dvc plots`
"""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import Field

from stages.common import errors, files, params, paths, tensors
from stages.common.errors import StageError
from stages.figures import drawing, names


class PlotParams(params.Section):
    """The `plot` section of params.yaml."""

    seed: int = Field(ge=0, lt=2**32)  # as NumPy wants it


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


def main() -> None:
    """Draw all figures, then replace the old ones."""
    settings = params.load("plot", PlotParams)
    classes = tensors.read_manifest().classes
    train_images, train_labels = tensors.load("train")
    test_images, _ = tensors.load("test")
    # A class may be named 7 or NA: names stay text.
    types = {"actual": str, "predicted": str, "confidence": float}
    text = {"dtype": types, "keep_default_na": False}
    predictions = read_table(paths.PREDICTIONS, {*types}, **text)
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
    right = predictions["actual"] == predictions["predicted"]
    matched, missed = predictions[right], predictions[~right]
    matrix = count_pairs(predictions, classes)

    # A matplotlibrc in the current folder must not reach the committed files.
    with ExitStack() as outputs:
        matplotlib.rcdefaults()
        names.choose_fonts(classes)
        figures = {
            "sample": drawing.sample(train_images[0], classes[train_labels[0].argmax()]),
            "mismatch": drawing.grid(test_images, missed, "misclassified", settings.seed),
            "match": drawing.grid(test_images, matched, "correctly classified", settings.seed),
            "confusion": drawing.confusion(matrix, classes),
            "training": drawing.training(history),
        }
        for name, figure in figures.items():
            path = outputs.enter_context(files.replacing(paths.FIGURES / f"{name}.png"))
            # Without its version in the file, another matplotlib may still give the same bytes.
            figure.savefig(path, format="png", dpi=110, metadata={"Software": None})
        write_pairs(outputs.enter_context(files.replacing(paths.CONFUSION)), matrix, classes)
    print(f"{len(figures)} figures in {paths.FIGURES}: {len(missed)} misclassified images")


if __name__ == "__main__":
    errors.run(main)
