"""The train stage, run as it is in a folder of its own, and what it refuses."""

import json
import os
import subprocess
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
import pytest
from folder import OUTPUTS, PARAMS, Folder

import stages
from stages import train
from stages.common import params, paths
from stages.common.errors import StageError
from stages.model import callbacks, network, runtime, training


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    folder = Folder(tmp_path)
    folder.environment = os.environ | folder.environment  # measured
    return folder


@pytest.mark.slow
def test_outputs_are_whole_and_the_same_bits_on_one_core(
    folder: Folder, tmp_path_factory: pytest.TempPathFactory
) -> None:
    status, shown = folder.run_on_a_terminal()
    assert status == 0, shown
    *bar, result = shown.replace("\r\n", "\n").rstrip("\n").split("\n")
    # A bar and one line of result; nothing of what TensorFlow has to say.
    assert result.startswith("training accuracy 0.")
    assert "; validation accuracy 0." in result
    final = "".join(bar).split("\r")[-1]
    for part in ("train: 100%", "24/24", "images/s", "loss=", "accuracy=", "<00:00"):
        assert part in final
    assert all(
        not piece.strip("\x1b[A ") or "train:" in piece for piece in "".join(bar).split("\r")
    )
    first = folder.outputs()
    assert tuple(first) == OUTPUTS

    os.truncate(folder.path / OUTPUTS[1], 10)
    # With half of the cores, and with threads and settings that TensorFlow and Keras would take
    # from the environment.
    folder.environment["TF_NUM_INTRAOP_THREADS"] = "1"
    keras_home = tmp_path_factory.mktemp("keras")
    settings = {"floatx": "float64", "epsilon": 0.1, "image_data_format": "channels_first"}
    (keras_home / "keras.json").write_text(json.dumps(settings))
    folder.environment["KERAS_HOME"] = str(keras_home)
    again = folder.run(
        preexec_fn=lambda: os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:1])
    )
    assert (again.returncode, again.stderr) == (0, "")
    assert folder.outputs() == first

    model = keras.models.load_model(folder.path / OUTPUTS[0])
    assert model.input_shape == (None, 8, 8, 1)
    assert int(model.optimizer.iterations.numpy()) == 6
    history = pd.read_csv(folder.path / OUTPUTS[1])
    assert history[["step", "epoch", "images_seen"]].to_numpy().tolist() == [[6, 1, 24]]
    figures = json.loads((folder.path / OUTPUTS[2]).read_text())
    assert figures["validation"]["loss"] == pytest.approx(history.validation_loss[0], rel=1e-5)
    accuracy = folder.evaluate()["accuracy"]
    assert figures["validation"]["accuracy"] == pytest.approx(accuracy, abs=1e-6)


@pytest.mark.slow
def test_a_killed_training_goes_on_and_ends_with_the_same_bits(tmp_path: Path) -> None:
    folders = []
    for name in ("killed", "undisturbed"):
        folder = Folder(tmp_path / name)
        folder.write_tensors(range(140))  # 35 steps an epoch
        folder.write_params(epochs=12, checkpoint_every=20, patience=9)
        folders.append(folder)
    killed, undisturbed = folders
    with subprocess.Popen(
        killed.command, cwd=killed.path, env=killed.environment, stderr=subprocess.DEVNULL
    ) as process:
        deadline = time.monotonic() + 120
        # In the second epoch, whose validation has decided what is the best so far.
        history = killed.path / OUTPUTS[1]
        while not history.exists() or "\n60,2," not in history.read_text():
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.kill()
    assert len(history.read_text().splitlines()) > 2  # it grew while it trained
    assert not (killed.path / OUTPUTS[0]).exists()

    resumed, whole = killed.run(), undisturbed.run()
    assert resumed.returncode == whole.returncode == 0
    assert whole.stderr == ""
    (line,) = resumed.stderr.splitlines()
    assert line.startswith("train: resumes from the checkpoint after step ")
    assert killed.outputs() == undisturbed.outputs()  # no checkpoint is left either
    assert {*killed.outputs()} == {*OUTPUTS}


# In this process, where TensorFlow runs already.


