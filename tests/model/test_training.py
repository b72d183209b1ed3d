"""The training loop, against stock Keras."""

import json
import subprocess
import sys
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from project import ROOT

from stages.common.errors import StageError
from stages.model import network, training
from stages.model.batches import Batches

Split = tuple[np.ndarray, np.ndarray]
NOTHING: Split = (np.zeros((0, 8, 8, 1), np.uint8), np.zeros((0, 3), np.uint8))
Told = list[tuple[str, int, dict[str, float]]]


def data(count: int) -> Split:
    """Return images (N, 8, 8, 1) of three classes that differ in where they are bright."""
    random = np.random.default_rng(6)
    labels = random.integers(0, 3, count)
    images = random.integers(0, 60, (count, 8, 8, 1), dtype=np.uint8)
    for index, label in enumerate(labels):
        images[index, 2 * label : 2 * label + 3] += 150
    return images, np.eye(3, dtype=np.uint8)[labels]


def new(steps: int = 10, rate: float = 0.01, warmup: float = 0.25) -> keras.Model:
    keras.utils.set_random_seed(7)
    model = network.build((8, 8, 1), 3, momentum=0.9)
    training.compile_model(model, steps, rate, warmup, label_smoothing=0.1)
    return model


class Listener(keras.callbacks.Callback):  # type: ignore[misc] # Keras has no types
    """Writes down what it is told."""

    def __init__(self, told: Told) -> None:
        super().__init__()
        self.told = told

    def on_train_begin(self, logs: Any = None) -> None:
        self.told.append(("begin", 0, dict(logs or {})))

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.told.append(("epoch", epoch, dict(logs or {})))

    def on_test_begin(self, logs: Any = None) -> None:
        self.told.append(("validation", 0, dict(logs or {})))

    def on_test_end(self, logs: Any = None) -> None:
        self.told.append(("validated", 0, dict(logs or {})))

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self.told.append(("from", batch, dict(logs or {})))

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.told.append(("to", batch, dict(logs or {})))

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.told.append(("end", epoch, dict(logs or {})))

    def on_train_end(self, logs: Any = None) -> None:
        self.told.append(("done", 0, dict(logs or {})))


def run(
    model: keras.Model, batches: Batches, validation: Split = NOTHING, epochs: int = 1, *more: Any
) -> Told:
    """Train; return what callbacks were told."""
    told: Told = []
    training.train(model, batches, validation, epochs, [Listener(told), *more])
    return told


