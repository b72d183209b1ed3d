"""Train the network.

Reads   data/tensors/{train,validation}_{images,labels}.npy
Writes  data/model/model.keras   the trained network with its optimizer, as stock Keras loads it
        metrics/history.csv      loss and accuracy along the way
        metrics/training.json    final loss and accuracy on training and validation images
"""

import csv
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field
from tqdm import tqdm

from stages.common import errors, files, params, paths
from stages.common.errors import StageError
from stages.dataset import tensors
from stages.model import runtime

if TYPE_CHECKING:
    import keras

    from stages.model import training


SECONDS_BETWEEN_LINES = 10


class TrainParams(params.Section):
    """The `train` section of params.yaml."""

    seed: int = Field(ge=0, lt=2**32)
    epochs: int = Field(ge=1)
    batch_size: int = Field(ge=2)
    learning_rate: float = Field(gt=0)
    warmup: float = Field(ge=0, lt=1)
    momentum: float = Field(ge=0, lt=1)
    label_smoothing: float = Field(ge=0, lt=1)
    shift: int = Field(ge=0, le=8)
    distortion: float = Field(ge=0, le=0.5)
    precision: Literal["float32", "mixed_bfloat16"]
    threads: int = Field(ge=1, le=256)
    instructions: runtime.Instructions


def load(p: TrainParams) -> tuple["training.Set", "training.Set"]:
    """Map the training and the validation tensors; raise StageError if they cannot train."""
    images, labels = tensors.load("train")
    if len(images) < p.batch_size:
        raise StageError(
            f"{paths.PARAMS}: train.batch_size is {p.batch_size}, but there are only "
            f"{len(images)} training images; lower it or prepare more images"
        )
    if min(images.shape[1:3]) < 4:
        raise StageError(
            f"{paths.TENSORS}/train_images.npy: images are {images.shape[1]}x{images.shape[2]}, "
            "but the network halves them twice: they must be at least 4x4"
        )
    if labels.any(axis=0).sum() < 2:
        raise StageError(
            f"{paths.TENSORS}/train_labels.npy: all images are of one class; "
            "raise preprocess.max_images"
        )
    return (images, labels), tensors.load("validation")


def show(rows: Iterable["training.Row"], images: int) -> Iterator["training.Row"]:
    """Pass the rows on and show the progress towards `images` on stderr.

    A bar on a terminal, elsewhere a line every `SECONDS_BETWEEN_LINES` at most.
    """
    start = spoke = time.monotonic()
    with tqdm(total=images, desc="train", unit=" images", disable=None) as bar:
        for row in rows:
            bar.set_postfix(loss=f"{row.loss:.4f}", accuracy=f"{row.accuracy:.4f}", refresh=False)
            bar.update(row.images_seen - bar.n if not bar.disable else 0)
            now = time.monotonic()
            if bar.disable and now - spoke > SECONDS_BETWEEN_LINES:
                spoke, rate = now, row.images_seen / (now - start)
                print(
                    f"train: {row.images_seen:,} of {images:,} images, loss {row.loss:.4f}, "
                    f"accuracy {row.accuracy:.4f}, {rate:,.0f} images/s, "
                    f"{(images - row.images_seen) / rate:.0f} s left",
                    file=sys.stderr,
                )
            yield row


def write_history(path: Path, rows: list["training.Row"]) -> None:
    """Write the rows as CSV: six significant digits, empty where there is no figure."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(rows[0]._fields)
        for row in rows:
            writer.writerow([f"{v:.6g}" if isinstance(v, float) else v for v in row])


def fit(p: TrainParams) -> tuple["keras.Model", Iterator["training.Row"], int]:
    """Set up the training of a new network, and return it.

    With it come the rows of its history, which train it as they are drawn, and how many images it
    will have seen by the last of them.
    """
    if p.precision == "mixed_bfloat16" and p.instructions == "avx2":
        raise StageError(
            f"{paths.PARAMS}: train.precision must be float32 where train.instructions is avx2, "
            f"which has no bfloat16; got {p.precision}"
        )
    train_set, validation_set = load(p)
    runtime.start(p.seed, p.threads, p.instructions)
    if p.precision == "mixed_bfloat16" and not runtime.has_fast_bfloat16():
        print(
            "warning: this CPU has no fast bfloat16: train.precision float32 is faster here",
            file=sys.stderr,
        )
    # Imported here, because TensorFlow takes seconds and must be set up first.
    from stages.model import network, training

    recipe = training.Recipe(**p.model_dump(exclude={"momentum", "threads", "instructions"}))
    images, labels = train_set
    model = network.build(images.shape[1:], labels.shape[1], p.momentum)
    training.compile_model(model, recipe, len(images))
    rows = training.run(model, train_set, validation_set, recipe)
    return model, rows, training.images_to_see(recipe, len(images))


def main() -> None:
    """Check the tensors, train, write the model, its history and its final figures."""
    p = params.load("train", TrainParams)
    model, rows, images = fit(p)
    from stages.model import model_file, training

    history = list(show(rows, images))
    figures = training.final_figures(history)

    with ExitStack() as outputs:
        model_file.save(model, outputs.enter_context(files.replacing(paths.MODEL)))
        write_history(outputs.enter_context(files.replacing(paths.HISTORY)), history)
        files.write_json(outputs.enter_context(files.replacing(paths.TRAINING)), figures)
    parts = (
        f"{split} accuracy {values['accuracy']:.4f}, loss {values['loss']:.4f}"
        for split, values in figures.items()
    )
    print("; ".join(parts))


if __name__ == "__main__":
    errors.run(main)