@pytest.fixture
def here(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> Iterator[Folder]:
    monkeypatch.chdir(folder.path)
    monkeypatch.setattr(runtime, "start", lambda seed, *_: keras.utils.set_random_seed(seed))
    yield folder
    keras.config.set_dtype_policy("float32")


def refuses(folder: Folder, *wanted: str) -> None:
    """Check that the stage raises one StageError with these words and writes nothing."""
    before = folder.outputs()
    with pytest.raises(StageError) as caught:
        train.main()
    for words in wanted:
        assert words in str(caught.value)
    assert folder.outputs() == before


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batch_sise": 4}, "train.batch_sise is not a known key"),
        ({"batch_size": ...}, "train.batch_size is missing"),
        ({"batch_size": "64"}, "train.batch_size must be a valid integer, got '64'"),
        ({"batch_size": 1}, "train.batch_size must be greater than or equal to 2, got 1"),
        ({"epochs": 0}, "train.epochs must be greater than or equal to 1, got 0"),
        ({"epochs": True}, "train.epochs must be a valid integer, got True"),
        ({"learning_rate": float("nan")}, "train.learning_rate must be a finite number, got nan"),
        ({"learning_rate": 0.0}, "train.learning_rate must be greater than 0, got 0.0"),
        ({"learning_rate": 1e39}, "train.learning_rate must be less than or equal to 1"),
        ({"warmup": 1.0}, "train.warmup must be less than 1, got 1.0"),
        ({"patience": -1}, "train.patience must be greater than or equal to 0, got -1"),
        ({"precision": "float16"}, "train.precision must be 'float32' or 'mixed_bfloat16', got"),
        ({"seed": -1}, "train.seed must be greater than or equal to 0, got -1"),
        ({"seed": 2**32}, "train.seed must be less than 4294967296, got 4294967296"),
        (
            {"precision": "mixed_bfloat16", "instructions": "portable"},
            "train.precision must be float32 where train.instructions is portable",
        ),
        ({"checkpoint_every": 30}, "train.checkpoint_every is 30; it must be a multiple of 20"),
    ],
)
def test_wrong_parameters(here: Folder, changes: dict[str, Any], words: str) -> None:
    here.write_params(**changes)
    refuses(here, "params.yaml: ", words)


@pytest.mark.parametrize("seconds", [0.5, 1e6])
def test_a_wait_that_cannot_be(here: Folder, seconds: float) -> None:
    here.limits["worker_timeout"] = seconds
    here.write_params()
    refuses(here, "params.yaml: limits.worker_timeout must be ")


@pytest.mark.parametrize("count", [0, 3])
def test_fewer_images_than_a_batch(here: Folder, count: int) -> None:
    here.write_tensors(range(count))
    refuses(here, "train.batch_size is 4", f"{count} training images")


def test_one_class_only(here: Folder) -> None:
    here.write_tensors([2] * 12)
    refuses(here, "data/tensors/train_labels.npy", "one class")
    here.write_tensors([0, 1] * 6, classes=2)
    assert len(train.load(train.TrainParams(**PARAMS))[0][0]) == 12


def test_patience_without_images_to_validate(here: Folder) -> None:
    here.write_params(patience=2)
    here.write_tensors(range(26), validation=0)
    refuses(here, "train.patience is 2, but there are no validation images", "validation_size")


def test_damaged_tensors(here: Folder) -> None:
    path = here.path / "data/tensors/train_images.npy"
    os.truncate(path, path.stat().st_size - 1)
    refuses(here, "data/tensors/train_images.npy")


def test_images_too_small_for_two_poolings(here: Folder) -> None:
    here.write_tensors(range(8), size=3)
    refuses(here, "stages/model/network.py: the network pools images of 3x3 pixels down ")


@pytest.mark.slow
def test_a_loss_that_is_no_number_leaves_the_history_alone(here: Folder) -> None:
    here.write_params(learning_rate=1e30, warmup=0.0)
    with pytest.raises(StageError, match=r"the loss became (nan|inf) by step 6; .*learning_rate"):
        train.main()
    assert {*here.outputs()} == {OUTPUTS[1]}