def losses(model: keras.Model, images: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Return the mean cross-entropy without smoothing, and the accuracy, on a batch."""
    probabilities = model(images, training=True).numpy()
    chosen = probabilities[labels == 1].astype(np.float64)
    return float(-np.log(chosen).mean()), float(
        (probabilities.argmax(1) == labels.argmax(1)).mean()
    )


@pytest.mark.slow
def test_it_trains_as_stock_keras_does_and_tells_callbacks_as_fit_does() -> None:
    images, labels = data(204)  # 25 whole batches
    batches = Batches(images, labels, 8, 5)
    ours, stock, before = (new(50, 0.0001) for _ in range(3))
    told = run(ours, batches, data(30), 2)

    figures = []
    for step in range(50):
        (batch,), (its,) = batches.take(step, 1, slice(None))
        before.set_weights(stock.get_weights())
        figures.append(losses(before, batch, its))
        stock.train_on_batch(batch, its.astype(np.float32))

    validated = [("validation", 0), ("validated", 0)]
    # Calls end at every twentieth step, and with an epoch.
    assert [(what, where) for what, where, _ in told] == [
        ("begin", 0),
        *[("epoch", 0), ("from", 0), ("to", 19), ("from", 20), ("to", 24), *validated, ("end", 0)],
        *[("epoch", 1), ("from", 0), ("to", 14), ("from", 15), ("to", 24), *validated, ("end", 1)],
        ("done", 0),
    ]
    start = new(50).get_weights()
    for got, expected, old in zip(ours.get_weights(), stock.get_weights(), start, strict=True):
        # Rounding grows from step to step; images in another order differ by more than they move.
        assert np.abs(got - expected).mean() < 0.25 * np.abs(expected - old).mean()
    means = [logs for what, _, logs in told if what in ("to", "end")]
    spans = ((0, 20), (20, 25), (0, 25), (25, 40), (40, 50), (25, 50))
    for logs, (first, last) in zip(means, spans, strict=True):
        loss, accuracy = np.mean(figures[first:last], axis=0)
        assert logs["cross_entropy"] == pytest.approx(loss, rel=0.02)
        assert logs["accuracy"] == pytest.approx(accuracy, abs=0.011)  # two images of 200
        assert logs["loss"] > logs["cross_entropy"]  # smoothed
        rate = float(before.optimizer._learning_rate(last))
        assert logs["learning_rate"] == pytest.approx(rate, rel=1e-5)
    ends = [logs for what, _, logs in told if what == "end"]
    names = {"loss", "accuracy", "cross_entropy"}
    assert {*ends[0]} == names | {"learning_rate"} | {f"val_{name}" for name in names}
    assert told[-1][2] == ends[-1]
    seen = [logs for what, _, logs in told if what == "validated"]
    assert seen[-1] == {name: ends[-1][f"val_{name}"] for name in names}


@pytest.mark.slow
def test_it_learns_and_its_validation_is_that_of_stock_keras() -> None:
    images, labels = data(250)  # more than are evaluated at once
    # The last images are all of one class: a mean that leaves some out is another one.
    order = np.argsort(labels.argmax(1), kind="stable")
    model = new(150)
    *_, (_, _, logs), _ = run(
        model, Batches(*data(203), 8, 5, 1), (images[order], labels[order]), 6
    )
    assert logs["val_accuracy"] > 0.9
    expected = model.evaluate(images, labels.astype(np.float32), verbose=0, return_dict=True)
    found = {name.removeprefix("val_"): logs[name] for name in logs if name.startswith("val_")}
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_it_goes_on_where_its_optimizer_is_and_stops_where_it_is_told_to() -> None:
    model, seen = new(50), []
    batches, take = Batches(*data(204), 8, 5), Batches.take

    def watched(self: Batches, step: int, count: int, own: slice) -> Split:
        seen.append((step, count))
        return take(self, step, count, own)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Batches, "take", watched)
        restore = keras.callbacks.LambdaCallback(
            on_train_begin=lambda _: model.optimizer.iterations.assign(20)
        )
        told = run(model, batches, NOTHING, 2, restore)
    assert seen == [(20, 5), (25, 15), (40, 10)]
    assert [(what, where) for what, where, _ in told[1:4]] == [
        ("epoch", 0), ("from", 20), ("to", 24),
    ]  # fmt: skip
    assert run(model, batches, NOTHING, 2)[1:] == [("done", 0, {})]  # there is nothing left

    class Stop(keras.callbacks.Callback):  # type: ignore[misc]
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:  # noqa: ARG002
            self.model.stop_training = batch == 19

    early = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda *_: setattr(model, "stop_training", True)
    )
    for stop in (Stop(), early):  # `fit`, too, takes a batch before it looks
        model.optimizer.iterations.assign(0)
        stopped = run(model, batches, NOTHING, 2, stop)
        assert [what for what, _, _ in stopped] == ["begin", "epoch", "from", "to", "end", "done"]


@pytest.mark.slow
def test_same_settings_same_bits_and_bfloat16_others_that_are_close() -> None:
    def train() -> tuple[bytes, float]:
        model = new()
        *_, (_, _, logs), _ = run(model, Batches(*data(32), 8, 5, shift=2, distortion=0.2))
        return b"".join(array.tobytes() for array in model.get_weights()), logs["cross_entropy"]

    first = train()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "STEPS_PER_CALL", 3)  # which is no part of the recipe
        assert train()[0] == first[0]
    assert train() == first
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        rounded = train()
    finally:
        keras.config.set_dtype_policy("float32")
    assert rounded[1] != first[1]
    assert rounded[1] == pytest.approx(first[1], rel=0.1)


@pytest.mark.slow
def test_learning_rate_rises_and_falls_to_nothing_or_is_constant() -> None:
    assert float(new(200, 0.125, warmup=0).optimizer.learning_rate) == 0.125
    rate = new(200, 0.01, warmup=0.25).optimizer._learning_rate
    # The peak is at 50: linear up, half a cosine down.
    steps = np.arange(0, 201, 20)
    down = 0.005 * (1 + np.cos(np.pi * (steps - 50) / 150))
    assert [float(rate(step)) for step in steps] == pytest.approx(
        np.where(steps <= 50, steps * 0.01 / 50, down), abs=1e-6
    )


@pytest.mark.slow
def test_not_enough_memory_names_the_batch_size(monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: Any, **__: Any) -> None:
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")

    # As TensorFlow does where the allocation fails; that takes more memory than a test may have.
    monkeypatch.setattr(training, "_graph", lambda function: function)
    monkeypatch.setattr(tf, "while_loop", exhausted)
    with pytest.raises(StageError, match=r"not enough memory for batches of 8 .*train.batch_size"):
        run(new(), Batches(*data(16), 8, 5))


# Networks without batch normalisation, which two devices train as one does: to other weights with
# each other loss, optimizer, schedule or limit.
SHARE = """
import json, sys
from stages.model import runtime
runtime.start(seed=1, threads=1, instructions="native")
import keras
import numpy as np
import tensorflow as tf
cpu, half = tf.config.list_physical_devices("CPU")[0], tf.config.LogicalDeviceConfiguration()
tf.config.set_logical_device_configuration(cpu, [half, half])
from keras.optimizers import SGD, Adam, schedules
from stages.model import batches, devices, training

images = np.random.default_rng(0).integers(0, 256, (24, 4, 4, 1), np.uint8)
labels = np.eye(3, dtype=np.uint8)[np.arange(24) % 3]
data = batches.Batches(images, labels, 4, 3, 1, 0.1)
smooth = keras.losses.CategoricalCrossentropy(label_smoothing=0.1)
COMPILED = {
    "plain": lambda: (SGD(0.1, name="sgd"), smooth),
    "loss": lambda: (SGD(0.1, name="sgd"), keras.losses.MeanSquaredError()),
    "optimizer": lambda: (Adam(schedules.ExponentialDecay(0.1, 2, 0.5), name="adam"), smooth),
    "clipvalue": lambda: (SGD(0.1, clipvalue=0.02, name="sgd"), smooth),
    "clipnorm": lambda: (SGD(0.1, clipnorm=0.05, name="sgd"), smooth),
    "global_clipnorm": lambda: (SGD(0.1, global_clipnorm=0.1, name="sgd"), smooth),
}

def build(compiled):
    keras.utils.set_random_seed(1)
    image = keras.Input((4, 4, 1), name="image")
    x = keras.layers.Rescaling(1 / 255, name="scale")(image)
    x = keras.layers.Flatten(name="flat")(x)
    x = keras.layers.Dense(3, "softmax", kernel_regularizer="l2", name="digit")(x)
    model = keras.Model(image, x)
    optimizer, loss = compiled()
    model.compile(optimizer, loss, metrics=["accuracy"])
    model.optimizer.build(model.trainable_variables)
    return model

report = {}
for name, compiled in COMPILED.items():
    stock = build(compiled)
    for step in range(6):
        (batch,), (its,) = data.take(step, 1, slice(None))
        stock.train_on_batch(batch, its.astype("f4"))
    report[name] = {"stock": [array.tolist() for array in stock.get_weights()]}
    for choice in ["auto"] if "clip" in name else ["single", "auto"]:
        found = devices.start(choice, 4, timeout=1)
        with found.strategy.scope():
            model = build(compiled)
        told = []
        listen = keras.callbacks.LambdaCallback(on_epoch_end=lambda _, logs: told.append(logs))
        training.train(model, data, (images, labels), 1, [listen])
        report[name][choice] = [array.tolist() for array in model.get_weights()]
        report[name][choice + " logs"] = told
        report[name][choice + " devices"] = found.strategy.num_replicas_in_sync
print(json.dumps(report))
"""


@pytest.mark.slow
def test_what_is_compiled_trains_on_one_device_and_on_two_as_in_stock_keras() -> None:
    shown = subprocess.run(
        [sys.executable, "-c", SHARE], cwd=ROOT, text=True, capture_output=True, check=True
    ).stdout
    report = json.loads(shown)
    for name, found in report.items():
        assert found["auto devices"] == 2
        assert found.get("single devices", 1) == 1
        for choice in {"single", "auto"} & found.keys():
            for got, expected in zip(found[choice], found["stock"], strict=True):
                np.testing.assert_allclose(got, expected, atol=1e-5, err_msg=name + choice)
        if "single" in found:
            assert found["auto logs"][0] == pytest.approx(found["single logs"][0], rel=1e-4)
        if name != "plain":
            difference = np.subtract(found["stock"][0], report["plain"]["stock"][0])
            assert np.abs(difference).max() > 1e-3, name
