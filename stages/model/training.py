"""The training loop, for one device, several, or several machines.

How it trains: `train` takes up to 20 steps in one call into a graph of TensorFlow's; callbacks are
told of a call as `fit` tells them of a batch. In a step each replica, a device, takes its share of
the batch. It computes the compiled loss through `twin`, which has the variables of `model` and
fused layers, and divides it by the number of replicas. `optimizer.apply` sums the gradients over
the replicas.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import keras
import numpy as np
import tensorflow as tf

from stages.common.errors import StageError
from stages.model import fused
from stages.model.batches import Batches, Images, Labels

Figures: TypeAlias = dict[str, Any]  # numbers, or arrays where a metric is one

STEPS_PER_CALL = 20  # steps in one call into the graph, and between two rows of the history
EVALUATION_BATCH = 100  # images; more is no faster and takes more memory


def compile_model(
    model: keras.Model, steps: int, learning_rate: float, warmup: float, label_smoothing: float
) -> None:
    """Give `model` its loss, optimizer and metrics. What stands here is what trains.

    The learning rate rises over a share `warmup` of all `steps`, then falls along half a cosine;
    without a warm-up it is constant. metrics/history.csv shows `cross_entropy` and `accuracy`.
    """
    rate: Any = learning_rate
    if warmup:
        rising = max(1, round(warmup * steps))
        rate = keras.optimizers.schedules.CosineDecay(
            0.0, max(1, steps - rising), warmup_target=learning_rate, warmup_steps=rising
        )
    model.compile(
        optimizer=keras.optimizers.Adam(rate, name="adam"),
        loss=keras.losses.CategoricalCrossentropy(label_smoothing=label_smoothing),
        # Without the smoothing, so that recipes can be compared.
        metrics=["accuracy", keras.metrics.CategoricalCrossentropy(name="cross_entropy")],
    )
    model.optimizer.build(model.trainable_variables)


def train(
    model: keras.Model,
    batches: Batches,
    validation: tuple[Images, Labels],
    epochs: int,
    callbacks: list[keras.callbacks.Callback],
) -> None:
    """Train `model`, as it is compiled, where it was built, and tell Keras `callbacks` of it.

    This is `fit`, written out: Keras' own fails with several workers (its issue 20585), can take
    but one step a call with several devices, which costs 6 %, and clips gradients on each of them.

    `on_train_batch_end` comes after each call of up to `STEPS_PER_CALL` steps, with the index of
    its last step in the epoch and the means over the call. `on_epoch_end` has the means over the
    epoch (of what is left of it, after a checkpoint), and those of the validation images, if there
    are any, as `val_...`. They are `loss`, what the optimizer makes smaller; the compiled metrics,
    `accuracy` and `cross_entropy`; and `learning_rate`: the same on all devices and workers.
    Raises StageError if there is not enough memory.
    """
    with model.distribute_strategy.scope():
        twin = fused.training_model(model)  # over the same variables: what trains it trains `model`
    take_steps, validate = _training_steps(model, twin, batches), _validation(model, twin)
    in_epoch = batches.in_epoch
    observers = keras.callbacks.CallbackList(
        callbacks, model=model, verbose=0, epochs=epochs, steps=in_epoch
    )
    model.stop_training = False
    observers.on_train_begin()
    logs: Figures = {}
    step = int(model.optimizer.iterations.numpy())  # a callback may have restored a checkpoint
    while step < epochs * in_epoch and not model.stop_training:
        epoch, position = divmod(step, in_epoch)
        observers.on_epoch_begin(epoch)
        calls: list[Figures] = []
        counts: list[int] = []
        while position < in_epoch:
            count = min(STEPS_PER_CALL - step % STEPS_PER_CALL, in_epoch - position)
            observers.on_train_batch_begin(position)
            calls.append(take_steps(step, count))
            counts.append(count)
            step, position = step + count, position + count
            observers.on_train_batch_end(position - 1, calls[-1])
            if model.stop_training:
                break
        logs = {
            name: np.average([call[name] for call in calls], axis=0, weights=counts)
            for name in calls[0]
        }
        logs["learning_rate"] = calls[-1]["learning_rate"]
        if len(validation[0]):
            observers.on_test_begin()
            figures = validate(*validation)
            observers.on_test_end(figures)
            logs |= {f"val_{name}": figure for name, figure in figures.items()}
        observers.on_epoch_end(epoch, logs)
    observers.on_train_end(logs)


def _training_steps(
    model: keras.Model, twin: keras.Model, batches: Batches
) -> Callable[[int, int], Figures]:
    """Return a function that takes `count` steps from `step` on, and returns their figures."""
    strategy, optimizer = model.distribute_strategy, model.optimizer
    variables, replicas = model.trainable_variables, strategy.num_replicas_in_sync
    clips = any([optimizer.clipnorm, optimizer.global_clipnorm, optimizer.clipvalue])

    def train_step(images: tf.Tensor, labels: tf.Tensor, index: tf.Tensor) -> None:
        with tf.device("CPU:0"):  # a GPU gets the images of one step alone
            images, labels = images[index], labels[index]
        with tf.GradientTape() as tape:
            loss = optimizer.scale_loss(_loss(model, twin, images, labels, training=True))
        gradients = tape.gradient(loss, variables)
        if clips and replicas > 1:
            # Keras clips on each replica, and sums after that. So we sum first, and only the first
            # replica hands in the sum: what is clipped is the gradient of the whole batch.
            total = tf.distribute.get_replica_context().all_reduce("SUM", gradients)
            gradients = [gradient * _is_first() for gradient in total]
        optimizer.apply(gradients, variables)

    # In the graph: a loop over `train_step`.
    def train_steps(inputs: tuple[tf.Tensor, tf.Tensor], count: tf.Tensor) -> dict[str, tf.Tensor]:
        def body(index: tf.Tensor) -> tuple[tf.Tensor]:
            strategy.run(train_step, (*inputs, index))
            return (index + 1,)

        strategy.run(model.reset_metrics)
        tf.while_loop(lambda index: index < count, body, (0,), parallel_iterations=1)
        rate = tf.convert_to_tensor(optimizer.learning_rate)
        return _figures(model) | {"learning_rate": rate}

    # Keras makes the variables of metrics when they first see a batch: not in the loop above.
    blank = tf.zeros([1, model.output_shape[-1]])
    _graph(lambda: strategy.run(model.compute_metrics, (None, blank, blank)))()
    # Several steps in one call: Python's share of the time all but vanishes.
    function = _graph(train_steps)
    size, most = batches.size // replicas, min(STEPS_PER_CALL, batches.in_epoch)

    # Outside of it: makes the batches, and calls the graph.
    def take_steps(step: int, count: int) -> Figures:
        def own(context: tf.distribute.experimental.ValueContext) -> tuple[tf.Tensor, ...]:
            first = context.replica_id_in_sync_group * size
            arrays = batches.take(step, count, slice(first, first + size))
            # A call of fewer steps is filled up with repeats that nothing trains on: for another
            # shape TensorFlow would build its graph again, which takes a second.
            with tf.device("CPU:0"):
                return tuple(tf.constant(np.resize(a, (most, *a.shape[1:]))) for a in arrays)

        # Not a tf.data.Dataset: where one is in use, memory goes back to the system and is asked
        # for again in each step, 5 % of its time. The batches of a call are made in a millisecond.
        inputs = strategy.experimental_distribute_values_from_function(own)
        try:
            figures = function(inputs, tf.constant(count))
        except tf.errors.ResourceExhaustedError:
            raise StageError(
                f"not enough memory for batches of {batches.size} images; lower train.batch_size"
            ) from None
        return {name: figure.numpy() for name, figure in figures.items()}

    return take_steps


def _validation(model: keras.Model, twin: keras.Model) -> Callable[[Images, Labels], Figures]:
    """Return a function of images and labels: the figures of the model as it is.

    Each replica has moving statistics of its own. Those of the first are saved with the model; so
    its figures are told to all, and all decide the same.
    """
    strategy = model.distribute_strategy
    reset = _graph(lambda: strategy.run(model.reset_metrics))
    test = _graph(lambda *batch: strategy.run(_loss, (model, twin, *batch, False)))
    result = _graph(lambda: _figures(model, of_the_first=True))

    def validate(images: Images, labels: Labels) -> Figures:
        reset()
        for first in range(0, len(images), EVALUATION_BATCH):
            part = slice(first, first + EVALUATION_BATCH)
            test(tf.constant(images[part]), tf.constant(labels[part]))
        return {name: figure.numpy() for name, figure in result().items()}

    return validate


def _graph(function: Callable[..., Any]) -> Callable[..., Any]:
    # There is no Python control flow to convert, and looking for it takes half a second.
    graph: Callable[..., Any] = tf.function(function, autograph=False)
    return graph


def _loss(
    model: keras.Model,
    twin: keras.Model,
    images: tf.Tensor,
    labels: tf.Tensor,
    training: bool,
) -> tf.Tensor:
    """Return the compiled loss of a batch, and update this replica's metrics with the batch.

    Keras' `compute_loss` divides it by the number of replicas, for the optimizer sums over them.
    """
    labels = tf.cast(labels, tf.float32)
    probabilities = twin(images, training=training)
    loss = model.compute_loss(images, labels, probabilities, None, training=training)
    tracker = next(metric for metric in model.metrics if metric.name == "loss")
    whole = loss * model.distribute_strategy.num_replicas_in_sync
    tracker.update_state(whole, sample_weight=tf.shape(images)[0])
    model.compute_metrics(images, labels, probabilities)
    return loss


def _figures(model: keras.Model, of_the_first: bool = False) -> dict[str, tf.Tensor]:
    """Return the compiled metrics since their reset: the replicas' mean, or those of the first."""
    strategy = model.distribute_strategy

    def share() -> dict[str, tf.Tensor]:
        part = _is_first() if of_the_first else 1 / strategy.num_replicas_in_sync
        return {name: figure * part for name, figure in model.get_metrics_result().items()}

    shares = strategy.run(share)
    return {name: strategy.reduce("SUM", part, axis=None) for name, part in shares.items()}


def _is_first() -> tf.Tensor:
    """Return 1.0 on the first replica, 0.0 on all others."""
    return tf.cast(tf.distribute.get_replica_context().replica_id_in_sync_group == 0, tf.float32)
