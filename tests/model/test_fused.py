"""The model to train with, against stock Keras: the same function whatever the network is."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from stages import evaluate
from stages.model import fused, network, runtime

SHAPE = (12, 12, 1)
LABELS = np.eye(10, dtype=np.float32)[[0, 1, 2, 3, 4, 5, 6, 9]]

Edit = Callable[[Any, dict[str, Any]], Any]


def edited(edits: dict[str, Edit]) -> keras.Model:
    """Return the network with some layers replaced, as a user's edit of network.py does.

    An edit takes the tensor before the layer and the layer's settings, and returns the one behind.
    """
    stock = network.build(SHAPE, 10, momentum=0.9)
    x = image = keras.Input(SHAPE, name="image")
    for layer in stock.layers[1:]:
        settings = layer.get_config()
        edit = edits.get(layer.name)
        x = edit(x, settings) if edit else type(layer).from_config(settings)(x)
    return keras.Model(image, x, name="digits")


def dense(**changes: Any) -> Edit:
    return lambda x, s: layers.Dense.from_config(s | changes)(x)


def norm(**changes: Any) -> Edit:
    return lambda x, s: layers.BatchNormalization.from_config(s | changes)(x)


def norm_of(settings: dict[str, Any]) -> layers.Layer:
    return layers.BatchNormalization.from_config(settings)


class Centred(layers.BatchNormalization):  # type: ignore[misc] # Keras has no types
    """A normalisation of a user's own, which computes something else."""

    def call(self, x: tf.Tensor, **options: Any) -> tf.Tensor:
        return super().call(x - 1, **options) / 2


EDITS: dict[str, dict[str, Edit]] = {
    "as it is": {},
    "an activation": {"dense": dense(activation="relu")},
    "a dilation": {"conv2": lambda x, s: layers.Conv2D.from_config(s | {"dilation_rate": 2})(x)},
    "a layer more": {"dense": lambda x, s: layers.Dense(16, "relu", name="new")(dense()(x, s))},
    "a layer less": {"norm2": lambda x, _: x},
    "average pooling": {"pool1": lambda x, _: layers.AveragePooling2D(2, name="pool1")(x)},
    "dropout": {"dense": lambda x, s: dense()(layers.Dropout(0.5, seed=3, name="new")(x), s)},
    "a penalty on weights": {"dense": dense(kernel_regularizer="l2")},
    "a shortcut": {"norm2": lambda x, s: layers.Add(name="new")([x, norm()(x, s)])},
    "a normalisation of rows": {"norm1": norm(axis=1)},
    "a normalisation without gamma": {"norm2": norm(scale=False)},
    "a normalisation without beta": {"norm3": norm(center=False)},
    "a network inside": {"norm2": lambda x, s: keras.Sequential([norm_of(s)], name="inner")(x)},
    "a normalisation that is frozen": {"norm3": norm(trainable=False)},
    "a normalisation with another epsilon": {"norm1": norm(epsilon=0.5)},
    "a normalisation of one's own": {"norm1": lambda x, s: Centred.from_config(s)(x)},
}


def randomised(model: keras.Model) -> keras.Model:
    """Give all weights random values, as if the model had been trained."""
    random = np.random.default_rng(3)
    for variable in model.variables:
        if variable.path.endswith(("gamma", "moving_variance")):
            variable.assign(random.uniform(0.5, 2, variable.shape))
        elif variable.path.endswith(("beta", "moving_mean", "bias")):
            variable.assign(random.normal(0, 0.1, variable.shape))
    return model


@pytest.fixture
def images() -> tf.Tensor:
    """Return noise on a black ground: the plain areas tie in the pooling, as in digits."""
    images = np.zeros((8, *SHAPE), np.uint8)
    images[:, 2:10, 3:11] = np.random.default_rng(4).integers(0, 256, (8, 8, 8, 1))
    return tf.constant(images)


