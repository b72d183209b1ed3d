"""Measure the trained network on the test images.

Reads   data/tensors/test_{images,labels}.npy, data/tensors/manifest.json, data/model/model.keras
Writes  metrics/metrics.json     what people compare: accuracy, mismatch_rate, f1, loss, counts
        metrics/per_class.csv    class, images, precision, recall, f1
        metrics/predictions.csv  index, actual, predicted, confidence of each test image
"""

from contextlib import ExitStack

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import Field

from stages.common import errors, files, params, paths, tensors
from stages.common.errors import StageError
from stages.model import runtime


class EvaluateParams(params.Section):
    """The `evaluate` section of params.yaml."""

    batch_size: int = Field(ge=1)
    threads: int = Field(ge=1, le=256)
    instructions: runtime.Instructions


def predict(images: tensors.UInt8, classes: int, parameters: EvaluateParams) -> NDArray[np.float64]:
    """Return the network's probabilities, (N, classes), for images of shape (N, H, W, 1)."""
    runtime.start(0, parameters.threads, parameters.instructions)
    # TensorFlow takes seconds to import, and must be set up first.
    import tensorflow as tf

    from stages.model import fused, model_file

    model = model_file.load(paths.MODEL)
    trained, test = (*model.input_shape[1:], *model.output_shape[1:]), (*images.shape[1:], classes)
    if trained != test:
        raise StageError(
            f"{paths.MODEL}: was trained on other data: height, width, channels and classes are "
            f"{trained}, but those of the test tensors are {test}; run `dvc repro`"
        )
    # Not model.predict: its tf.data pipeline logs an error where the last batch is smaller.
    twin = fused.training_model(model)
    network = tf.function(lambda batch: twin(batch, training=False), autograph=False)
    size = parameters.batch_size
    batches = [network(images[i : i + size]).numpy() for i in range(0, len(images), size)]
    return np.concatenate(batches).astype(np.float64)


def tabulate(
    actual: NDArray[np.intp], probabilities: NDArray[np.float64], classes: list[str]
) -> pd.DataFrame:
    """Return a row for each image: index, actual and predicted class name, confidence 0..1."""
    names = np.array(classes)
    return pd.DataFrame(
        {
            "actual": names[actual],
            "predicted": names[probabilities.argmax(axis=1)],
            "confidence": probabilities.max(axis=1),
        }
    ).rename_axis("index")


def measure_classes(
    actual: NDArray[np.intp], predicted: NDArray[np.intp], classes: list[str]
) -> pd.DataFrame:
    """Return a row for each class: images, precision, recall, f1, from labels of shape (N,).

    A class without predictions has precision 0, one without images recall 0, as in scikit-learn.
    """
    confusion = np.zeros((len(classes), len(classes)), dtype=np.int64)
    np.add.at(confusion, (actual, predicted), 1)
    hits, taken, there = confusion.diagonal(), confusion.sum(axis=0), confusion.sum(axis=1)
    figures = {
        "images": there,
        "precision": hits / np.maximum(taken, 1),
        "recall": hits / np.maximum(there, 1),
        "f1": 2 * hits / np.maximum(taken + there, 1),
    }
    return pd.DataFrame(figures, index=pd.Index(classes, name="class"))


def measure(
    actual: NDArray[np.intp], probabilities: NDArray[np.float64], per_class: pd.DataFrame
) -> dict[str, float]:
    """Return what metrics.json holds, from labels (N,), probabilities (N, classes) and classes.

    `f1` is the macro average: every class counts the same, however rare. `loss` is the mean
    categorical cross-entropy, in nats, probabilities clipped at 1e-7 as Keras does.
    """
    images, mismatches = len(actual), int((probabilities.argmax(axis=1) != actual).sum())
    likelihood = probabilities[np.arange(images), actual].clip(1e-7, 1 - 1e-7)
    return {
        "accuracy": (images - mismatches) / images,
        "mismatch_rate": mismatches / images,
        "f1": float(per_class["f1"].mean()),
        "loss": float(-np.log(likelihood).mean()),
        "images": images,
        "mismatches": mismatches,
    }


def main() -> None:
    """Predict the test images, write the metrics and the predictions."""
    parameters = params.load("evaluate", EvaluateParams)
    images, labels = tensors.load("test")
    classes = tensors.read_manifest().classes
    actual = labels.argmax(axis=1)
    probabilities = predict(images, len(classes), parameters)
    if not np.isfinite(probabilities).all():
        raise StageError(
            f"{paths.MODEL}: predicts values that are not numbers; run `dvc repro --force train`"
        )
    per_class = measure_classes(actual, probabilities.argmax(axis=1), classes)
    metrics = measure(actual, probabilities, per_class)
    tables = {
        paths.PER_CLASS: per_class,
        paths.PREDICTIONS: tabulate(actual, probabilities, classes),
    }
    with ExitStack() as outputs:
        files.write_json(outputs.enter_context(files.replacing(paths.METRICS)), metrics)
        for path, table in tables.items():
            written = outputs.enter_context(files.replacing(path))
            table.to_csv(written, float_format="%.6f", lineterminator="\n")
    print(
        f"test accuracy {metrics['accuracy']:.4f}: {metrics['mismatches']} of "
        f"{metrics['images']:,} misclassified, loss {metrics['loss']:.4f}"
    )


if __name__ == "__main__":
    errors.run(main)
