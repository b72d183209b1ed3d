"""The training loop, against stock Keras and plain NumPy."""

import dataclasses
import math
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from stages.common.errors import StageError
from stages.model import network, training

RECIPE = training.Recipe(
    seed=5,
    epochs=1,
    batch_size=8,
    learning_rate=0.01,
    warmup=0.25,
    label_smoothing=0.1,
    shift=0,
    distortion=0,
    precision="float32",
)
NOTHING: Any = (np.zeros((0, 8, 8, 1), np.uint8), np.zeros((0, 3), np.uint8))


def data(count: int) -> training.Set:
    """Return images (N, 8, 8, 1) of three classes that differ in where they are bright."""
    random = np.random.default_rng(6)
    labels = random.integers(0, 3, count)
    images = random.integers(0, 60, (count, 8, 8, 1), dtype=np.uint8)
    for index, label in enumerate(labels):
        images[index, 2 * label : 2 * label + 3] += 150
    return images, np.eye(3, dtype=np.uint8)[labels]


def new(recipe: training.Recipe, images: int) -> keras.Model:
    keras.utils.set_random_seed(7)
    model = network.build((8, 8, 1), 3, momentum=0.9)
    training.compile_model(model, recipe, images)
    return model


@pytest.mark.parametrize("warmup", [0.0, 0.25])
def test_it_trains_as_stock_keras_does(warmup: float) -> None:
    recipe = dataclasses.replace(RECIPE, warmup=warmup, epochs=2, learning_rate=0.001)
    images, labels = data(44)
    ours, stock = new(recipe, 44), new(recipe, 44)
    start = [array.copy() for array in stock.get_weights()]
    rows = list(training.run(ours, (images, labels), NOTHING, recipe))

    # The whole batches of a fresh permutation each epoch, by the same optimizer and loss.
    random = np.random.default_rng(recipe.seed)
    for _ in range(2):
        order = random.permutation(44)
        for first in range(0, 40, 8):
            batch = order[first : first + 8]
            stock.train_on_batch(images[batch], labels[batch].astype(np.float32))

    assert [row.step for row in rows] == [5, 10]
    assert [row.images_seen for row in rows] == [40, 80]
    for got, expected, before in zip(ours.get_weights(), stock.get_weights(), start, strict=True):
        # Adam makes whole steps of gradients that are nothing but rounding: most must agree.
        moved = np.abs(expected - before).mean()
        assert np.abs(got - expected).mean() < 0.02 * moved


@pytest.mark.parametrize("warmup", [0.0, 0.25])
def test_adam_is_that_of_stock_keras(warmup: float) -> None:
    recipe = dataclasses.replace(RECIPE, warmup=warmup)
    ours, stock = new(recipe, 80), new(recipe, 80)
    random = np.random.default_rng(8)
    for _ in range(4):
        gradients = [
            tf.constant(random.normal(size=variable.shape), tf.float32)
            for variable in ours.trainable_variables
        ]
        training.apply_adam(ours.optimizer, gradients, ours.trainable_variables)
        stock.optimizer.apply(gradients, stock.trainable_variables)
    pairs = [
        *zip(ours.variables, stock.variables, strict=True),
        *zip(ours.optimizer.variables, stock.optimizer.variables, strict=True),
    ]
    for mine, theirs in pairs:
        assert mine.path == theirs.path
        np.testing.assert_allclose(mine.numpy(), theirs.numpy(), rtol=1e-5, atol=1e-6)
    assert int(ours.optimizer.iterations.numpy()) == 4


def test_it_learns_and_its_figures_are_those_of_stock_keras() -> None:
    recipe = dataclasses.replace(RECIPE, epochs=6, shift=1)
    train_set, validation = data(203), data(50)
    model = new(recipe, 203)
    rows = list(training.run(model, train_set, validation, recipe))

    figures = training.final_figures(rows)
    assert figures["validation"]["accuracy"] > 0.9
    plain = keras.losses.CategoricalCrossentropy()
    model.compile(model.optimizer, plain, metrics=["accuracy"])
    loss, accuracy = model.evaluate(*validation, verbose=0)
    assert figures["validation"] == pytest.approx({"accuracy": accuracy, "loss": loss}, rel=1e-4)
    assert rows[-1].validation_accuracy == figures["validation"]["accuracy"]
    # 25 whole batches an epoch: a row at 20 steps and one at the end, which alone is validated.
    assert [(row.epoch, row.step % 25 or 25) for row in rows[:4]] == [
        (1, 20),
        (1, 25),
        (2, 20),
        (2, 25),
    ]
    assert [row.validation_loss is None for row in rows[:4]] == [True, False, True, False]
    assert figures["training"]["accuracy"] == pytest.approx(
        0.8 * rows[-2].accuracy + 0.2 * rows[-1].accuracy
    )


