"""Train the network.

Reads   data/tensors/{train,validation}_{images,labels}.npy, data/tensors/manifest.json
Writes  data/model/model.keras   the trained network with its optimizer, as stock Keras loads it
        metrics/history.csv      loss and accuracy along the way, row by row
        metrics/training.json    loss and accuracy of that network on training and validation images
        data/checkpoints/        while it trains, if train.checkpoint_every is not 0

The loop is `train` in stages/model/training.py; what is compiled there trains. Your own callbacks
go into `callbacks` in stages/model/callbacks.py.
"""

import hashlib
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from pydantic import Field
from tqdm import tqdm

import stages
from stages.common import errors, files, params, paths, tensors
from stages.common.errors import StageError
from stages.model import runtime

if TYPE_CHECKING:
    import keras

    from stages.model import batches, devices


class TrainParams(params.Section):
    """The `train` section of params.yaml, whose comments say what each of them does."""

    seed: int = Field(ge=0, lt=2**32)
    epochs: int = Field(ge=1, le=10**6)
    batch_size: int = Field(ge=2)  # on all devices together
    learning_rate: float = Field(gt=0, le=1e30)  # as a float32
    warmup: float = Field(ge=0, lt=1)
    momentum: float = Field(ge=0, lt=1)
    label_smoothing: float = Field(ge=0, lt=1)
    shift: int = Field(ge=0, le=8)
    distortion: float = Field(ge=0, le=0.5)
    patience: int = Field(ge=0)
    precision: Literal["float32", "mixed_bfloat16"]
    threads: int = Field(ge=1, le=256)
    instructions: runtime.Instructions
    strategy: Literal["auto", "single", "mirrored", "multi_worker"]
    checkpoint_every: int = Field(ge=0)


class Limits(params.Section, extra="ignore"):
    """What training reads of the `limits` section of params.yaml."""

    worker_timeout: float = Field(ge=1, le=86400)  # seconds


class Run(NamedTuple):
    """A training that is set up."""

    model: "keras.Model"
    devices: "devices.Devices"
    batches: "batches.Batches"
    validation: tuple[tensors.UInt8, tensors.UInt8]
    checkpoint: Path


def load(parameters: TrainParams) -> tuple[tuple[tensors.UInt8, tensors.UInt8], ...]:
    """Map images and labels, for training and validation; raise StageError if they cannot train."""
    images, labels = tensors.load("train")
    validation = tensors.load("validation")
    if len(images) < parameters.batch_size:
        raise StageError(
            f"{paths.PARAMS}: train.batch_size is {parameters.batch_size}, but there are only "
            f"{len(images)} training images; lower it or prepare more images"
        )
    if labels.any(axis=0).sum() < 2:
        raise StageError(
            f"{paths.TENSORS}/train_labels.npy: all images are of one class; check the labels of "
            "the data set, and preprocess.max_images"
        )
    if parameters.patience and not len(validation[0]):
        raise StageError(
            f"{paths.PARAMS}: train.patience is {parameters.patience}, but there are no validation "
            "images to tell when to stop; set preprocess.validation_size, or train.patience to 0"
        )
    return (images, labels), validation


def start(parameters: TrainParams, timeout: float) -> Run:
    """Set up a training: its data, devices and network.

    `timeout` is how many seconds to wait for other workers. Raises StageError.
    """
    if parameters.precision == "mixed_bfloat16" and parameters.instructions == "portable":
        raise StageError(
            f"{paths.PARAMS}: train.precision must be float32 where train.instructions is "
            f"portable, which has no bfloat16; got {parameters.precision}"
        )
    (images, labels), validation = load(parameters)
    runtime.start(parameters.seed, parameters.threads, parameters.instructions)
    # Imported here, because TensorFlow takes seconds and must be set up first.
    import keras

    from stages.model import batches, checks, devices, training

    if parameters.checkpoint_every % training.STEPS_PER_CALL:
        raise StageError(
            f"{paths.PARAMS}: train.checkpoint_every is {parameters.checkpoint_every}; it must be "
            f"a multiple of {training.STEPS_PER_CALL}, the steps that are taken at once, or 0"
        )
    p = parameters
    found = devices.start(p.strategy, p.batch_size, timeout)
    hashes = versions(p)
    name = hashlib.sha256(f"{hashes} {found.strategy.num_replicas_in_sync}".encode()).hexdigest()
    checkpoint = paths.CHECKPOINTS / f"{name[:16]}.npz"
    resumes = p.checkpoint_every and checkpoint.exists()
    found.compare(hashes | {"checkpoint": files.sha256(checkpoint) if resumes else "0"})
    data = batches.Batches(images, labels, p.batch_size, p.seed, p.shift, p.distortion)
    steps = p.epochs * data.in_epoch
    keras.config.set_dtype_policy(p.precision)
    with found.strategy.scope():
        model = checks.build(images.shape[1:], labels.shape[1], p.momentum)
        training.compile_model(model, steps, p.learning_rate, p.warmup, p.label_smoothing)
    return Run(model, found, data, validation, checkpoint)


def versions(parameters: TrainParams) -> dict[str, str]:
    """Return the SHA-256 of all that decides the result: the code, the parameters, the tensors.

    `checkpoint_every` is left out, because it changes no result.
    """
    libraries = [metadata.version(name) for name in ("keras", "numpy", "tensorflow")]
    root = Path(stages.__path__[0])
    code = sorted([*root.glob("common/*.py"), *root.glob("model/*.py"), *root.glob("train.py")])
    texts = {
        "code": "\n".join([*libraries, *(file.read_text("utf-8") for file in code)]),
        "parameters": parameters.model_dump_json(exclude={"checkpoint_every"}),
        "tensors": paths.MANIFEST.read_text("utf-8"),  # which has the hash of each tensor
    }
    return {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}


def main() -> None:
    """Check the tensors, train, write the model, its history and its figures."""
    parameters = params.load("train", TrainParams)
    run = start(parameters, params.load("limits", Limits).worker_timeout)
    from stages.model import callbacks, model_file, training

    chief = run.devices.worker == 0  # which shows the progress and writes
    history = callbacks.History(paths.HISTORY, parameters.batch_size)
    images = parameters.epochs * run.batches.in_epoch * parameters.batch_size
    bar = tqdm(total=images, desc="train", unit=" images", disable=not chief or None)
    watching = [
        *callbacks.patience(parameters.patience),
        *callbacks.callbacks(),
        callbacks.FiniteLoss(),
        *([history] if chief else []),
    ]
    every = parameters.checkpoint_every
    watching += [  # behind those that it saves
        callbacks.Checkpoints(run.checkpoint, every, history, watching, chief),
        callbacks.Progress(bar, parameters.batch_size),
    ]
    with bar, run.devices.together():
        training.train(run.model, run.batches, run.validation, parameters.epochs, watching)
    if not chief:
        seen = callbacks.steps_done(run.model) * parameters.batch_size
        print(f"{run.devices.name}: trained on {seen:,} images")
        return
    figures = history.summary(callbacks.epoch_kept(watching, history))
    with files.replacing(paths.MODEL) as model, files.replacing(paths.TRAINING) as summary:
        model_file.save(run.model, model)
        files.write_json(summary, figures)
    run.checkpoint.unlink(missing_ok=True)
    line = "{} accuracy {accuracy:.4f}, loss {loss:.4f}"
    print("; ".join(line.format(split, **values) for split, values in figures.items()))


if __name__ == "__main__":
    errors.run(main)
