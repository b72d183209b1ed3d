"""Two at once in a clone, two clones on a cache, and stages that are stopped or fail."""

import os
import signal
import subprocess
import time
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


def kill(run: subprocess.Popen[str]) -> None:
    """Kill a command and all that it started, unless it has ended."""
    if run.poll() is None:
        os.killpg(run.pid, signal.SIGKILL)
        run.communicate()


def test_a_second_repro_is_told_who_is_at_work_and_a_killed_one_is_completed(
    finished: Project,
) -> None:
    before = contents(finished)
    finished.set_params({"evaluate": {"batch_size": 7}})
    first = start(finished, "dvc", "repro")
    try:
        wait_for(first, "Running stage 'evaluate'")
        time.sleep(0.5)  # the stage starts
        printed = finished.dvc("repro", status=255)
        assert f"(PID {first.pid})" in printed
        assert "dvc repro" in printed
    finally:
        kill(first)
    assert first.returncode == -signal.SIGKILL
    assert "Running stage 'evaluate'" in finished.dvc("repro")
    assert contents(finished) == before
    assert not list(finished.path.rglob(".tmp-*"))
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


def get_back(project: Project, before: dict[str, bytes]) -> None:
    """Do what REMEDY says, and check that all outputs are as they were."""
    project.git("restore", "metrics")
    project.dvc("checkout")
    assert contents(project) == before
    project.git("restore", "params.yaml")
    assert project.git("status", "--porcelain") == ""
    assert "up to date" in project.dvc("status")


def test_a_stage_does_not_outlive_dvc(finished: Project) -> None:
    before = contents(finished)
    finished.set_params({"train": {"epochs": 100_000}})
    # Bash makes way for the stage; Debian's sh would stay between the two.
    bash = Project(finished.path, finished.env | {"SHELL": "/bin/bash"})
    run = start(bash, "dvc", "repro")
    try:
        wait_for(run, "> python -m stages.train")
        time.sleep(4)  # it trains
        run.kill()
        # The output ends when the last process that writes to it has ended.
        printed, _ = run.communicate(timeout=30)
    finally:
        kill(run)
    assert run.returncode == -signal.SIGKILL
    assert printed == f"error: stopped by SIGTERM; run it again to complete{REMEDY}"
    assert not list(finished.path.rglob(".tmp-*"))
    get_back(finished, before)


def test_dvc_removes_what_a_stage_that_fails_alone_would_keep(finished: Project) -> None:
    before = contents(finished)
    finished.set_params({"train": {"batch_size": 500}})
    line = "error: params.yaml: train.batch_size is 500, but there are only 120 training images; "
    printed = finished.stage("train", status=1)
    assert printed.startswith(line)
    assert not printed.endswith(REMEDY)
    assert contents(finished) == before

    printed = finished.dvc("repro", status=255)
    assert line in printed
    assert REMEDY in printed
    lost = {"data/model/model.keras", "metrics/history.csv", "metrics/training.json"}
    assert contents(finished).keys() == before.keys() - lost
    get_back(finished, before)
