"""The training loop: images from memory-mapped arrays to a trained model and its history."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from stages.common.errors import StageError
from stages.model import network

# Images (N, H, W, C), pixels 0..255, and their one-hot labels (N, classes).
Set: TypeAlias = tuple[NDArray[np.uint8], NDArray[np.uint8]]

STEPS_PER_CALL = 20  # steps in one call into the graph, and between two rows of the history
EVALUATION_BATCH = 100  # more is no faster and takes more memory


@dataclass(frozen=True)
class Recipe:
    """How to train; the fields are the parameters of the same names."""

    seed: int
    epochs: int
    batch_size: int
    learning_rate: float
    warmup: float
    label_smoothing: float
    shift: int
    distortion: float
    precision: str


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
    """Whole batches in an epoch; the few images left over take their chance in the next one."""
    return images // batch_size


def images_to_see(recipe: Recipe, images: int) -> int:
    """Images in all the batches of all epochs."""
    return recipe.epochs * steps_per_epoch(images, recipe.batch_size) * recipe.batch_size


def final_figures(rows: list[Row]) -> dict[str, dict[str, float]]:
    """Return loss and accuracy, by split: means over the last epoch of training, and validation.

    The training figures are those of the images as trained on, shifted, while the network still
    learnt; so they may be worse than those of validation, which is left out if it has no images.
    """
    last = [row for row in rows if row.epoch == rows[-1].epoch]
    before = [row.images_seen for row in rows if row.epoch < rows[-1].epoch]
    weights = np.diff([before[-1] if before else 0, *(row.images_seen for row in last)])
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
    training: Set,
    validation: Set,
    recipe: Recipe,
) -> Iterator[Row]:
    """Train the compiled `model`; yield a row of history every `STEPS_PER_CALL` steps.

    Both sets are images uint8 (N, H, W, 1) and one-hot labels uint8 (N, classes); that of
    validation may be empty. Raises StageError when the loss is not a finite number, or when there
    is not enough memory.
    """
    rng = np.random.default_rng(recipe.seed)
    train_steps = _train_steps(model, recipe, training)
    evaluate = _evaluation(model)
    size, step = recipe.batch_size, 0
    last = steps_per_epoch(len(training[0]), size)
    for epoch in range(1, recipe.epochs + 1):
        order = rng.permutation(len(training[0]))
        for first in range(0, last, STEPS_PER_CALL):
            batches = order[first * size : min(first + STEPS_PER_CALL, last) * size]
            images, labels = training[0][batches], training[1][batches]
            if recipe.distortion:
                images = distort(images, recipe.distortion, rng)
            if recipe.shift:
                images = shift(images, recipe.shift, rng)
            try:
                losses, correct, rate = train_steps(_batched(images, size), _batched(labels, size))
            except tf.errors.ResourceExhaustedError:
                raise StageError(
                    f"not enough memory for batches of {size} images; lower train.batch_size"
                ) from None
            _check(losses.numpy(), step)
            step += len(losses)
            finished = first + len(losses) == last
            figures = evaluate(*validation) if finished and len(validation[0]) else (None, None)
            yield Row(
                step,
                epoch,
                step * size,
                float(losses.numpy().mean()),
                float(correct.numpy().sum() / len(images)),
                float(rate),
                *figures,
            )


def shift(images: NDArray[np.uint8], pixels: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Move each image of (N, H, W, C) by up to `pixels` up or down and left or right, at random."""
    count, height, width = images.shape[:3]
    padded = np.pad(images, ((0, 0), (pixels, pixels), (pixels, pixels), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(1, 2))
    down, right = rng.integers(0, 2 * pixels + 1, (2, count))
    # The view puts the window's axes last; indexing copies only the chosen windows.
    moved: NDArray[np.uint8] = np.moveaxis(windows[np.arange(count), down, right], 1, -1)
    return moved


def distort(
    images: NDArray[np.uint8], amount: float, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Turn, scale and shear each image of (N, H, W, C) about its centre, at random.

    Output pixel p shows what lies at A p, p measured from the centre and A the identity with up to
    `amount` added to or taken from each entry, between pixels bilinearly, black outside.
    """
    count, height, width = images.shape[:3]
    matrices = np.eye(2) + rng.uniform(-amount, amount, (count, 2, 2))
    centre = np.array([width - 1, height - 1]) / 2
    transforms = np.zeros((count, 8), np.float32)  # Keras': a0 a1 a2 b0 b1 b2 and no perspective
    transforms[:, [[0, 1], [3, 4]]] = matrices
    transforms[:, [2, 5]] = centre - matrices @ centre
    distorted: NDArray[np.uint8] = keras.ops.image.affine_transform(images, transforms).numpy()
    return distorted


def _batched(array: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    return array.reshape(-1, size, *array.shape[1:])


def _check(losses: NDArray[np.float32], step: int) -> None:
    bad = np.flatnonzero(~np.isfinite(losses))
    if len(bad):
        raise StageError(
            f"the loss became {losses[bad[0]]} at step {step + bad[0] + 1}; "
            "try a lower train.learning_rate"
        )


def _train_steps(model: keras.Model, recipe: Recipe, training: Set) -> Callable[..., Any]:
    """Return a graph function: S steps, each on a batch of B images.

    It takes images (S, B, H, W, C) and labels (S, B, classes), and returns losses (S,), how many
    images of each batch were recognised (S,), and the learning rate.
    """
    size, smoothing = recipe.batch_size, recipe.label_smoothing
    dtype = tf.bfloat16 if recipe.precision == "mixed_bfloat16" else tf.float32
    variables = model.trainable_variables
    tensors = [variable.value for variable in variables]

    def step(batch: tuple[tf.Tensor, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        images, labels = batch
        target = tf.cast(labels, tf.float32)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(tensors)
            logits = network.training_logits(model, images, dtype)
            smooth = target * (1 - smoothing) + smoothing / target.shape[1]
            loss = _mean_cross_entropy(smooth, logits, size)
        apply_adam(model.optimizer, tape.gradient(loss, tensors), variables)
        hit = tf.equal(tf.argmax(logits, 1), tf.argmax(labels, 1))
        return (
            _mean_cross_entropy(target, logits, size),
            tf.reduce_sum(tf.cast(hit, tf.int32)),
        )

    def steps(images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        types = (tf.float32, tf.int32)
        losses, correct = tf.map_fn(
            step, (images, labels), parallel_iterations=1, fn_output_signature=types
        )
        return losses, correct, tf.convert_to_tensor(model.optimizer.learning_rate)

    # Several steps in one call: Python's share of the time all but vanishes. There is no Python
    # control flow to convert, and looking for it takes half a second.
    signature = [tf.TensorSpec([None, size, *array.shape[1:]], array.dtype) for array in training]
    function: Callable[..., Any] = tf.function(steps, input_signature=signature, autograph=False)
    return function


def apply_adam(
    optimizer: keras.optimizers.Adam, gradients: list[tf.Tensor], variables: list[keras.Variable]
) -> None:
    """Update `variables` as `optimizer.apply(gradients, variables)` does.

    One operation a variable instead of a dozen.
    """
    rate = tf.convert_to_tensor(optimizer.learning_rate)
    step = tf.cast(optimizer.iterations, tf.float32) + 1
    powers = tf.pow(optimizer.beta_1, step), tf.pow(optimizer.beta_2, step)
    for gradient, variable, mean, square in zip(
        gradients, variables, optimizer._momentums, optimizer._velocities, strict=True
    ):
        tf.raw_ops.ResourceApplyAdam(
            var=variable.value.handle,
            m=mean.value.handle,
            v=square.value.handle,
            beta1_power=powers[0],
            beta2_power=powers[1],
            lr=rate,
            beta1=optimizer.beta_1,
            beta2=optimizer.beta_2,
            epsilon=optimizer.epsilon,
            grad=gradient,
        )
    optimizer.iterations.assign_add(1)


def _mean_cross_entropy(target: tf.Tensor, logits: tf.Tensor, count: int) -> tf.Tensor:
    """Return the sum over the batch at hand, divided by the images on all devices."""
    losses = tf.nn.softmax_cross_entropy_with_logits(target, logits)
    return tf.nn.compute_average_loss(losses, global_batch_size=count)


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
