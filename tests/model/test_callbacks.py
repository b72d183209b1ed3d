"""What watches a training: the pipeline's own callbacks, and Keras'."""

import io
import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
import pytest
from tqdm import tqdm

from stages.common.errors import StageError
from stages.model import callbacks as module
from stages.model import training
from stages.model.batches import Batches
from stages.model.callbacks import Checkpoints, FiniteLoss, History, Progress

HEADER = "step,epoch,images_seen,loss,accuracy,learning_rate,validation_loss,validation_accuracy\n"


def model(value: float = 0) -> keras.Model:
    """Return a small model all of whose variables, and those of its optimizer, have one value."""
    image = keras.Input((4, 4, 1), name="image")
    x = keras.layers.Flatten(name="flat")(image)
    made = keras.Model(image, keras.layers.Dense(3, "softmax", name="digit")(x))
    training.compile_model(made, 100, 0.01, 0, 0)
    for variable in [*made.variables, *made.optimizer.variables]:
        variable.assign(np.full(variable.shape, value))
    return made


class Loop:
    """Calls callbacks as the training loop does, without training: an epoch is 45 steps."""

    def __init__(self, watched: keras.Model, *callbacks: keras.callbacks.Callback) -> None:
        self.list = keras.callbacks.CallbackList(list(callbacks), model=watched, epochs=2, steps=45)
        watched.stop_training = False
        self.model = watched
        self.list.on_train_begin()

    def to(self, step: int, value: float = 0.5) -> None:
        """Go on to a step, by a call; all figures have this value."""
        self.model.optimizer.iterations.assign(step)
        names = ("loss", "cross_entropy", "accuracy", "learning_rate")
        self.list.on_train_batch_end((step - 1) % 45, dict.fromkeys(names, value))

    def end(self, value: float | None = None) -> None:
        """End an epoch; the figures of validation have this value."""
        names = ("val_loss", "val_cross_entropy", "val_accuracy")
        self.list.on_epoch_end(0, {} if value is None else dict.fromkeys(names, value))


def test_history_grows_row_by_row(tmp_path: Path) -> None:
    file = tmp_path / "metrics/history.csv"
    history = History(file, batch_size=10)
    loop = Loop(model(), history)
    assert file.read_bytes() == HEADER.encode()
    loop.to(20, 0.123456789)
    first = "20,1,200,0.123457,0.123457,0.123457,,\n"
    assert file.read_text() == HEADER + first
    loop.to(45, 0.75)
    last = "45,1,450,0.75,0.75,0.75,"
    assert file.read_text() == HEADER + first + last + ",\n"
    loop.end(0.25)
    assert file.read_text() == HEADER + first + last + "0.25,0.25\n"
    loop.to(60, 1.0)
    assert file.read_text().splitlines()[-1] == "60,2,600,1,1,1,,"
    loop.to(90, 4.0)
    loop.end()
    assert file.read_text().splitlines()[-1] == "90,2,900,4,4,4,,"

    mean = pytest.approx((200 * 0.123456789 + 250 * 0.75) / 450)
    assert history.summary(1) == {
        "training": {"accuracy": mean, "loss": mean},
        "validation": {"accuracy": 0.25, "loss": 0.25},
    }
    assert history.summary(2) == {"training": {"accuracy": 3.0, "loss": 3.0}}


def test_history_tells_losses_without_smoothing(tmp_path: Path) -> None:
    history = History(tmp_path / "history.csv", batch_size=10)
    loop = Loop(model(), history)
    names = ("cross_entropy", "accuracy", "learning_rate", "val_cross_entropy", "val_accuracy")
    logs = {name: float(number) for number, name in enumerate(names)}
    loop.list.on_train_batch_end(19, logs | {"loss": 9.0})
    loop.list.on_epoch_end(0, logs | {"val_loss": 9.0})
    assert list(history.rows[0].values())[3:] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_a_loss_that_is_no_number_ends_the_training(bad: float) -> None:
    loop = Loop(model(), FiniteLoss())
    loop.to(20, 1e30)
    with pytest.raises(StageError, match=f"the loss became {bad} by step 40; .*learning_rate"):
        loop.to(40, bad)


