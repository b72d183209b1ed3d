"""The metrics, against scikit-learn on the same predictions."""

import json
import warnings
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
import pytest
from project import CLASSES, Project, contents

from stages import evaluate
from stages.common.errors import StageError
from stages.model import runtime

MODEL = "data/model/model.keras"


def predictions(images: int, classes: int, seed: int) -> tuple[Any, Any]:
    """Return labels (N,) and probabilities (N, classes) that are right more often than not."""
    random = np.random.default_rng(seed)
    actual = random.integers(0, classes, images)
    scores = random.normal(size=(images, classes)) + 2 * np.eye(classes)[actual]
    exponents = np.exp(scores)
    return actual, exponents / exponents.sum(axis=1, keepdims=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("images", "classes", "seed"), [(500, 10, 0), (40, 3, 1), (7, 10, 2), (1, 2, 3)]
)
def test_measures_are_those_of_scikit_learn(images: int, classes: int, seed: int) -> None:
    from sklearn import metrics as sklearn_metrics  # takes a second

    actual, probabilities = predictions(images, classes, seed)
    predicted = probabilities.argmax(axis=1)
    names = [f"class {index}" for index in range(classes)]
    per_class = evaluate.measure_classes(actual, predicted, names)
    measured = evaluate.measure(actual, probabilities, per_class)

    labels = range(classes)
    assert measured["accuracy"] == pytest.approx(sklearn_metrics.accuracy_score(actual, predicted))
    assert measured["mismatch_rate"] == pytest.approx(
        sklearn_metrics.zero_one_loss(actual, predicted)
    )
    assert measured["mismatches"] == sklearn_metrics.zero_one_loss(
        actual, predicted, normalize=False
    )
    assert measured["images"] == images
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes that the sample lacks
        assert measured["loss"] == pytest.approx(
            sklearn_metrics.log_loss(actual, probabilities, labels=labels)
        )
    assert measured["f1"] == pytest.approx(
        sklearn_metrics.f1_score(actual, predicted, labels=labels, average="macro", zero_division=0)
    )
    columns = sklearn_metrics.precision_recall_fscore_support(
        actual, predicted, labels=labels, zero_division=0
    )
    for key, values in zip(("precision", "recall", "f1", "images"), columns, strict=True):
        assert per_class[key].tolist() == pytest.approx(list(values))
    assert per_class.index.tolist() == names


def test_a_certain_mistake_costs_what_keras_clips_at() -> None:
    actual, probabilities = np.array([0]), np.array([[0.0, 1.0]])
    per_class = evaluate.measure_classes(actual, probabilities.argmax(axis=1), ["a", "b"])
    measured = evaluate.measure(actual, probabilities, per_class)
    assert measured["loss"] == pytest.approx(-np.log(1e-7))
    assert measured["accuracy"] == 0


def test_the_table_names_classes() -> None:
    table = evaluate.tabulate(
        np.array([2, 0]), np.array([[0.1, 0.2, 0.7], [0.3, 0.6, 0.1]]), ["boot", "bag", "7"]
    )
    assert table.to_csv(lineterminator="\n") == (
        "index,actual,predicted,confidence\n0,7,7,0.7\n1,boot,bag,0.6\n"
    )


def test_predictions_are_those_of_stock_keras(reproduced: Project) -> None:
    metrics_of = reproduced.path / "metrics"
    images = np.load(reproduced.path / "data/tensors/test_images.npy")
    labels = np.load(reproduced.path / "data/tensors/test_labels.npy")
    probabilities = keras.models.load_model(reproduced.path / MODEL).predict(images, verbose=0)
    table = pd.read_csv(metrics_of / "predictions.csv", keep_default_na=False)
    assert table["index"].tolist() == list(range(60))
    assert table["actual"].tolist() == [CLASSES[label] for label in labels.argmax(1)]
    assert table["predicted"].tolist() == [CLASSES[label] for label in probabilities.argmax(1)]
    assert table["confidence"].to_numpy() == pytest.approx(probabilities.max(1), abs=2e-5)
    written = (metrics_of / "predictions.csv").read_text().splitlines()
    assert all(len(line.rpartition(".")[2]) == 6 for line in written[1:])

    per_class = pd.read_csv(metrics_of / "per_class.csv", keep_default_na=False)
    assert list(per_class) == ["class", "images", "precision", "recall", "f1"]
    assert per_class["class"].tolist() == CLASSES
    assert per_class["images"].tolist() == labels.sum(axis=0).tolist()
    metrics = json.loads((metrics_of / "metrics.json").read_text())
    assert list(metrics) == ["accuracy", "mismatch_rate", "f1", "loss", "images", "mismatches"]
    hits = (table["actual"] == table["predicted"]).sum()
    assert (metrics["images"], metrics["mismatches"]) == (60, 60 - hits)
    assert metrics["f1"] == pytest.approx(per_class["f1"].mean(), abs=1e-5)


def test_models_that_are_refused_leave_the_metrics_alone(
    finished: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(finished.path)
    monkeypatch.setattr(runtime, "start", lambda *_: None)  # it runs here already
    model = keras.models.load_model(MODEL)
    sound = Path(MODEL).read_bytes()

    def refuses(message: str) -> None:
        before = contents(finished)
        with pytest.raises(StageError, match=rf"{MODEL}: {message}$"):
            evaluate.main()
        assert contents(finished) == before

    middle = len(sound) // 2
    Path(MODEL).unlink()
    refuses("not found; run `dvc repro train`")
    Path(MODEL).write_bytes(sound[:middle] + bytes([sound[middle] ^ 1]) + sound[middle + 1 :])
    refuses("is damaged: .*make verify.*")
    for size, classes in ((10, 3), (12, 4)):
        image = keras.Input((size, 12, 1))
        other = keras.Model(image, keras.layers.Dense(classes)(keras.layers.Flatten()(image)))
        other.save(MODEL)
        refuses(
            "was trained on other data: height, width, channels and classes are "
            rf"\({size}, 12, 1, {classes}\), but those of the test tensors are \(12, 12, 1, 3\); "
            "run `dvc repro`"
        )
    layer = model.get_layer("dense")
    layer.set_weights([weights * np.nan for weights in layer.get_weights()])
    model.save(MODEL)
    refuses("predicts values that are not numbers; run `dvc repro --force train`")
