"""The training loop, for one device, several, or several machines."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeAlias

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from stages.common.errors import StageError
from stages.model import fused
from stages.model.devices import Devices
from stages.model.recipe import Recipe

# Images (N, H, W, C), pixels 0..255, and their one-hot labels (N, classes).
Images: TypeAlias = NDArray[np.uint8]
Split: TypeAlias = tuple[Images, NDArray[np.uint8]]

STEPS_PER_CALL = 20  # steps in one call into the graph, and between two rows of the history
EVALUATION_BATCH = 100  # more is no faster and takes more memory


class Row(NamedTuple):
    """A line of the history: means over the steps since the line before, in the same epoch.

    The losses are cross-entropies in nats against the labels as they are, without smoothing.
    """

    step: int
    epoch: int
    images_seen: int
    loss: float
    accuracy: float
    learning_rate: float
    validation_loss: float | None
    validation_accuracy: float | None


def steps_per_epoch(images: int, batch_size: int) -> int:
    """Return the whole batches in an epoch; images left over are left out of that epoch."""
    return images // batch_size


def images_to_see(recipe: Recipe, images: int) -> int:
    """Return the images in all the batches of all epochs."""
    return recipe.epochs * steps_per_epoch(images, recipe.batch_size) * recipe.batch_size


def final_figures(rows: list[Row]) -> dict[str, dict[str, float]]:
    """Return loss and accuracy by split: training, mean over the last epoch, and validation.

    The training figures are those of the images as trained on, shifted, while the network still
    learnt; so they may be worse than those of validation, which is left out if it has no images.
    """
    last = [row for row in rows if row.epoch == rows[-1].epoch]
    weights = np.diff([0, *(row.images_seen for row in rows)])[-len(last) :]
    figures = {
        "training": {
            "accuracy": float(np.average([row.accuracy for row in last], weights=weights)),
            "loss": float(np.average([row.loss for row in last], weights=weights)),
        }
    }
    if rows[-1].validation_loss is not None and rows[-1].validation_accuracy is not None:
        figures["validation"] = {
            "accuracy": rows[-1].validation_accuracy,
            "loss": rows[-1].validation_loss,
        }
    return figures


def compile_model(model: keras.Model, recipe: Recipe, images: int) -> None:
    """Give `model` its loss, its metric and Adam with the recipe's learning rate."""
    steps = recipe.epochs * steps_per_epoch(images, recipe.batch_size)
    rate: float | keras.optimizers.schedules.LearningRateSchedule = recipe.learning_rate
    if recipe.warmup:
        warmup = max(1, round(recipe.warmup * steps))
        rate = keras.optimizers.schedules.CosineDecay(
            0.0, max(1, steps - warmup), warmup_target=recipe.learning_rate, warmup_steps=warmup
        )
    loss = keras.losses.CategoricalCrossentropy(label_smoothing=recipe.label_smoothing)
    model.compile(keras.optimizers.Adam(rate, name="adam"), loss, metrics=["accuracy"])
    model.optimizer.build(model.trainable_variables)


def run(
    model: keras.Model,
    training: Split,
    validation: Split,
    recipe: Recipe,
    devices: Devices,
    first_step: int = 0,
) -> Iterator[Row]:
    """Train `model`, compiled in the scope of the devices' strategy.

    Yields a row of history every `STEPS_PER_CALL` steps, and at the end of each epoch.

    Both splits are images uint8 (N, H, W, C) and one-hot labels uint8 (N, classes); that of
    validation may be empty. `first_step` is how many steps the model has been trained before.
    Raises StageError when the loss is not a finite number, or when there is not enough memory.
    """
    size = recipe.batch_size
    in_epoch = steps_per_epoch(len(training[0]), size)
    inputs = _distribute(training, recipe, devices.strategy, first_step)
    train = _train_steps(model, recipe, devices.strategy)
    evaluate = _evaluation(model)
    for step, steps in _calls(recipe, in_epoch, first_step):
        try:
            with devices.waiting():
                figures, rate = train(next(inputs), tf.constant(steps))
        except tf.errors.ResourceExhaustedError:
            raise StageError(
                f"not enough memory for batches of {size} images; lower train.batch_size"
            ) from None
        losses, accuracies = figures.numpy().T / size
        _check(losses, step)
        done = step + steps
        finished = done % in_epoch == 0
        validated = evaluate(*validation) if finished and len(validation[0]) else (None, None)
        yield Row(
            done,
            step // in_epoch + 1,
            done * size,
            float(losses.mean()),
            float(accuracies.mean()),
            float(rate),
            *validated,
        )


