"""A training that is killed goes on from its last checkpoint, and ends with the same bits."""

import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from folder import Folder

from stages.common import paths
from stages.common.errors import StageError
from stages.model import checkpoints as module
from stages.model.checkpoints import Checkpoints
from stages.model.training import Row

SETTINGS: dict[str, Any] = {"epochs": 12, "shift": 1, "distortion": 0.1}


def prepared(path: Path, **settings: Any) -> Folder:
    folder = Folder(path)
    folder.write_tensors(range(260))  # 65 steps an epoch
    folder.write_params(**SETTINGS | settings)
    return folder


def checkpoints(folder: Folder) -> list[Path]:
    return sorted((folder.path / "data/checkpoints").rglob("*.index"))


def killed(path: Path, number: signal.Signals) -> Folder:
    """Return a folder whose training was killed after a checkpoint."""
    folder = prepared(path, checkpoint_every=100)
    with subprocess.Popen(
        folder.command, cwd=folder.path, env=folder.environment, stderr=subprocess.DEVNULL
    ) as process:
        deadline = time.monotonic() + 60
        # The file that names the last checkpoint is written after it.
        while not list(folder.path.glob("data/checkpoints/*/checkpoint")):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(number)
    assert process.returncode != 0
    assert checkpoints(folder)
    return folder


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The hashes of what a training writes that nobody kills."""
    folder = prepared(tmp_path_factory.mktemp("undisturbed"))
    assert folder.run().returncode == 0
    return folder.outputs()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_it_goes_on_and_ends_with_the_same_bits(
    undisturbed: dict[str, str], tmp_path: Path, number: signal.Signals
) -> None:
    folder = killed(tmp_path, number)
    steps = {int(file.stem.split("-")[1]) for file in checkpoints(folder)}
    result = folder.run()
    assert result.returncode == 0
    first = result.stderr.splitlines()[0]
    assert first in {f"train: resumes from the checkpoint after step {step}" for step in steps}
    assert folder.outputs() == undisturbed  # no checkpoint is left either


@pytest.mark.slow
def test_only_a_checkpoint_of_the_same_training_is_used(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = killed(tmp_path, signal.SIGKILL)
    before = checkpoints(folder)

    def starts_anew() -> None:
        result = folder.run()
        assert result.returncode == 0
        assert "resumes" not in result.stderr
        assert checkpoints(folder) == before  # for whoever goes back

    folder.write_params(**SETTINGS | {"epochs": 2}, checkpoint_every=100)
    starts_anew()
    folder.write_params(**SETTINGS, checkpoint_every=100)
    folder.write_tensors(range(261))
    starts_anew()
    folder.write_tensors(range(260))
    code = tmp_path_factory.mktemp("code")
    sound = folder.environment["PYTHONPATH"]
    shutil.copytree(Path(sound, "stages"), code / "stages")
    with (code / "stages/model/network.py").open("a") as file:
        file.write("# changed\n")
    folder.environment["PYTHONPATH"] = str(code)
    starts_anew()

    folder.environment["PYTHONPATH"] = sound
    last = before[-1]
    for data in last.parent.glob("*.data-00000-of-00001"):
        data.write_bytes(data.read_bytes()[:1000])
    result = folder.run()
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith(
        f"error: {last.parent.relative_to(folder.path)}: the checkpoint is damaged"
    )
    assert line.endswith("delete the folder to train from the start")
    shutil.rmtree(last.parent)
    assert "resumes" not in folder.run().stderr


VERSIONS = {"code": "a", "parameters": "b"}
ROWS = [Row(step, 1, 10 * step, 0.1, 0.5, 0.01, None, None) for step in (20, 40, 45, 65, 90)]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def model(value: float, units: int = 2) -> keras.Model:
    """Return a model all of whose variables, and those of its optimizer, have one value."""
    image = keras.Input((3,), name="image")
    made = keras.Model(image, keras.layers.Dense(units, name="digit")(image))
    made.compile(keras.optimizers.Adam(0.01, name="adam"), "mse")
    made.optimizer.build(made.trainable_variables)
    for variable in [*made.variables, *made.optimizer.variables]:
        variable.assign(np.full(variable.shape, value))
    return made


def saved() -> list[int]:
    """Return the steps of the checkpoints that are here."""
    return [int(file.stem.split("-")[1]) for file in paths.CHECKPOINTS.rglob("*.index")]


@pytest.mark.usefixtures("here")
def test_a_checkpoint_is_saved_each_time_so_many_steps_are_done() -> None:
    there = []
    for row in Checkpoints(model(1), VERSIONS, every=40).save(iter(ROWS)):
        there.append((row.step, saved()))
    assert there == [(20, []), (40, [40]), (45, [40]), (65, [40]), (90, [90])]


@pytest.mark.usefixtures("here")
def test_a_checkpoint_brings_back_the_model_its_optimizer_and_the_history() -> None:
    before = Checkpoints(model(3), VERSIONS, every=40)
    assert before.restore() == []
    assert list(before.save(iter(ROWS[:3]))) == ROWS[:3]

    again = model(0)
    after = Checkpoints(again, VERSIONS, every=40)
    assert after.restore() == ROWS[:2]
    for variable in [*again.variables, *again.optimizer.variables]:
        np.testing.assert_array_equal(variable, 3, err_msg=variable.path)
    assert list(after.save(iter(ROWS[2:]))) == ROWS[2:]
    assert saved() == [90]
    after.remove()
    assert saved() == []


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("name", VERSIONS)
def test_a_checkpoint_of_other_versions_is_left_alone(name: str) -> None:
    list(Checkpoints(model(3), VERSIONS, every=40).save(iter(ROWS)))
    assert Checkpoints(model(0), VERSIONS | {name: "other"}, every=40).restore() == []
    assert saved() == [90]


@pytest.mark.usefixtures("here")
def test_without_the_parameter_none_is_saved_or_used() -> None:
    list(Checkpoints(model(3), VERSIONS, every=0).save(iter(ROWS)))
    assert saved() == []
    list(Checkpoints(model(3), VERSIONS, every=40).save(iter(ROWS)))
    assert Checkpoints(model(0), VERSIONS, every=0).restore() == []


@pytest.mark.usefixtures("here")
def test_a_checkpoint_that_does_not_hold_the_whole_model_is_refused() -> None:
    list(Checkpoints(model(3), VERSIONS, every=40).save(iter(ROWS)))
    other = model(0)
    other.extra = keras.layers.Dense(1)
    other.extra.build((None, 3))
    with pytest.raises(StageError, match=r"(?s)the checkpoint is damaged: .*delete the folder"):
        Checkpoints(other, VERSIONS, every=40).restore()


@pytest.mark.usefixtures("here")
def test_workers_can_compare_the_checkpoints_that_they_have() -> None:
    assert module.present() == ""
    list(Checkpoints(model(3), VERSIONS, every=40).save(iter(ROWS[:2])))
    first = module.present()
    assert "-40.index" in first
    list(Checkpoints(model(3), VERSIONS, every=90).save(iter(ROWS)))
    assert module.present() != first
