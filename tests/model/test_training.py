"""The training loop, against stock Keras and plain NumPy."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from stages.common.errors import StageError
from stages.model import network, training
from stages.model.devices import Devices
from stages.model.recipe import Recipe

RECIPE = Recipe(
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
ALONE = Devices(tf.distribute.get_strategy())
NOTHING: Any = (np.zeros((0, 8, 8, 1), np.uint8), np.zeros((0, 3), np.uint8))


def changed(recipe: Recipe, **changes: Any) -> Recipe:
    return recipe.model_copy(update=changes)


def data(count: int) -> training.Split:
    """Return images (N, 8, 8, 1) of three classes that differ in where they are bright."""
    random = np.random.default_rng(6)
    labels = random.integers(0, 3, count)
    images = random.integers(0, 60, (count, 8, 8, 1), dtype=np.uint8)
    for index, label in enumerate(labels):
        images[index, 2 * label : 2 * label + 3] += 150
    return images, np.eye(3, dtype=np.uint8)[labels]


def new(recipe: Recipe, images: int) -> keras.Model:
    keras.utils.set_random_seed(7)
    model = network.build((8, 8, 1), 3, momentum=0.9)
    training.compile_model(model, recipe, images)
    return model


def losses(model: keras.Model, images: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Return the mean cross-entropy without smoothing, and the accuracy, on a batch."""
    probabilities = model(images, training=True).numpy()
    chosen = probabilities[labels == 1].astype(np.float64)
    return float(-np.log(chosen).mean()), float(
        (probabilities.argmax(1) == labels.argmax(1)).mean()
    )


@pytest.mark.slow
@pytest.mark.parametrize("warmup", [0.0, 0.25])
def test_it_trains_as_stock_keras_does_and_its_history_says_so(warmup: float) -> None:
    recipe = changed(RECIPE, warmup=warmup, epochs=2, learning_rate=0.0001)
    images, labels = data(204)  # 25 whole batches: a call of 20 steps, and one of 5
    ours, stock, before = new(recipe, 204), new(recipe, 204), new(recipe, 204)
    train: Any = training._train_steps(ours, recipe, ALONE.strategy)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "_train_steps", lambda *_: train)
        rows = list(training.run(ours, (images, labels), NOTHING, recipe, ALONE))
    assert train.experimental_get_tracing_count() == 1  # each costs a second

    figures = []
    for epoch in range(2):
        order = np.random.default_rng([recipe.seed, epoch, 0]).permutation(204)
        for first in range(0, 200, 8):
            batch = order[first : first + 8]
            before.set_weights(stock.get_weights())
            figures.append(losses(before, images[batch], labels[batch]))
            stock.train_on_batch(images[batch], labels[batch].astype(np.float32))

    assert [(row.step, row.epoch, row.images_seen) for row in rows] == [
        (20, 1, 160), (25, 1, 200), (45, 2, 360), (50, 2, 400),
    ]  # fmt: skip
    start = new(recipe, 204).get_weights()
    for got, expected, old in zip(ours.get_weights(), stock.get_weights(), start, strict=True):
        # Rounding grows from step to step; images in another order differ by more than they move.
        assert np.abs(got - expected).mean() < 0.25 * np.abs(expected - old).mean()
    for row, first, last in zip(rows, (0, 20, 25, 45), (20, 25, 45, 50), strict=True):
        loss, accuracy = np.mean(figures[first:last], axis=0)
        assert row.loss == pytest.approx(loss, rel=0.02)
        assert row.accuracy == pytest.approx(accuracy, abs=0.011)  # two images of 200
    final = training.final_figures(rows)["training"]
    loss, accuracy = np.mean(figures[25:], axis=0)
    assert final == pytest.approx({"loss": loss, "accuracy": accuracy}, rel=0.02)


