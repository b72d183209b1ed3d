"""Two at once in a clone, two clones on a cache, and stages that are stopped or fail."""

import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest
from project import Project, contents

REMEDY = (
    "; DVC removed the old outputs of this stage before it ran: "
    "`git restore metrics` and `dvc checkout` bring them back\n"
)


def start(project: Project, *command: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        cwd=project.path,
        env=project.env | {"PYTHONUNBUFFERED": "1"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def wait_for(run: subprocess.Popen[str], line: str) -> None:
    """Read what a command prints until it prints `line`."""
    assert run.stdout is not None
    for printed in run.stdout:
        if line in printed:
            return
    pytest.fail(f"{line} was not printed")


def test_two_clones_share_a_cache(finished: Project, tmp_path: Path) -> None:
    shared = tmp_path / "cache"
    (finished.path / ".dvc/cache").rename(shared)
    clones = (finished, finished.clone(tmp_path / "other"))
    for clone in clones:
        clone.configure({"cache": {"dir": str(shared), "shared": "group"}}, "config.local")
        clone.set_params({"preprocess": {"seed": 1}})
    runs = [start(clone, "dvc", "repro", "preprocess") for clone in clones]
    for run in runs:
        printed, _ = run.communicate()
        assert run.returncode == 0, printed
    locks = {(clone.path / "dvc.lock").read_text() for clone in clones}
    assert len(locks) == 1
    for clone in clones:
        assert "error" not in clone.verify()
    for name in ("train_images.npy", "manifest.json"):
        tensors = {(clone.path / "data/tensors" / name).read_bytes() for clone in clones}
        assert len(tensors) == 1


def test_a_second_repro_is_told_who_is_at_work_and_no_stage_outlives_dvc(
    finished: Project,
) -> None:
    before = contents(finished)
    finished.set_params({"train": {"batch_size": 500}})
    assert "train.batch_size is 500" in finished.stage("train", status=1)
    assert contents(finished) == before  # what DVC removes, a stage that fails alone keeps

    finished.set_params({"train": {"batch_size": 16, "epochs": 100_000}})
    # Bash makes way for the stage; Debian's sh would stay between the two.
    bash = Project(finished.path, finished.env | {"SHELL": "/bin/bash"})
    run = start(bash, "dvc", "repro")
    try:
        wait_for(run, "> python -m stages.train")
        while not (finished.path / "metrics/history.csv").exists():
            assert run.poll() is None
            time.sleep(0.1)
        printed = finished.dvc("repro", status=255)
        assert f"(PID {run.pid})" in printed
        assert "dvc repro" in printed
        run.kill()
        # The output ends when the last process that writes to it has ended.
        printed, _ = run.communicate(timeout=30)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(run.pid, signal.SIGKILL)
    assert printed == f"error: stopped by SIGTERM; run it again to complete{REMEDY}"
    lost = {"data/model/model.keras", "metrics/training.json"}
    assert contents(finished).keys() == before.keys() - lost

    # As the line says.
    finished.git("restore", "metrics")
    finished.dvc("checkout")
    assert contents(finished) == before
    finished.git("restore", "params.yaml")
    assert "up to date" in finished.dvc("repro")
    assert finished.git("status", "--porcelain") == ""
