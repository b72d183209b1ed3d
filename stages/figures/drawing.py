"""The figures: each a function of arrays and tables that returns what to save."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from stages.common import tensors
from stages.figures.names import shorten, width, wrap

ROWS, COLUMNS = 2, 5  # of the grids of digits
# An image alone; hiding ticks instead of leaving them out takes twice the time.
BARE: dict[str, Any] = {"xticks": (), "yticks": (), "frame_on": False}


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