@pytest.mark.slow
def test_it_learns_and_its_validation_is_that_of_stock_keras() -> None:
    recipe = changed(RECIPE, epochs=6, shift=1)
    validation = data(250)  # more than are evaluated at once
    # The last images are all of one class: a mean that leaves some out is another one.
    order = np.argsort(validation[1].argmax(1), kind="stable")
    validation = validation[0][order], validation[1][order]
    model = new(recipe, 203)
    rows = list(training.run(model, data(203), validation, recipe, ALONE))

    figures = training.final_figures(rows)
    assert figures["validation"]["accuracy"] > 0.9
    plain = keras.losses.CategoricalCrossentropy()
    model.compile(model.optimizer, plain, metrics=["accuracy"])
    loss, accuracy = model.evaluate(*validation, verbose=0)
    assert figures["validation"] == pytest.approx({"accuracy": accuracy, "loss": loss}, rel=1e-4)
    assert rows[-1].validation_accuracy == figures["validation"]["accuracy"]
    assert [row.validation_loss is None for row in rows[:4]] == [True, False, True, False]


def test_final_figures_are_those_of_the_last_epoch_by_images() -> None:
    rows = [
        training.Row(20, 1, 200, 9.0, 0.1, 0.1, None, None),
        training.Row(25, 1, 250, 8.0, 0.2, 0.1, 0.9, 0.6),
        training.Row(45, 2, 450, 0.4, 0.8, 0.1, None, None),
        training.Row(50, 2, 500, 0.9, 0.5, 0.1, 0.3, 0.7),
    ]
    assert training.final_figures(rows) == {
        "training": {
            "loss": pytest.approx((200 * 0.4 + 50 * 0.9) / 250),
            "accuracy": pytest.approx((200 * 0.8 + 50 * 0.5) / 250),
        },
        "validation": {"loss": 0.3, "accuracy": 0.7},
    }
    first = training.final_figures(rows[:2])["training"]
    assert first["loss"] == pytest.approx((200 * 9 + 50 * 8) / 250)


def test_a_resumed_training_sees_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = changed(RECIPE, epochs=2)
    seen: list[Any] = []

    def train(inputs: Any, steps: Any) -> tuple[tf.Tensor, float]:
        seen.extend(inputs[0].numpy()[: int(steps)])
        return tf.zeros([int(steps), 2]), 0.5

    monkeypatch.setattr(training, "_train_steps", lambda *_: train)
    whole = [part[0].reshape(-1, 8, 8, 8, 1) for part in training.batches(data(204), recipe)]
    rows = list(training.run(keras.Model(), data(204), NOTHING, recipe, ALONE, first_step=20))
    assert [(row.step, row.epoch, row.images_seen) for row in rows] == [
        (25, 1, 200), (45, 2, 360), (50, 2, 400),
    ]  # fmt: skip
    np.testing.assert_array_equal(seen, np.concatenate(whole[1:]))


def test_every_call_waits_no_longer_than_devices_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    bounded: list[str] = []

    class Bounding(Devices):
        @contextmanager
        def waiting(self) -> Iterator[None]:
            bounded.append("begins")
            yield
            bounded.append("ends")

    def train(_: Any, steps: Any) -> tuple[tf.Tensor, float]:
        assert bounded[-1] == "begins"
        return tf.zeros([int(steps), 2]), 0.5

    monkeypatch.setattr(training, "_train_steps", lambda *_: train)
    rows = training.run(keras.Model(), data(204), NOTHING, RECIPE, Bounding(ALONE.strategy))
    assert len(list(rows)) == 2
    assert bounded == ["begins", "ends"] * 2


def test_a_probability_of_nothing_counts_as_the_least_that_keras_tells_from_it() -> None:
    image = keras.Input((1,), name="image")
    chances = keras.layers.Softmax(name="digit")(1000 * keras.ops.eye(1, 3)[0] * image)
    images, labels = np.ones((4, 1), np.uint8), np.eye(3, dtype=np.uint8)[[0, 1, 2, 0]]
    loss, accuracy = training._evaluation(keras.Model(image, chances))(images, labels)
    assert loss == pytest.approx(-math.log(1e-7) / 2)
    assert accuracy == 0.5


@pytest.mark.slow
def test_bfloat16_is_used_and_close() -> None:
    def loss(precision: str) -> float:
        recipe = changed(RECIPE, precision=precision)
        (row,) = training.run(new(recipe, 24), data(24), NOTHING, recipe, ALONE)
        return row.loss

    exact, rounded = loss("float32"), loss("mixed_bfloat16")
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=0.1)


