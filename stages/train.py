"""Train the network.

Reads   data/tensors/{train,validation}_{images,labels}.npy, data/tensors/manifest.json
Writes  data/model/model.keras   the trained network with its optimizer, as stock Keras loads it
        metrics/history.csv      loss and accuracy along the way
        metrics/training.json    final loss and accuracy on training and validation images
        data/checkpoints/        while it trains, if train.checkpoint_every is not 0
"""

import csv
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from pydantic import Field
from tqdm import tqdm

from stages.common import errors, files, params, paths, tensors
from stages.common.errors import StageError
from stages.model import runtime
from stages.model.recipe import Recipe

if TYPE_CHECKING:
    import keras

    from stages.model import checkpoints, devices, training

NETWORK = "stages/model/network.py"
SECONDS_BETWEEN_LINES = 10


class TrainParams(Recipe):
    """The `train` section of params.yaml: the recipe, the network's momentum, and where to run."""

    momentum: float = Field(ge=0, lt=1)
    threads: int = Field(ge=1, le=256)
    instructions: runtime.Instructions
    strategy: Literal["auto", "single", "mirrored", "multi_worker"]
    checkpoint_every: int = Field(ge=0)


class Limits(params.Section, extra="ignore"):
    """What training reads of the `limits` section of params.yaml."""

    worker_timeout: float = Field(gt=0, le=86400)  # seconds


class Run(NamedTuple):
    """A training that is set up. Drawing its rows is what trains the model."""

    model: "keras.Model"
    devices: "devices.Devices"
    checkpoints: "checkpoints.Checkpoints"
    history: list["training.Row"]  # until the checkpoint that it goes on from
    rows: Iterator["training.Row"]  # from there on
    images: int  # seen by the end


def load(parameters: TrainParams) -> tuple["training.Split", "training.Split"]:
    """Map the training and the validation tensors; raise StageError if they cannot train."""
    images, labels = tensors.load("train")
    if len(images) < parameters.batch_size:
        raise StageError(
            f"{paths.PARAMS}: train.batch_size is {parameters.batch_size}, but there are only "
            f"{len(images)} training images; lower it or prepare more images"
        )
    if labels.any(axis=0).sum() < 2:
        raise StageError(
            f"{paths.TENSORS}/train_labels.npy: all images are of one class; "
            "raise preprocess.max_images"
        )
    return (images, labels), tensors.load("validation")


def start(parameters: TrainParams, timeout: float) -> Run:
    """Set up the training of a new network, or of the one in a checkpoint.

    `timeout` is how many seconds to wait for other workers. Raises StageError.
    """
    if parameters.precision == "mixed_bfloat16" and parameters.instructions == "avx2":
        raise StageError(
            f"{paths.PARAMS}: train.precision must be float32 where train.instructions is avx2, "
            f"which has no bfloat16; got {parameters.precision}"
        )
    train_split, validation_split = load(parameters)
    runtime.start(parameters.seed, parameters.threads, parameters.instructions)
    # Imported here, because TensorFlow takes seconds and must be set up first.
    from stages.model import checkpoints, devices, identity, network, training

    versions = identity.versions(parameters)
    kept = {"checkpoints": checkpoints.present()} if parameters.checkpoint_every else {}
    found = devices.start(parameters.strategy, versions | kept, timeout)
    if parameters.precision == "mixed_bfloat16" and not runtime.has_fast_bfloat16():
        print(
            "warning: this CPU has no fast bfloat16: train.precision float32 is faster here",
            file=sys.stderr,
        )
    replicas = found.strategy.num_replicas_in_sync
    if parameters.batch_size % replicas:
        raise StageError(
            f"{paths.PARAMS}: train.batch_size is {parameters.batch_size}, which {replicas} "
            f"devices cannot share equally; make it a multiple of {replicas}"
        )
    images, labels = train_split
    with found.strategy.scope():
        model = build(network.build, images.shape[1:], labels.shape[1], parameters.momentum)
        training.compile_model(model, parameters, len(images))
    versions["devices"] = str(replicas)
    saved = checkpoints.Checkpoints(model, versions, parameters.checkpoint_every)
    history = saved.restore()
    first_step = history[-1].step if history else 0
    rows = training.run(model, train_split, validation_split, parameters, found, first_step)
    total = training.images_to_see(parameters, len(images))
    return Run(model, found, saved, history, rows, total)


def build(
    network: Callable[[tuple[int, int, int], int, float], "keras.Model"],
    image_shape: tuple[int, int, int],
    classes: int,
    momentum: float,
) -> "keras.Model":
    """Call `network`; raise StageError if the model does not fit the images or the classes."""
    try:
        model = network(image_shape, classes, momentum)
    except ValueError as error:
        if "negative" not in str(error):  # Keras' word for a layer that leaves no pixel
            raise
        raise StageError(
            f"{NETWORK}: the network pools the images in {paths.TENSORS}, of "
            f"{image_shape[0]}x{image_shape[1]} pixels, down to nothing; take out a pooling layer, "
            "or use larger images"
        ) from None
    if model.output_shape != (None, classes):
        raise StageError(
            f"{NETWORK}: the last layer gives {model.output_shape[1:]} for an image; it must give "
            f"({classes},), a probability for each class"
        )
    return model


def progress(
    rows: Iterable["training.Row"], images: int, before: int = 0
) -> Iterator["training.Row"]:
    """Pass the rows on and show the progress from `before` to `images` images on stderr.

    A bar on a terminal, elsewhere a line every `SECONDS_BETWEEN_LINES` at most.
    """
    beginning = spoke = time.monotonic()
    with tqdm(total=images, initial=before, desc="train", unit=" images", disable=None) as bar:
        for row in rows:
            bar.set_postfix(loss=f"{row.loss:.4f}", accuracy=f"{row.accuracy:.4f}", refresh=False)
            bar.update(row.images_seen - bar.n if not bar.disable else 0)
            now = time.monotonic()
            if bar.disable and now - spoke > SECONDS_BETWEEN_LINES:
                spoke, rate = now, (row.images_seen - before) / (now - beginning)
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


def main() -> None:
    """Check the tensors, train, write the model, its history and its final figures."""
    parameters = params.load("train", TrainParams)
    run = start(parameters, params.load("limits", Limits).worker_timeout)
    from stages.model import model_file, training

    if run.devices.worker:  # the first worker shows the progress and writes
        images = max((row.images_seen for row in run.rows), default=run.images)
        print(f"worker {run.devices.worker} of {run.devices.workers}: trained on {images:,} images")
        return
    before = 0
    if run.history:
        before = run.history[-1].images_seen
        print(
            f"train: resumes from the checkpoint after step {run.history[-1].step}", file=sys.stderr
        )
    rows = progress(run.checkpoints.save(run.rows), run.images, before)
    history = [*run.history, *rows]
    figures = training.final_figures(history)

    with ExitStack() as outputs:
        model_file.save(run.model, outputs.enter_context(files.replacing(paths.MODEL)))
        write_history(outputs.enter_context(files.replacing(paths.HISTORY)), history)
        files.write_json(outputs.enter_context(files.replacing(paths.TRAINING)), figures)
    run.checkpoints.remove()
    parts = (
        f"{split} accuracy {values['accuracy']:.4f}, loss {values['loss']:.4f}"
        for split, values in figures.items()
    )
    print("; ".join(parts))


if __name__ == "__main__":
    errors.run(main)
