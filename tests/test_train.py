"""The train stage, run as it is in a folder of its own, and what it refuses."""

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from folder import OUTPUTS, PARAMS, Folder

from stages import train
from stages.common.errors import StageError
from stages.model import checkpoints, devices, network, runtime, training


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    folder = Folder(tmp_path)
    folder.environment = os.environ | folder.environment  # measured
    return folder


@pytest.mark.slow
def test_outputs_are_whole_and_the_same_bits_on_one_core_and_after_a_kill(
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

    killed = subprocess.Popen(folder.command, cwd=folder.path, env=folder.environment)
    time.sleep(4)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert {name: folder.outputs()[name] for name in OUTPUTS} == first

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
    assert list(history.columns) == list(training.Row._fields)
    assert history[["step", "epoch", "images_seen"]].to_numpy().tolist() == [[6, 1, 24]]
    figures = json.loads((folder.path / OUTPUTS[2]).read_text())
    assert figures["validation"]["loss"] == pytest.approx(history.validation_loss[0], rel=1e-5)
    images = np.load(folder.path / "data/tensors/validation_images.npy")
    labels = np.load(folder.path / "data/tensors/validation_labels.npy")
    hits = model.predict(images, verbose=0).argmax(1) == labels.argmax(1)
    assert figures["validation"]["accuracy"] == pytest.approx(hits.mean(), abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("instructions", ["avx2", "native"])
def test_instructions_are_those_asked_for_whatever_the_environment_says(
    folder: Folder, instructions: str
) -> None:
    folder.write_params(instructions=instructions)
    # oneDNN says once up to which instructions it goes.
    folder.environment |= {"ONEDNN_VERBOSE": "1", "ONEDNN_MAX_CPU_ISA": "SSE41"}
    result = folder.run()
    (used,) = re.findall(r"isa:(.*)", result.stdout)
    assert used == "Intel AVX2" if instructions == "avx2" else "SSE" not in used


def refuses(folder: Folder, *wanted: str) -> None:
    """Check that the stage ends in one error line with these words and replaces nothing."""
    for name in OUTPUTS:
        (folder.path / name).parent.mkdir(parents=True, exist_ok=True)
        (folder.path / name).write_text("of the run before")
    before = folder.outputs()
    result = folder.run()
    assert result.returncode == 1
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    for words in wanted:
        assert words in line
    assert folder.outputs() == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batch_sise": 4}, "train.batch_sise is not a known key"),
        ({"batch_size": ...}, "train.batch_size is missing"),
        ({"batch_size": "64"}, "train.batch_size must be a valid integer, got '64'"),
        ({"batch_size": 1}, "train.batch_size must be greater than or equal to 2, got 1"),
        ({"epochs": 0}, "train.epochs must be greater than or equal to 1, got 0"),
        ({"epochs": True}, "train.epochs must be a valid integer, got true"),
        ({"learning_rate": float("nan")}, "train.learning_rate must be a finite number, got .nan"),
        ({"learning_rate": 0.0}, "train.learning_rate must be greater than 0, got 0.0"),
        ({"warmup": 1.0}, "train.warmup must be less than 1, got 1.0"),
        ({"precision": "float16"}, "train.precision must be 'float32' or 'mixed_bfloat16', got"),
        (
            {"precision": "mixed_bfloat16", "instructions": "avx2"},
            "train.precision must be float32 where train.instructions is avx2",
        ),
        ({"instructions": "avx"}, "train.instructions must be 'native' or 'avx2', got avx"),
        ({"seed": -1}, "train.seed must be greater than or equal to 0, got -1"),
    ],
)
def test_wrong_parameters(folder: Folder, changes: dict[str, Any], words: str) -> None:
    folder.write_params(**changes)
    refuses(folder, "params.yaml: ", words)


@pytest.mark.slow
@pytest.mark.parametrize("count", [0, 1, 3])
def test_fewer_images_than_a_batch(folder: Folder, count: int) -> None:
    folder.write_tensors(range(count))
    refuses(folder, "train.batch_size is 4", f"{count} training images")


@pytest.mark.slow
def test_one_class_only(folder: Folder) -> None:
    folder.write_tensors([2] * 12)
    refuses(folder, "data/tensors/train_labels.npy", "one class")


@pytest.mark.slow
def test_images_too_small_for_two_poolings(folder: Folder) -> None:
    folder.write_tensors(range(8), size=3)
    refuses(
        folder,
        "stages/model/network.py: the network pools the images in ",
        "of 3x3 pixels, down to nothing",
    )


def test_a_network_without_a_place_for_each_class() -> None:
    def too_few(shape: tuple[int, int, int], classes: int, momentum: float) -> keras.Model:
        return network.build(shape, classes - 1, momentum)

    with pytest.raises(StageError, match=r"network.py: the last layer gives \(9,\) for an image"):
        train.build(too_few, (8, 8, 1), 10, momentum=0.9)


@pytest.mark.slow
def test_damaged_tensors(folder: Folder) -> None:
    path = folder.path / "data/tensors/train_images.npy"
    os.truncate(path, path.stat().st_size - 1)
    refuses(folder, "data/tensors/train_images.npy")


@pytest.mark.slow
def test_a_loss_that_is_no_number(folder: Folder) -> None:
    folder.write_params(learning_rate=1e30, warmup=0.0)
    refuses(folder, "loss became", "at step", "train.learning_rate")