def step(model: keras.Model, images: tf.Tensor) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return the probabilities and the gradients, by variable, of a step of training."""
    with tf.GradientTape() as tape:
        probabilities = model(images, training=True)
        loss = keras.losses.CategoricalCrossentropy()(LABELS, probabilities) + sum(model.losses)
    variables = model.trainable_variables
    found = tape.gradient(loss, [variable.value for variable in variables])
    gradients = {
        v.path: tf.convert_to_tensor(g).numpy() for v, g in zip(variables, found, strict=True)
    }
    return probabilities.numpy(), gradients


@pytest.mark.slow
@pytest.mark.parametrize("edit", EDITS)
def test_it_is_the_same_function_as_stock_keras(edit: str, images: tf.Tensor) -> None:
    keras.utils.set_random_seed(5)
    stock = randomised(edited(EDITS[edit]))
    keras.utils.set_random_seed(5)
    ours = randomised(edited(EDITS[edit]))
    trained = fused.training_model(ours)
    assert {v.path for v in trained.variables} == {v.path for v in ours.variables}

    expected, their_gradients = step(stock, images)
    probabilities, our_gradients = step(trained, images)

    np.testing.assert_allclose(probabilities, expected, rtol=2e-4, atol=1e-6)
    for path, theirs in their_gradients.items():
        scale = np.abs(theirs).max()
        np.testing.assert_allclose(
            our_gradients[path], theirs, rtol=0, atol=2e-3 * scale + 1e-7, err_msg=path
        )
    # The moving statistics after the batch, the state of the dropout, and all that must not change.
    for mine, theirs in zip(ours.variables, stock.variables, strict=True):
        np.testing.assert_allclose(
            mine.numpy(), theirs.numpy(), rtol=1e-4, atol=1e-5, err_msg=mine.path
        )
    np.testing.assert_allclose(
        trained(images, training=False).numpy(), stock(images, training=False).numpy(), rtol=1e-4
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("edits", "count"),
    [
        ({}, 3),
        (EDITS["a network inside"], 3),
        (EDITS["a normalisation without gamma"], 3),
        (EDITS["a normalisation that is frozen"], 3),
        (EDITS["a normalisation of rows"], 2),
        ({"norm1": norm(renorm=True)}, 2),
        ({"norm1": norm(synchronized=True)}, 2),
    ],
)
def test_batch_normalisations_are_fused_where_they_can_be(
    edits: dict[str, Edit], count: int
) -> None:
    trained = fused.training_model(edited(edits))
    both = tf.function(lambda x: [trained(x, training=t) for t in (True, False)], autograph=False)
    graph = both.get_concrete_function(tf.TensorSpec([8, *SHAPE])).graph
    operations = [operation.type for operation in graph.get_operations()]
    assert operations.count("FusedBatchNormV3") == 2 * count
    assert ("Rsqrt" in operations) == (count < 3)  # other bits on each make of CPU


def test_a_compiled_model_may_have_a_loss_of_ones_own() -> None:
    model = network.build(SHAPE, 10)
    model.compile("adam", lambda actual, predicted: keras.ops.sum(actual - predicted, axis=-1))
    assert not fused.training_model(model).compiled


@pytest.mark.slow
def test_evaluation_is_fused_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = randomised(network.build(SHAPE, 10))
    path = tmp_path / "data/model/model.keras"
    path.parent.mkdir(parents=True)
    model.save(path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runtime, "start", lambda *_: None)  # TensorFlow runs already
    fast = fused.FusedBatchNormalization.call
    calls: list[dict[str, Any]] = []

    def note(*arguments: Any, **options: Any) -> Any:
        calls.append(options)
        return fast(*arguments, **options)

    monkeypatch.setattr(fused.FusedBatchNormalization, "call", note)
    images = np.random.default_rng(6).integers(0, 256, (5, *SHAPE), np.uint8)
    parameters = evaluate.EvaluateParams(batch_size=2, threads=1, instructions="portable")
    probabilities = evaluate.predict(images, 10, parameters)
    np.testing.assert_allclose(
        probabilities, model.predict(images, verbose=0), rtol=2e-4, atol=1e-6
    )
    assert calls


@pytest.mark.slow
@pytest.mark.parametrize("edit", ["as it is", "a normalisation of rows"])
def test_bfloat16_approximates_it(edit: str, images: tf.Tensor) -> None:
    steps = []
    for policy in ("float32", "mixed_bfloat16"):
        keras.config.set_dtype_policy(policy)
        keras.utils.set_random_seed(5)
        model = randomised(edited(EDITS[edit]))
        keras.config.set_dtype_policy("float32")
        steps.append(step(fused.training_model(model), images))
    (_, exact_gradients), (rounded, rounded_gradients) = steps

    assert {g.dtype for g in (rounded, *rounded_gradients.values())} == {np.dtype(np.float32)}
    np.testing.assert_allclose(rounded.sum(axis=1), 1, atol=1e-6)  # the last layer is in float32
    ours, theirs = (
        np.concatenate([g.ravel() for g in gradients.values()])
        for gradients in (rounded_gradients, exact_gradients)
    )
    cosine = np.vdot(ours, theirs) / (np.linalg.norm(ours) * np.linalg.norm(theirs))
    assert 0.8 < cosine < 0.9999  # close, and truly another arithmetic