def test_without_validation_there_are_no_such_figures() -> None:
    rows = list(training.run(new(RECIPE, 16), data(16), NOTHING, RECIPE, ALONE))
    assert rows[-1].validation_accuracy is None
    assert training.final_figures(rows).keys() == {"training"}


@pytest.mark.slow
def test_same_recipe_same_bits_another_recipe_others() -> None:
    def weights(recipe: Recipe) -> bytes:
        model = new(recipe, 32)
        list(training.run(model, data(32), NOTHING, recipe, ALONE))
        return b"".join(array.tobytes() for array in model.get_weights())

    recipe = changed(RECIPE, shift=2, distortion=0.2)
    assert weights(recipe) == weights(recipe)
    assert weights(recipe) != weights(changed(recipe, seed=6))
    assert weights(recipe) != weights(changed(recipe, shift=0))
    assert weights(recipe) != weights(changed(recipe, distortion=0))
    assert weights(recipe) != weights(changed(recipe, precision="mixed_bfloat16"))


@pytest.mark.slow
def test_learning_rate_rises_and_falls_to_nothing() -> None:
    recipe = changed(RECIPE, epochs=1, batch_size=2, warmup=0.25)
    model = new(recipe, 400)
    rates = [float(model.optimizer.learning_rate)]
    rates += [row.learning_rate for row in training.run(model, data(400), NOTHING, recipe, ALONE)]
    # At steps 0, 20, ... 200, with the peak at 50: linear up, half a cosine down.
    steps = np.arange(0, 201, 20)
    down = 0.005 * (1 + np.cos(np.pi * (steps - 50) / 150))
    assert rates == pytest.approx(np.where(steps <= 50, steps * 0.01 / 50, down), abs=1e-6)


def test_every_epoch_is_a_permutation_of_its_own() -> None:
    images = np.arange(250, dtype=np.uint8).reshape(-1, 1, 1, 1)
    labels = np.eye(3, dtype=np.uint8)[np.arange(250) % 3]
    recipe = changed(RECIPE, epochs=3, batch_size=10)
    calls = list(training.batches((images, labels), recipe))
    assert [len(part) for part, _ in calls] == [200, 50] * 3
    epochs = [np.concatenate([calls[2 * n][0], calls[2 * n + 1][0]]).ravel() for n in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(250))
    assert len({tuple(epoch) for epoch in epochs}) == 3
    for part, its_labels in calls:
        np.testing.assert_array_equal(its_labels.argmax(1), part.ravel() % 3)


def test_batches_do_not_depend_on_their_parts_nor_on_where_training_goes_on() -> None:
    split = data(203)
    recipe = changed(RECIPE, epochs=2, shift=2, distortion=0.2)
    whole = list(training.batches(split, recipe))
    for own in (slice(0, 4), slice(4, 8)):
        for (images, labels), (some, their_labels) in zip(
            whole, training.batches(split, recipe, own=own), strict=True
        ):
            expected = images.reshape(-1, 8, 8, 8, 1)[:, own].reshape(-1, 8, 8, 1)
            np.testing.assert_array_equal(some, expected)
            np.testing.assert_array_equal(
                their_labels, labels.reshape(-1, 8, 3)[:, own].reshape(-1, 3)
            )
    for calls, step in ((1, 20), (2, 25), (3, 45)):
        for (images, labels), (again, same) in zip(
            whole[calls:], training.batches(split, recipe, first_step=step), strict=True
        ):
            np.testing.assert_array_equal(again, images)
            np.testing.assert_array_equal(same, labels)