@pytest.mark.slow
def test_no_validation_images_leave_its_figures_out(folder: Folder) -> None:
    (rows,) = [[training.Row(2, 1, 8, 0.123456789, 0.5, 0.01, None, None)]]
    path = folder.path / "history.csv"
    train.write_history(path, rows)
    assert path.read_bytes().split(b"\n") == [
        b"step,epoch,images_seen,loss,accuracy,learning_rate,validation_loss,validation_accuracy",
        b"2,1,8,0.123457,0.5,0.01,,",
        b"",
    ]


def test_without_a_terminal_a_line_every_ten_seconds(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    clock = iter(range(0, 1000, 4))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    rows = [training.Row(n, 1, 100 * n, 0.5, 0.25, 0.01, None, None) for n in range(1, 9)]
    assert list(train.progress(rows, images=1000)) == rows
    assert capfd.readouterr().err.splitlines() == [
        "train: 300 of 1,000 images, loss 0.5000, accuracy 0.2500, 25 images/s, 28 s left",
        "train: 600 of 1,000 images, loss 0.5000, accuracy 0.2500, 25 images/s, 16 s left",
    ]


def test_progress_of_a_resumed_training_counts_from_there(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    clock = iter(range(0, 1000, 20))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    rows = [training.Row(6, 1, 600, 0.5, 0.25, 0.01, None, None)]
    assert list(train.progress(rows, images=1000, before=400)) == rows
    assert capfd.readouterr().err == (
        "train: 600 of 1,000 images, loss 0.5000, accuracy 0.2500, 10 images/s, 40 s left\n"
    )


class Setup:
    """What `train.start` hands on, when it is called in this process."""

    def __init__(self, folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
        self.versions: list[dict[str, str]] = []
        self.first_steps: list[int] = []
        self.history: list[training.Row] = []
        monkeypatch.chdir(folder.path)
        # TensorFlow runs already, on one device of this process.
        monkeypatch.setattr(runtime, "start", lambda *_: None)
        monkeypatch.setattr(devices, "start", self._devices)
        monkeypatch.setattr(checkpoints, "Checkpoints", self._checkpoints)
        monkeypatch.setattr(training, "run", self._run)

    def _devices(self, _: str, versions: dict[str, str], __: float) -> devices.Devices:
        self.versions.append(dict(versions))
        return devices.Devices(tf.distribute.get_strategy())

    def _checkpoints(self, _: keras.Model, versions: dict[str, str], every: int) -> Any:
        self.versions.append(dict(versions))
        assert every == self.parameters.checkpoint_every
        return self

    def restore(self) -> list[training.Row]:
        return self.history

    def _run(self, *arguments: Any) -> Any:
        self.first_steps.append(arguments[-1])
        return iter(())

    def start(self, **changes: Any) -> train.Run:
        self.parameters = train.TrainParams(**PARAMS | changes)
        return train.start(self.parameters, timeout=1)


@pytest.fixture
def setup(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> Setup:
    return Setup(folder, monkeypatch)


def test_the_setup_is_what_the_parameters_say(setup: Setup) -> None:
    run = setup.start(momentum=0.75, epochs=2)
    assert [run.model.get_layer(f"norm{n}").momentum for n in (1, 2, 3)] == [0.75] * 3
    assert run.images == 48
    assert setup.first_steps == [0]
    setup.history = [training.Row(5, 1, 20, 0.5, 0.25, 0.01, None, None)]
    assert setup.start().history == setup.history
    assert setup.first_steps == [0, 5]


def test_the_setup_tells_checkpoints_and_workers_all_that_decides_the_result(setup: Setup) -> None:
    kept = Path("data/checkpoints/abc/ckpt-100.index")
    kept.parent.mkdir(parents=True)
    kept.touch()
    setup.start(checkpoint_every=0)
    setup.start(checkpoint_every=100)
    workers, first, compared, second = setup.versions
    assert set(workers) == {"code", "parameters", "tensors"}
    # The devices share a batch, so their number decides how it is normalised.
    assert first == second == workers | {"devices": "1"}
    assert str(kept) in compared.pop("checkpoints")
    assert compared == workers


@pytest.mark.parametrize(("fast", "warned"), [(True, False), (False, True)])
def test_the_setup_warns_where_bfloat16_is_slow(
    setup: Setup,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fast: bool,
    warned: bool,
) -> None:
    monkeypatch.setattr(runtime, "has_fast_bfloat16", lambda: fast)
    setup.start(precision="float32")
    assert capsys.readouterr().err == ""
    setup.start(precision="mixed_bfloat16")
    assert ("warning: this CPU has no fast bfloat16" in capsys.readouterr().err) == warned


def test_the_setup_refuses_what_cannot_train(setup: Setup, folder: Folder) -> None:
    with pytest.raises(StageError, match=r"train.precision must be float32 where .* is avx2"):
        setup.start(precision="mixed_bfloat16", instructions="avx2")
    folder.write_tensors([2] * 12)
    with pytest.raises(StageError, match=r"train_labels.npy: all images are of one class"):
        setup.start()


def test_a_batch_of_all_images_is_as_large_as_it_can_be(setup: Setup, folder: Folder) -> None:
    folder.write_tensors(range(8))
    assert setup.start(batch_size=8).images == 8
    with pytest.raises(StageError, match=r"train.batch_size is 9, but there are only 8 training"):
        setup.start(batch_size=9)


def test_a_worker_that_resumes_at_the_end_has_nothing_left_to_do(
    setup: Setup, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    second = devices.Devices(tf.distribute.get_strategy(), worker=1, workers=2)
    monkeypatch.setattr(devices, "start", lambda *_: second)
    setup.parameters = train.TrainParams(**PARAMS)
    train.main()
    assert capsys.readouterr().out == "worker 1 of 2: trained on 24 images\n"