def test_the_bar_shows_images_from_where_the_training_goes_on() -> None:
    shown = io.StringIO()
    with tqdm(total=900, file=shown, mininterval=0, ncols=100) as bar:
        loop = Loop(model(20), Progress(bar, batch_size=10))
        assert (bar.n, bar.initial) == (200, 200)
        loop.to(45, 0.25)
        assert bar.n == 450
    assert "loss=0.2500, accuracy=0.2500" in shown.getvalue()


def files_in(folder: Path) -> list[str]:
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


def test_a_checkpoint_is_saved_after_so_many_steps_and_behind_the_validation(
    tmp_path: Path,
) -> None:
    file = tmp_path / "a/b.npz"
    history = History(tmp_path / "history.csv", 10)
    for every, steps in ((20, [20, 40, 60, 80]), (40, [40, 80]), (45, [45, 90]), (0, [])):
        file.unlink(missing_ok=True)
        loop, saved = Loop(model(), history, Checkpoints(file, every, history, [])), []
        for step in (20, 40, 45, 60, 80, 90):
            before = file.exists() and file.read_bytes()
            loop.to(step)
            if step % 45 == 0:
                assert (file.exists() and file.read_bytes()) == before
                loop.end(0.5)
            if file.exists() and file.read_bytes() != before:
                saved.append(step)
        assert saved == steps
    loop = Loop(model(), history, Checkpoints(file, 45, history, []))
    loop.to(45)
    loop.model.stop_training = True  # what resumes from here would train another epoch
    loop.end(0.5)
    assert not file.exists()


def test_a_checkpoint_brings_back_all_that_the_rest_depends_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, table = tmp_path / "checkpoint.npz", tmp_path / "history.csv"

    def start(value: float, saves: bool = True) -> tuple[Loop, History, Any]:
        history, (stopping,) = History(table, 10), module.patience(3)
        checkpoints = Checkpoints(file, 40, history, [stopping], saves)
        first = [history] if saves else []
        return Loop(model(value), stopping, *first, checkpoints), history, stopping

    loop, history, stopping = start(3)
    for step, value in ((45, 0.5), (90, 0.75)):
        loop.to(step)
        loop.end(value)
    loop.to(120)
    rows = [*history.rows]
    before = table.read_bytes()
    best = stopping.best_weights
    loop.to(135)

    again, resumed, stopping = start(0)
    assert "train: resumes from the checkpoint after step 120\n" in capsys.readouterr().err
    assert resumed.rows == rows
    assert table.read_bytes() == before
    assert int(again.model.optimizer.iterations.numpy()) == 120
    for variable in [*again.model.variables, *again.model.optimizer.variables[2:]]:
        np.testing.assert_array_equal(variable, 3, err_msg=variable.path)
    assert (stopping.best, stopping.best_epoch, stopping.wait) == (0.5, 0, 1)
    for got, expected in zip(stopping.best_weights, best, strict=True):
        np.testing.assert_array_equal(got, expected)

    table.unlink()
    other, _, _ = start(0, saves=False)  # a worker that is not the first
    assert int(other.model.optimizer.iterations.numpy()) == 120
    saved = file.read_bytes()
    other.to(160)
    assert file.read_bytes() == saved
    assert not table.exists()
    Loop(model(), Checkpoints(file, 0, history, []))  # none are wanted: none is used