@pytest.mark.slow
def test_patience_stops_and_saves_the_best(
    here: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    here.write_params(patience=2, epochs=40, learning_rate=0.05, warmup=0.0)
    train.main()
    history = pd.read_csv(here.path / OUTPUTS[1])
    epochs = history.dropna()  # the last rows of the epochs
    losses = epochs["validation_loss"].tolist()
    best = int(np.argmin(losses))
    assert len(losses) == best + 3 < 40
    figures = json.loads((here.path / OUTPUTS[2]).read_text())
    assert figures["validation"]["loss"] == pytest.approx(losses[best], rel=1e-5)
    rows = history[history["epoch"] == best + 1]
    weights = rows["images_seen"].diff().fillna(rows["images_seen"] - 24 * best)
    mean = np.average(rows["loss"], weights=weights)
    assert figures["training"]["loss"] == pytest.approx(mean, rel=1e-5)
    assert f"loss {losses[best]:.4f}" in capsys.readouterr().out
    assert here.evaluate()["cross_entropy"] == pytest.approx(losses[best], rel=1e-4)


class Setup:
    """What `train.main` hands to the loop."""

    def __init__(self, here: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
        self.here = here
        monkeypatch.setattr(training, "train", self._train)

    def _train(self, *arguments: Any) -> None:
        self.model, self.batches, self.validation, self.epochs, self.callbacks = arguments
        raise KeyboardInterrupt

    def start(self, **changes: Any) -> Any:
        self.here.write_params(**changes)
        with pytest.raises(KeyboardInterrupt):
            train.main()
        return self


@pytest.fixture
def setup(here: Folder, monkeypatch: pytest.MonkeyPatch) -> Setup:
    return Setup(here, monkeypatch)


@pytest.mark.slow
def test_the_setup_is_what_the_parameters_say(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = keras.callbacks.TerminateOnNaN()
    monkeypatch.setattr(callbacks, "callbacks", lambda: [own])
    found = setup.start(momentum=0.75, epochs=2, label_smoothing=0.3, learning_rate=0.5, warmup=0.5)
    assert [found.model.get_layer(f"norm{n}").momentum for n in (1, 2, 3)] == [0.75] * 3
    assert found.model.loss.label_smoothing == 0.3
    schedule = found.model.optimizer.get_config()["learning_rate"]["config"]
    assert (schedule["warmup_target"], schedule["warmup_steps"]) == (0.5, 6)
    assert schedule["decay_steps"] == 6
    batches = found.batches
    assert (batches.size, batches.seed, batches.shift, batches.distortion) == (4, 1, 1, 0.1)
    assert (found.epochs, len(found.validation[0])) == (2, 9)
    assert own in found.callbacks
    kinds = [type(callback) for callback in found.callbacks]
    assert keras.callbacks.EarlyStopping not in kinds
    assert {layer.dtype_policy.name for layer in found.model.layers} == {"float32"}

    found = setup.start(patience=7, precision="mixed_bfloat16")
    stopping = found.callbacks[0]
    assert (stopping.patience, stopping.restore_best_weights) == (7, True)
    policies = {layer.name: layer.dtype_policy.name for layer in found.model.layers}
    assert policies["conv1"] == policies["norm1"] == policies["dense"] == "mixed_bfloat16"
    assert policies["digit"] == "float32"


@pytest.mark.slow
def test_a_checkpoint_is_of_all_that_decides_the_result(
    setup: Setup, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def small(shape: tuple[int, ...], classes: int, _: float) -> keras.Model:
        last = keras.layers.Dense(classes, "softmax", name="digit")
        return keras.Sequential([keras.Input(shape), keras.layers.Flatten(name="flat"), last])

    monkeypatch.setattr(network, "build", small)

    def name(**changes: Any) -> Path:
        return next(
            c._file for c in setup.start(**changes).callbacks if type(c) is callbacks.Checkpoints
        )

    first = name()
    assert first.parent == paths.CHECKPOINTS
    assert name(checkpoint_every=40) == first
    others = {name(seed=2), name(epochs=2), name(strategy="single")}
    setup.here.write_tensors(range(27))
    others.add(name())
    setup.here.write_tensors(range(26))
    assert name() == first
    code = tmp_path / "code/model"
    code.mkdir(parents=True)
    (code / "new.py").write_text("1")
    monkeypatch.setattr(stages, "__path__", [str(code.parent)])
    others.add(name())
    (code / "new.py").write_text("2")
    others.add(name())
    monkeypatch.setattr(metadata, "version", lambda _: "0.1")
    others.add(name())
    assert len(others | {first}) == 8


def test_every_parameter_is_in_the_file() -> None:
    assert params.load("train", train.TrainParams, Path(__file__).parents[1] / "params.yaml")
