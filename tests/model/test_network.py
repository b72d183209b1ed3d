"""The network is the tutorial's, and the faster form of it is the same function."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from stages.model import network

SHAPE = (28, 28, 1)


@pytest.fixture
def model() -> keras.Model:
    """A network with random values in all its weights, as if it had been trained."""
    keras.utils.set_random_seed(3)
    model = network.build(SHAPE, 10, momentum=0.9)
    rng = np.random.default_rng(3)
    for variable in model.variables:
        if variable.path.endswith(("gamma", "moving_variance")):
            variable.assign(rng.uniform(0.5, 2, variable.shape))
        elif not variable.path.endswith("kernel"):
            variable.assign(rng.normal(0, 0.1, variable.shape))
    return model


@pytest.fixture
def images() -> np.ndarray:
    """Noise on a black ground: the plain areas tie in the pooling, as in digits."""
    rng = np.random.default_rng(4)
    images = np.zeros((8, *SHAPE), np.uint8)
    images[:, 6:20, 8:22] = rng.integers(0, 256, (8, 14, 14, 1))
    return images


LABELS = np.eye(10, dtype=np.float32)[[0, 1, 2, 3, 4, 5, 6, 9]]


def test_layers_are_the_tutorials(model: keras.Model) -> None:
    assert model.count_params() == 520_266
    assert [(layer.name, layer.output.shape[1:]) for layer in model.layers] == [
        ("image", (28, 28, 1)),
        ("conv1", (28, 28, 32)),
        ("pool1", (14, 14, 32)),
        ("norm1", (14, 14, 32)),
        ("conv2", (14, 14, 64)),
        ("pool2", (7, 7, 64)),
        ("norm2", (7, 7, 64)),
        ("conv3", (7, 7, 128)),
        ("flatten", (6272,)),
        ("norm3", (6272,)),
        ("dense", (64,)),
        ("digit", (10,)),
    ]
    activations = {
        layer.name: layer.activation.__name__
        for layer in model.layers
        if hasattr(layer, "activation")
    }
    assert activations == {
        "conv1": "relu", "conv2": "relu", "conv3": "relu", "dense": "linear", "digit": "softmax",
    }  # fmt: skip


def test_names_do_not_depend_on_what_was_built_before() -> None:
    first, second = (network.build((12, 12, 1), 3) for _ in range(2))
    assert [v.path for v in first.variables] == [v.path for v in second.variables]
    assert first.get_config() | {"layers": None} == second.get_config() | {"layers": None}


def gradients(
    model: keras.Model, loss: Callable[..., tf.Tensor], *arguments: Any
) -> dict[str, np.ndarray]:
    with tf.GradientTape() as tape:
        value = loss(*arguments)
    found = tape.gradient(value, [v.value for v in model.trainable_variables])
    return {v.path: g.numpy() for v, g in zip(model.trainable_variables, found, strict=True)}


def stock_loss(model: keras.Model, images: np.ndarray) -> tf.Tensor:
    probabilities = model(images, training=True)
    return tf.reduce_mean(keras.losses.categorical_crossentropy(LABELS, probabilities))


def fast_loss(model: keras.Model, images: np.ndarray, dtype: tf.DType) -> tf.Tensor:
    logits = network.training_logits(model, tf.constant(images), dtype)
    return tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(LABELS, logits))


def test_training_logits_are_the_same_function(model: keras.Model, images: np.ndarray) -> None:
    stock = keras.models.clone_model(model)
    stock.set_weights(model.get_weights())

    expected = stock(images, training=True).numpy()
    logits = network.training_logits(model, tf.constant(images), tf.float32)
    np.testing.assert_allclose(tf.nn.softmax(logits).numpy(), expected, rtol=2e-4, atol=1e-6)

    # The moving mean and variance after one batch, and the weights, which must not have changed.
    for ours, theirs in zip(model.variables, stock.variables, strict=True):
        np.testing.assert_allclose(
            ours.numpy(), theirs.numpy(), rtol=1e-4, atol=1e-5, err_msg=ours.path
        )

    theirs = gradients(stock, stock_loss, stock, images)
    for path, ours in gradients(model, fast_loss, model, images, tf.float32).items():
        scale = np.abs(theirs[path]).max()
        np.testing.assert_allclose(
            ours, theirs[path], rtol=0, atol=2e-3 * scale + 1e-7, err_msg=path
        )


def test_bfloat16_approximates_it(model: keras.Model, images: np.ndarray) -> None:
    exact = gradients(model, fast_loss, model, images, tf.float32)
    rounded = gradients(model, fast_loss, model, images, tf.bfloat16)
    assert {gradient.dtype for gradient in rounded.values()} == {np.dtype(np.float32)}
    ours, theirs = (np.concatenate([g.ravel() for g in gs.values()]) for gs in (rounded, exact))
    cosine = np.vdot(ours, theirs) / (np.linalg.norm(ours) * np.linalg.norm(theirs))
    assert 0.98 < cosine < 0.99999  # close, and truly another arithmetic