def test_images_are_distorted_first_and_then_shifted_anew_in_each_call() -> None:
    images = np.random.default_rng(1).integers(1, 256, (200, 9, 9, 1), np.uint8)
    labels = np.eye(3, dtype=np.uint8)[np.arange(200) % 3]
    recipe = changed(RECIPE, batch_size=5, epochs=2, shift=3, distortion=0.3)
    calls = list(training.batches((images, labels), recipe))
    assert len(calls) == 4  # of 20 steps, two in each epoch
    for (moved, _), epoch, position in zip(calls, (0, 0, 1, 1), (0, 20, 0, 20), strict=True):
        order = np.random.default_rng([recipe.seed, epoch, 0]).permutation(200)[5 * position :]
        random = np.random.default_rng([recipe.seed, epoch, 1 + position])
        offsets = random.integers(-3, 4, (100, 2))
        maps = np.eye(2) + random.uniform(-0.3, 0.3, (100, 2, 2))
        for image, original, matrix, (down, right) in zip(
            moved[:20], images[order[:20]], maps, offsets, strict=False
        ):
            expected = np.zeros((15, 15))
            expected[3 + down : 12 + down, 3 + right : 12 + right] = bilinear(
                original[..., 0], matrix
            )
            np.testing.assert_allclose(image[..., 0], np.floor(expected[3:12, 3:12]), atol=1)


def test_devices_share_each_batch_in_their_order() -> None:
    split = data(32)
    recipe = changed(RECIPE, shift=1, distortion=0.1)
    whole = [
        (image, label)
        for images, labels in training.batches(split, recipe)
        for image, label in zip(images, labels, strict=True)
    ]

    class Device:
        """A strategy as one of its four devices sees it."""

        num_replicas_in_sync = 4

        def __init__(self, own: int) -> None:
            self.context = tf.distribute.experimental.ValueContext(own, 4)

        def experimental_distribute_values_from_function(self, function: Any) -> Any:
            return function(self.context)

    for own in range(4):  # each has two images of each of the four batches of eight
        images, labels = next(training._distribute(split, recipe, Device(own), 0))
        assert images.shape == (4, 2, 8, 8, 1)  # no more than an epoch in memory
        for batch, position in np.ndindex(4, 2):
            image, label = whole[8 * batch + 2 * own + position]
            np.testing.assert_array_equal(images[batch, position], image)
            np.testing.assert_array_equal(labels[batch, position], label)


def test_shift_moves_images_and_leaves_black_behind() -> None:
    offsets = np.array([(0, 0), (1, 0), (0, 1), (-1, 0), (0, -2), (2, 3), (-3, -3)])
    images = np.zeros((len(offsets), 9, 8, 1), np.uint8)
    images[:, 4, 3] = 200
    images[:, 0, 0] = 9  # leaves the picture when it is moved up or left
    moved = training.shift(images, offsets)
    assert (moved.dtype, moved.shape) == (images.dtype, images.shape)
    for image, (down, right) in zip(moved, offsets, strict=True):
        expected = {(4 + down, 3 + right): 200}
        if down >= 0 and right >= 0:
            expected[down, right] = 9
        assert {(y, x): image[y, x, 0] for y, x, _ in np.argwhere(image)} == expected


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
    matrices = np.eye(2) + random.uniform(-0.3, 0.3, (20, 2, 2))
    distorted = training.distort(images, matrices)
    assert (distorted.dtype, distorted.shape) == (images.dtype, images.shape)
    for image, matrix, got in zip(images, matrices, distorted, strict=True):
        expected = bilinear(image[..., 0], matrix)
        # The fraction of a grey level is cut off.
        np.testing.assert_allclose(got[..., 0], np.floor(expected), atol=1)
        assert np.abs(got[..., 0] - image[..., 0]).max() > 20


def test_an_infinite_loss_names_its_step() -> None:
    recipe = changed(RECIPE, learning_rate=1e30, warmup=0)
    with pytest.raises(StageError, match=r"loss became (nan|inf) at step [2-5]; .*learning_rate"):
        list(training.run(new(recipe, 40), data(40), NOTHING, recipe, ALONE))


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_an_infinite_loss_is_that_of_its_own_step(bad: float) -> None:
    with pytest.raises(StageError, match=f"the loss became {bad} at step 22;"):
        training._check(np.array([1, bad, math.nan], np.float32), 20)


def test_not_enough_memory_names_the_batch_size(monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: Any) -> None:
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")

    # As TensorFlow does where the allocation fails; that takes more memory than a test may have.
    monkeypatch.setattr(training, "_train_steps", lambda *_: exhausted)
    with pytest.raises(StageError, match=r"not enough memory for batches of 8 .*train.batch_size"):
        list(training.run(new(RECIPE, 16), data(16), NOTHING, RECIPE, ALONE))