def batches(
    split: Split, recipe: Recipe, first_step: int = 0, own: slice = slice(None)
) -> Iterator[Split]:
    """Yield the images and labels of one call after the other, from step `first_step` on.

    These are the `own` part of each of its batches, in a row: all of them, or those of one device.
    Each epoch has an order of its own. Order, shifts and distortions depend on the seed and the
    step alone: not on how batches are parted, nor on where the training goes on from.
    """
    images, labels = split
    size, in_epoch = recipe.batch_size, steps_per_epoch(len(images), recipe.batch_size)
    for step, steps in _calls(recipe, in_epoch, first_step):
        epoch, position = divmod(step, in_epoch)
        if position == 0 or step == first_step:
            order = np.random.default_rng([recipe.seed, epoch, 0]).permutation(len(images))
        random = np.random.default_rng([recipe.seed, epoch, 1 + position])
        offsets = random.integers(-recipe.shift, recipe.shift, (steps, size, 2), endpoint=True)
        maps = random.uniform(-recipe.distortion, recipe.distortion, (steps, size, 2, 2))
        chosen = order[position * size :][: steps * size].reshape(steps, size)[:, own].ravel()
        batch = images[chosen]
        if recipe.distortion:
            batch = distort(batch, np.eye(2) + maps[:, own].reshape(-1, 2, 2))
        if recipe.shift:
            batch = shift(batch, offsets[:, own].reshape(-1, 2))
        yield batch, labels[chosen]


def _calls(recipe: Recipe, in_epoch: int, first_step: int) -> Iterator[tuple[int, int]]:
    """Yield the first step of each call into the graph, and its number of steps."""
    step = first_step
    while step < recipe.epochs * in_epoch:
        steps = min(STEPS_PER_CALL, in_epoch - step % in_epoch)
        yield step, steps
        step += steps


