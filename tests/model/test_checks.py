"""Networks that users write: they work through all stages, or are refused before training."""

import itertools
import zipfile
from collections.abc import Callable
from typing import Any

import h5py
import keras
import numpy as np
import pytest
from keras import layers
from project import Project

from stages.common.errors import StageError
from stages.model import checks, fused, network

SHAPE = (4, 4, 1)


@keras.saving.register_keras_serializable("tests")
class Times(layers.Layer):  # type: ignore[misc] # Keras has no types
    """A layer of a user's own, with a setting."""

    def __init__(self, factor: float, **options: Any) -> None:
        super().__init__(**options)
        self.factor = factor

    def call(self, x: Any) -> Any:
        return x * self.factor


class Unregistered(Times):
    pass


@keras.saving.register_keras_serializable("tests")
class Forgetful(Times):
    """Takes a setting from elsewhere, so that the file does not hold it."""

    number = itertools.count(1)

    def __init__(self, **options: Any) -> None:
        super().__init__(next(self.number), **options)

    def get_config(self) -> dict[str, Any]:
        return layers.Layer.get_config(self)  # type: ignore[no-any-return]


@keras.saving.register_keras_serializable("tests")  # type: ignore[untyped-decorator]
def adding_up_to_one(x: Any) -> Any:
    return x / keras.ops.sum(x, axis=-1, keepdims=True)


class Subclass(keras.Model):  # type: ignore[misc] # Keras has no types
    pass


def through(*between: Any, batch_size: int | None = None, last: Any = None) -> keras.Model:
    """Return a network with these layers or functions between its first and its last."""
    x = image = keras.Input(SHAPE, batch_size, name="image")
    for layer in (*between, layers.Flatten(), last or layers.Dense(3, "softmax")):
        x = layer(x)
    return keras.Model(image, x)


@pytest.mark.parametrize(
    "build",
    [
        lambda: through(),
        lambda: through(Times(2.0), lambda x: x / 255, keras.ops.abs, layers.Dropout(0.5)),
        lambda: through(layers.Dense(2, activation="relu", kernel_regularizer="l2")),
        lambda: through(keras.Sequential([layers.Dense(2), layers.BatchNormalization()])),
        lambda: keras.Sequential([layers.Flatten(), layers.Dense(3, "softmax")]),
    ],
)
def test_networks_that_can_train(
    build: Callable[[], keras.Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "build", lambda *_: build())
    model = checks.build(SHAPE, 3, 0.9)
    assert fused.training_model(model)(np.zeros((5, *SHAPE))).shape == (5, 3)


REFUSED: dict[str, Callable[[], keras.Model]] = {
    # A part of what is said, and a network of which it is.
    "again: Requested .* `Lambda` .*; in place of a Lambda layer write what it ": lambda: through(
        layers.Lambda(lambda x: x / 255)
    ),
    "locate class 'Unregistered'; .*with @keras.saving.register_keras_serializable": lambda: (
        through(Unregistered(2.0))
    ),
    "again: Could not interpret .*identifier; ": lambda: through(layers.Dense(2, lambda x: x)),
    "must override .get_config.* to be serializable; ": lambda: through(
        Times(np.ones(1))  # type: ignore[arg-type] # on purpose
    ),
    "gives other probabilities once it is saved and loaded; ": lambda: through(Forgetful()),
    r"build must return keras.Model\(inputs, outputs\) .* returns Subclass; ": Subclass,
    r"takes and gives \(8, 4, 4, 1\) and \(8, 3\); ": lambda: through(batch_size=8),
    r"and \(None, 2\); .* give \(None, 4, 4, 1\) and \(None, 3\): images from ": lambda: through(
        last=layers.Dense(2, "softmax")
    ),
    "the last layer gives -.* which are no probabilities; ": lambda: through(
        last=layers.Dense(3, adding_up_to_one)
    ),
    'are no probabilities; give it activation="softmax"': lambda: through(
        last=layers.Dense(3, "sigmoid")
    ),
    'the last layer gives bfloat16; give it dtype="float32"': lambda: through(
        last=layers.Dense(3, "softmax", dtype="mixed_bfloat16")
    ),
}


@pytest.mark.parametrize("words", REFUSED)
def test_networks_that_cannot(words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "build", lambda *_: REFUSED[words]())
    with pytest.raises(StageError, match=f"^stages/model/network.py: .*{words}") as raised:
        checks.build(SHAPE, 3, 0.9)
    assert len(str(raised.value)) < 500


OF_A_USER = """
import keras
from keras import layers


@keras.saving.register_keras_serializable()
class Scale(layers.Layer):
    def __init__(self, factor=1.0, **options):
        super().__init__(**options)
        self.factor = factor

    def call(self, x):
        return x * self.factor


def build(image_shape, classes, momentum=0.99):
    base = keras.Sequential([keras.Input(image_shape), layers.Conv2D(4, 3)], name="base")
    base.load_weights("data/pretrained.weights.h5")
    base.trainable = False
    norm, last = layers.BatchNormalization(), layers.Dense(classes, "softmax", dtype="float32")
    return keras.Sequential([Scale(1 / 255), base, norm, layers.Flatten(), last])
"""
DOWNLOAD = "keras.applications.MobileNetV2((32, 32, 3), include_top=False)"


def test_own_layers_and_pretrained_weights_work_through_all_stages(project: Project) -> None:
    base = keras.Sequential([keras.Input((12, 12, 1)), layers.Conv2D(4, 3)])
    base.save_weights(project.path / "data/pretrained.weights.h5")
    project.dvc("add", "data/pretrained.weights.h5")
    pipeline = project.path / "dvc.yaml"
    before, train, after = pipeline.read_text().partition("    cmd: python -m stages.train\n")
    deps = "    deps:\n"
    after = after.replace(deps, f"{deps}    - data/pretrained.weights.h5\n", 1)
    pipeline.write_text(before + train + after)
    written = project.path / "stages/model/network.py"
    written.write_text(OF_A_USER)
    assert "test accuracy" in project.dvc("repro", "evaluate")
    with zipfile.ZipFile(project.path / "data/model/model.keras") as archive:
        assert b"Scale" in archive.read("config.json")
        archive.extract("model.weights.h5", project.path)
    with h5py.File(project.path / "model.weights.h5") as file:
        kept = file["layers/sequential/layers/conv2d/vars/0"][()]
    np.testing.assert_array_equal(kept, base.get_weights()[0])

    written.write_text(OF_A_USER.replace("    base.load", f"    {DOWNLOAD}\n    base.load"))
    assert "error: stages/model/network.py: would download weights, and no commit would say " in (
        project.stage("train", status=1)
    )
