"""Two at once in a clone, two clones on a cache, and a kill in each stage."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from conftest import Project


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


def kill(run: subprocess.Popen[str]) -> None:
    """Kill a command and all that it started, unless it has ended."""
    if run.poll() is None:
        os.killpg(run.pid, signal.SIGKILL)
        run.communicate()


def test_the_second_repro_says_who_holds_the_lock(finished: Project) -> None:
    finished.set_params({"evaluate": {"batch_size": 7}})
    first = start(finished, "dvc", "repro")
    try:
        wait_for(first, "Running stage 'evaluate'")
        time.sleep(0.5)  # the stage starts
        began = time.monotonic()
        printed = finished.dvc("repro", status=255)
        assert time.monotonic() - began < 30
        assert f"(PID {first.pid})" in printed
        assert "dvc repro" in printed
        first.communicate()
        assert first.returncode == 0
    finally:
        kill(first)
    assert "up to date" in finished.dvc("status")


def test_two_clones_share_a_cache(finished: Project, tmp_path: Path) -> None:
    shared = tmp_path / "cache"
    other = finished.clone(tmp_path / "other")
    clones = (finished, other)
    for clone in clones:
        clone.dvc("cache", "dir", "--local", str(shared))
        clone.dvc("config", "--local", "cache.shared", "group")
    (finished.path / ".dvc/cache").rename(shared)
    assert "Running stage" not in other.dvc("repro", "--allow-missing")
    other.dvc("checkout")

    for clone in clones:
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
        contents = {(clone.path / "data/tensors" / name).read_bytes() for clone in clones}
        assert len(contents) == 1


@pytest.mark.timeout(600)
def test_a_kill_in_each_stage_changes_nothing(project: Project, reproduced: Project) -> None:
    for stage in ("fetch", "preprocess", "train", "evaluate", "plot"):
        run = start(project, "dvc", "repro")
        try:
            wait_for(run, f"> python -m stages.{stage}")
            time.sleep(0.3)  # somewhere in its start; a stage's own tests kill it while it writes
        finally:
            kill(run)
    project.dvc("repro")
    lock = "dvc.lock"
    assert (project.path / lock).read_text() == (reproduced.path / lock).read_text()
    assert not list(project.path.rglob("*.tmp"))
    project.verify()