def test_without_validation_there_are_no_such_figures() -> None:
    rows = list(training.run(new(RECIPE, 16), data(16), NOTHING, RECIPE))
    assert rows[-1].validation_accuracy is None
    assert training.final_figures(rows).keys() == {"training"}


def test_same_recipe_same_bits_another_recipe_others() -> None:
    def weights(recipe: training.Recipe) -> bytes:
        model = new(recipe, 32)
        list(training.run(model, data(32), NOTHING, recipe))
        return b"".join(array.tobytes() for array in model.get_weights())

    recipe = dataclasses.replace(RECIPE, shift=2, distortion=0.2)
    assert weights(recipe) == weights(recipe)
    assert weights(recipe) != weights(dataclasses.replace(recipe, seed=6))
    assert weights(recipe) != weights(dataclasses.replace(recipe, shift=0))
    assert weights(recipe) != weights(dataclasses.replace(recipe, distortion=0))


def test_learning_rate_rises_and_falls_to_nothing() -> None:
    recipe = dataclasses.replace(RECIPE, epochs=1, batch_size=2, warmup=0.25)
    model = new(recipe, 400)
    rates = [float(model.optimizer.learning_rate)]
    rates += [row.learning_rate for row in training.run(model, data(400), NOTHING, recipe)]
    # At steps 0, 20, ... 200, with the peak at 50: linear up, half a cosine down.
    steps = np.arange(0, 201, 20)
    down = 0.005 * (1 + np.cos(np.pi * (steps - 50) / 150))
    assert rates == pytest.approx(np.where(steps <= 50, steps * 0.01 / 50, down), abs=1e-6)


@pytest.mark.parametrize("pixels", [1, 3])
def test_shift_moves_images_and_leaves_black_behind(pixels: int) -> None:
    images = np.zeros((400, 9, 8, 1), np.uint8)
    images[:, 4, 3] = 200
    images[:, 0, 0] = 9  # leaves the picture when it is moved up or left
    moved = training.shift(images, pixels, np.random.default_rng(0))
    assert (moved.dtype, moved.shape) == (images.dtype, images.shape)
    found = {(y - 4, x - 3) for _, y, x, _ in np.argwhere(moved == 200)}
    span = range(-pixels, pixels + 1)
    assert found == {(down, right) for down in span for right in span}
    for image in moved:
        ((y, x, _),) = np.argwhere(image == 200) - (4, 3, 0)
        corner = [(y, x)] if y >= 0 and x >= 0 else []
        assert [tuple(place[:2]) for place in np.argwhere(image == 9)] == corner


def bilinear(image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Return image (H, W) seen through a linear map of (x, y) about its centre, pixel by pixel."""
    height, width = image.shape
    centre = np.array([width - 1, height - 1]) / 2
    seen = np.zeros((height, width))
    for y, x in np.ndindex(height, width):
        across, down = matrix @ (np.array([x, y]) - centre) + centre
        for column in (math.floor(across), math.floor(across) + 1):
            for row in (math.floor(down), math.floor(down) + 1):
                if 0 <= row < height and 0 <= column < width:
                    share = (1 - abs(across - column)) * (1 - abs(down - row))
                    seen[y, x] += share * image[row, column]
    return seen


def test_distort_turns_scales_and_shears_about_the_centre() -> None:
    random = np.random.default_rng(3)
    images = random.integers(0, 256, (20, 9, 12, 1), np.uint8)
    matrices = np.eye(2) + np.random.default_rng(4).uniform(-0.3, 0.3, (20, 2, 2))
    distorted = training.distort(images, 0.3, np.random.default_rng(4))
    assert (distorted.dtype, distorted.shape) == (images.dtype, images.shape)
    for image, matrix, got in zip(images, matrices, distorted, strict=True):
        expected = bilinear(image[..., 0], matrix)
        # The fraction of a grey level is cut off.
        np.testing.assert_allclose(got[..., 0], np.floor(expected), atol=1)
        assert np.abs(got[..., 0] - image[..., 0]).max() > 20


def test_an_infinite_loss_names_its_step() -> None:
    recipe = dataclasses.replace(RECIPE, learning_rate=1e30, warmup=0)
    with pytest.raises(StageError, match=r"loss became (nan|inf) at step [2-5]; .*learning_rate"):
        list(training.run(new(recipe, 40), data(40), NOTHING, recipe))


def test_not_enough_memory_names_the_batch_size(monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: Any) -> None:
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")

    # As TensorFlow does where the allocation fails; that takes more memory than a test may have.
    monkeypatch.setattr(training, "_train_steps", lambda *_: exhausted)
    with pytest.raises(StageError, match=r"not enough memory for batches of 8 .*train.batch_size"):
        list(training.run(new(RECIPE, 16), data(16), NOTHING, RECIPE))
