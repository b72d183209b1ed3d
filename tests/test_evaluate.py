"""The metrics, against scikit-learn on the same predictions."""

import warnings
from typing import Any

import numpy as np
import pytest
from conftest import Project
from sklearn import metrics as sklearn_metrics

from stages import evaluate


def predictions(images: int, classes: int, seed: int) -> tuple[Any, Any]:
    """Return labels (N,) and probabilities (N, classes) that are right more often than not."""
    random = np.random.default_rng(seed)
    actual = random.integers(0, classes, images)
    scores = random.normal(size=(images, classes)) + 2 * np.eye(classes)[actual]
    exponents = np.exp(scores)
    return actual, exponents / exponents.sum(axis=1, keepdims=True)


@pytest.mark.parametrize(
    ("images", "classes", "seed"), [(500, 10, 0), (40, 3, 1), (7, 10, 2), (1, 2, 3)]
)
def test_measures_are_those_of_scikit_learn(images: int, classes: int, seed: int) -> None:
    actual, probabilities = predictions(images, classes, seed)
    names = [f"class {index}" for index in range(classes)]
    measured = evaluate.measure(actual, probabilities, names)

    predicted = probabilities.argmax(axis=1)
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
    columns = sklearn_metrics.precision_recall_fscore_support(
        actual, predicted, labels=labels, zero_division=0
    )
    for key, values in zip(("precision", "recall", "f1", "images"), columns, strict=True):
        assert [measured["per_class"][name][key] for name in names] == pytest.approx(list(values))


def test_a_certain_mistake_costs_what_keras_clips_at() -> None:
    measured = evaluate.measure(np.array([0]), np.array([[0.0, 1.0]]), ["a", "b"])
    assert measured["loss"] == pytest.approx(-np.log(1e-7))
    assert measured["accuracy"] == 0


def test_the_table_names_classes() -> None:
    table = evaluate.tabulate(
        np.array([2, 0]), np.array([[0.1, 0.2, 0.7], [0.3, 0.6, 0.1]]), ["boot", "bag", "7"]
    )
    assert table.to_csv(lineterminator="\n") == (
        "index,actual,predicted,confidence\n0,7,7,0.7\n1,boot,bag,0.6\n"
    )


def test_a_damaged_or_missing_or_foreign_model_is_one_line(finished: Project) -> None:
    before = (finished.path / "metrics/metrics.json").read_bytes()
    model = finished.path / "data/model/model.keras"
    content = bytearray(model.read_bytes())
    content[len(content) // 2] ^= 1
    model.unlink()
    model.write_bytes(content)
    printed = finished.stage("evaluate", status=1)
    assert printed.startswith("error: data/model/model.keras: not a model that Keras ")
    assert "make verify" in printed
    assert printed.count("\n") == 1
    model.unlink()
    printed = finished.stage("evaluate", status=1)
    assert printed == "error: data/model/model.keras: not found; run `dvc repro train`\n"
    assert (finished.path / "metrics/metrics.json").read_bytes() == before
