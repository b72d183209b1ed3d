"""A training that is killed goes on from its last checkpoint, and ends with the same bits."""

import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from folder import Folder

pytestmark = pytest.mark.slow

SETTINGS: dict[str, Any] = {"epochs": 60, "shift": 1, "distortion": 0.1}


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    folder = Folder(tmp_path)
    folder.write_tensors(range(260))  # 65 steps an epoch
    folder.write_params(**SETTINGS, checkpoint_every=100)
    return folder


def checkpoints(folder: Folder) -> list[Path]:
    return sorted((folder.path / "data/checkpoints").rglob("*.index"))


def kill_after_a_checkpoint(folder: Folder, number: signal.Signals) -> None:
    with subprocess.Popen(
        folder.command, cwd=folder.path, env=folder.environment, stderr=subprocess.DEVNULL
    ) as process:
        deadline = time.monotonic() + 60
        # The file that names the last checkpoint is written after it.
        while not list(folder.path.glob("data/checkpoints/*/checkpoint")):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(number)
    assert process.returncode != 0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_it_goes_on_and_ends_with_the_same_bits(
    folder: Folder, tmp_path_factory: pytest.TempPathFactory, number: signal.Signals
) -> None:
    undisturbed = Folder(tmp_path_factory.mktemp("undisturbed"))
    undisturbed.write_tensors(range(260))
    undisturbed.write_params(**SETTINGS)
    assert undisturbed.run().returncode == 0

    kill_after_a_checkpoint(folder, number)
    steps = {int(file.stem.split("-")[1]) for file in checkpoints(folder)}
    result = folder.run()
    assert result.returncode == 0
    first = result.stderr.splitlines()[0]
    assert first in {f"train: goes on from the checkpoint after step {step}" for step in steps}
    assert folder.outputs() == undisturbed.outputs()  # no checkpoint is left either


@pytest.mark.parametrize("change", ["parameters", "tensors", "code"])
def test_a_checkpoint_of_another_training_is_not_used(
    folder: Folder, tmp_path_factory: pytest.TempPathFactory, change: str
) -> None:
    kill_after_a_checkpoint(folder, signal.SIGKILL)
    settings = SETTINGS | {"epochs": 2}
    if change == "tensors":
        folder.write_tensors(range(261))
        settings = SETTINGS
    if change == "code":
        code = tmp_path_factory.mktemp("code")
        shutil.copytree(Path(folder.environment["PYTHONPATH"], "stages"), code / "stages")
        with (code / "stages/model/network.py").open("a") as file:
            file.write("# changed\n")
        folder.environment["PYTHONPATH"] = str(code)
        settings = SETTINGS
    folder.write_params(**settings, checkpoint_every=100)
    result = folder.run()
    assert result.returncode == 0
    assert "goes on" not in result.stderr
    assert checkpoints(folder)  # the other one, for whoever goes back


def test_a_damaged_checkpoint(folder: Folder) -> None:
    kill_after_a_checkpoint(folder, signal.SIGKILL)
    last = checkpoints(folder)[-1]
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
    assert folder.run().returncode == 0