def shift(images: Images, offsets: NDArray[np.int64]) -> Images:
    """Move each image of (N, H, W, C) by its offset of (N, 2), pixels down and right."""
    count, height, width = images.shape[:3]
    most = np.abs(offsets).max(initial=0)
    padded = np.pad(images, ((0, 0), (most, most), (most, most), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(1, 2))
    down, right = (most - offsets).T
    # The view puts the window's axes last; indexing copies only the chosen windows.
    moved: Images = np.moveaxis(windows[np.arange(count), down, right], 1, -1)
    return moved


def distort(images: Images, maps: NDArray[np.float64]) -> Images:
    """Turn, scale and shear each image of (N, H, W, C) by its linear map of (N, 2, 2).

    Output pixel p shows what lies at A p, p being (x, y) from the centre and A the map: between
    pixels bilinearly, black outside.
    """
    count, height, width = images.shape[:3]
    centre = np.array([width - 1, height - 1]) / 2
    transforms = np.zeros((count, 8), np.float32)  # Keras': a0 a1 a2 b0 b1 b2 and no perspective
    transforms[:, [[0, 1], [3, 4]]] = maps
    transforms[:, [2, 5]] = centre - maps @ centre
    distorted: Images = keras.ops.image.affine_transform(images, transforms).numpy()
    return distorted


def _distribute(
    split: Split, recipe: Recipe, strategy: tf.distribute.Strategy, first_step: int
) -> Iterator[tuple[tf.Tensor, tf.Tensor]]:
    """Yield the images (S, B, H, W, C) and labels (S, B, classes) of a call, each device's own."""
    size = recipe.batch_size // strategy.num_replicas_in_sync
    most = min(STEPS_PER_CALL, steps_per_epoch(len(split[0]), recipe.batch_size))
    parts = [
        batches(split, recipe, first_step, slice(first, first + size))
        for first in range(0, recipe.batch_size, size)
    ]

    def part(context: tf.distribute.experimental.ValueContext) -> tuple[tf.Tensor, ...]:
        arrays = next(parts[context.replica_id_in_sync_group])
        # Where an epoch ends with fewer steps, repeats that nothing trains on fill the rest: for
        # another shape TensorFlow would build its graph again, which takes a second.
        shapes = [(most, size, *array.shape[1:]) for array in arrays]
        with tf.device("CPU:0"):
            return tuple(map(tf.constant, map(np.resize, arrays, shapes)))

    # Not a tf.data.Dataset: where one is in use, memory goes back to the system and is asked for
    # again in each step, 5 % of its time. The batches of a call are made in a millisecond.
    while True:
        yield strategy.experimental_distribute_values_from_function(part)


def _check(losses: NDArray[np.float32], step: int) -> None:
    bad = np.flatnonzero(~np.isfinite(losses))
    if len(bad):
        raise StageError(
            f"the loss became {losses[bad[0]]} at step {step + bad[0] + 1}; "
            "try a lower train.learning_rate"
        )


def _train_steps(
    model: keras.Model, recipe: Recipe, strategy: tf.distribute.Strategy
) -> Callable[..., Any]:
    """Return a graph function of the devices' images and labels and of the number of steps N.

    It returns, of shape (N, 2), the sum of the losses of each batch and how many of its images
    were recognised; and the learning rate.
    """
    with strategy.scope():
        trained = fused.training_model(model)
    variables = model.trainable_variables
    cross_entropy = keras.losses.categorical_crossentropy

    def step(images: tf.Tensor, labels: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
        with tf.device("CPU:0"):  # a GPU gets the images of one step alone
            images, labels = images[index], labels[index]
        target = tf.cast(labels, tf.float32)
        with tf.GradientTape() as tape, fused.computing_in(recipe.precision, trained):
            probabilities = trained(images, training=True)
            losses = cross_entropy(target, probabilities, label_smoothing=recipe.label_smoothing)
            # Divided by the images on all devices; a layer's own losses by the devices.
            loss = tf.nn.compute_average_loss(losses, global_batch_size=recipe.batch_size)
            loss += sum(map(tf.nn.scale_regularization_loss, trained.losses))
        model.optimizer.apply(tape.gradient(loss, variables), variables)
        hits = keras.metrics.categorical_accuracy(target, probabilities)
        return tf.reduce_sum(tf.stack([cross_entropy(target, probabilities), hits]), axis=1)

    def steps(inputs: tuple[tf.Tensor, tf.Tensor], count: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        def body(index: tf.Tensor, figures: tf.TensorArray) -> tuple[tf.Tensor, tf.TensorArray]:
            on_each = strategy.run(step, args=(*inputs, index))
            return index + 1, figures.write(index, strategy.reduce("SUM", on_each, axis=None))

        figures = tf.TensorArray(tf.float32, count, element_shape=[2])
        _, figures = tf.while_loop(
            lambda index, _: index < count, body, (0, figures), parallel_iterations=1
        )
        return figures.stack(), tf.convert_to_tensor(model.optimizer.learning_rate)

    # Several steps in one call: Python's share of the time all but vanishes. There is no Python
    # control flow to convert, and looking for it takes half a second.
    function: Callable[..., Any] = tf.function(steps, autograph=False)
    return function


def _evaluation(
    model: keras.Model,
) -> Callable[[NDArray[np.uint8], NDArray[np.uint8]], tuple[float, float]]:
    """Return a function of images and labels: mean loss and accuracy of the model as it is."""
    predict = tf.function(lambda images: model(images, training=False), autograph=False)

    def evaluate(images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> tuple[float, float]:
        loss, correct = 0.0, 0
        for first in range(0, len(images), EVALUATION_BATCH):
            part = slice(first, first + EVALUATION_BATCH)
            probabilities = predict(tf.constant(images[part])).numpy()
            actual = labels[part].argmax(1)
            chosen = probabilities[np.arange(len(actual)), actual].astype(np.float64)
            loss -= float(np.log(np.maximum(chosen, keras.config.epsilon())).sum())
            correct += int((probabilities.argmax(1) == actual).sum())
        return loss / len(images), correct / len(images)

    return evaluate