@pytest.mark.parametrize("damage", ["empty", "short", "text", "other"])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, damage: str) -> None:
    file, history = tmp_path / "checkpoint.npz", History(tmp_path / "history.csv", 10)
    Loop(model(), history, Checkpoints(file, 20, history, [])).to(20)
    content = file.read_bytes()
    file.write_bytes({"empty": b"", "short": content[:-400], "text": b"text"}.get(damage, content))
    if damage == "other":
        np.savez(file, state="{}")
    with pytest.raises(StageError, match=r"npz: the checkpoint is damaged: .*delete it to train"):
        Loop(model(), history, Checkpoints(file, 20, history, []))


def test_a_folder_of_checkpoints_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file")
    history = History(tmp_path / "history.csv", 10)
    loop = Loop(model(), history, Checkpoints(tmp_path / "checkpoints/a.npz", 20, history, []))
    with pytest.raises(OSError, match="checkpoints") as caught:
        loop.to(20)
    assert str(tmp_path / "checkpoints") in str(caught.value.filename)


def test_the_epoch_that_is_kept_is_the_last_or_the_best(tmp_path: Path) -> None:
    assert module.patience(0) == []
    for restores, kept in ((True, 2), (False, 4)):
        stopping = keras.callbacks.EarlyStopping(
            "val_accuracy", mode="max", restore_best_weights=restores, patience=9
        )
        history = History(tmp_path / "history.csv", 10)
        loop = Loop(model(), stopping, history)
        for epoch, value in enumerate([0.1, 0.9, 0.5, 0.4]):
            loop.to(45 * epoch + 45)
            loop.list.on_epoch_end(epoch, {"val_accuracy": value})
        assert module.epoch_kept([FiniteLoss(), stopping], history) == kept


@pytest.mark.slow
def test_any_callback_of_keras_works(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    labels = np.eye(3, dtype=np.uint8)[np.arange(48) % 3]
    images = random.integers(0, 256, (48, 4, 4, 1), np.uint8)
    told: list[Any] = []
    keras.utils.set_random_seed(1)
    trained = model(0.1)
    trained.optimizer.iterations.assign(0)
    kinds = keras.callbacks
    backup = kinds.BackupAndRestore(str(tmp_path / "backup"), delete_checkpoint=False)
    some = [
        kinds.EarlyStopping("val_loss", patience=1, min_delta=1e6, restore_best_weights=True),
        kinds.ModelCheckpoint(str(tmp_path / "{epoch}.keras")),
        kinds.CSVLogger(str(tmp_path / "log.csv")),
        kinds.LambdaCallback(on_epoch_end=lambda epoch, logs: told.append((epoch, logs))),
        kinds.ReduceLROnPlateau("val_loss", min_delta=1e6, patience=1),
        kinds.TerminateOnNaN(),
        kinds.ProgbarLogger(),
        backup,
    ]
    if find_spec("tensorboard"):
        some.append(kinds.TensorBoard(str(tmp_path / "logs"), update_freq=1))
    batches = Batches(images, labels, 4, 1)
    training.train(trained, batches, (images, labels), 9, some)

    assert [epoch for epoch, _ in told] == [0, 1]  # it never becomes so much better
    log = pd.read_csv(tmp_path / "log.csv")
    assert log["val_loss"].tolist() == pytest.approx([logs["val_loss"] for _, logs in told])
    assert log["loss"].tolist() == pytest.approx([logs["loss"] for _, logs in told])
    first, last = (keras.models.load_model(tmp_path / f"{epoch}.keras") for epoch in (1, 2))
    for got, expected, other in zip(
        *(m.get_weights() for m in (trained, first, last)), strict=True
    ):
        np.testing.assert_array_equal(got, expected)
        assert (got != other).any()
    assert float(trained.optimizer.learning_rate.numpy()) == pytest.approx(0.01)  # a tenth
    if find_spec("tensorboard"):
        assert list((tmp_path / "logs").rglob("events*"))

    again = model(0.1)  # after a kill, a third epoch
    training.train(again, batches, (images, labels), 3, [backup])
    assert int(again.optimizer.iterations.numpy()) == 36
