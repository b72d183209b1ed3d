"""Data and results shared through Git and a remote, as docs/team.md says, with real servers."""

import json
import shutil
from pathlib import Path

import pytest
from conftest import Project
from remotes import Remote, publish


@pytest.mark.timeout(600)
def test_two_people_share_runs(finished: Project, remote: Remote, tmp_path: Path) -> None:
    publish(finished, tmp_path / "origin.git")
    remote.configure(finished)
    finished.dvc("push")
    finished.git("push", "-q")

    other = Project(tmp_path / "other", finished.env)
    finished.git("clone", "-q", str(tmp_path / "origin.git"), str(other.path))
    remote.log_in(other)
    other.dvc("pull")
    assert "Running stage" not in other.dvc("repro")
    assert "up to date" in other.dvc("status")
    assert other.git("status", "--porcelain") == ""

    other.set_params({"train": {"epochs": 2}})
    assert "Running stage 'train'" in other.dvc("repro")
    other.commit("Two epochs")
    other.dvc("push")
    other.git("push", "-q")

    finished.git("pull", "-q")
    finished.dvc("pull")
    assert "Running stage" not in finished.dvc("repro")
    model = "data/model/model.keras"
    assert (finished.path / model).read_bytes() == (other.path / model).read_bytes()
    metrics = json.loads(finished.dvc("metrics", "diff", "HEAD~1", "--json"))
    assert metrics["metrics/training.json"]["training.loss"]["diff"] < 0
    params = json.loads(finished.dvc("params", "diff", "HEAD~1", "--json"))
    assert params == {"params.yaml": {"train.epochs": {"old": 1, "new": 2, "diff": 1}}}
    finished.dvc("plots", "diff", "HEAD~1", "--out", "comparison")
    assert len(list((finished.path / "comparison").rglob("*mismatch.png"))) == 2

    # One command takes a clone from Git's files to all outputs, and runs nothing.
    shutil.rmtree(other.path)
    finished.git("clone", "-q", str(tmp_path / "origin.git"), str(other.path))
    remote.log_in(other)
    assert "Running stage" not in other.dvc("repro", "--pull")
    assert (finished.path / model).read_bytes() == (other.path / model).read_bytes()
    assert other.git("status", "--porcelain") == ""


def test_what_is_committed_is_safe_and_holds_no_secret(
    finished: Project, remote: Remote, tmp_path: Path
) -> None:
    remote.configure(finished)
    clone = finished.clone(tmp_path / "clone")
    settings = clone.dvc("config", "--list").split()
    assert {
        "core.analytics=false",
        "core.check_update=false",
        "core.remote=team",
        "remote.team.verify=true",
        f"remote.team.url={remote.url}",
    } <= set(settings)
    assert not any("autostage" in line for line in settings)
    tracked = clone.git("grep", "-h", "", "--", ".dvc")
    assert not any(secret in tracked for secret in remote.private.values())


def test_an_unchecked_remote_is_named(finished: Project, tmp_path: Path) -> None:
    finished.dvc("remote", "add", "--default", "team", str(tmp_path / "remote"))
    advice = "dvc remote modify team verify true"
    printed = finished.verify(status=1)
    assert f"error: remote team: `dvc pull` would not check its data; run `{advice}`" in printed
    finished.run(*advice.split())
    assert "error" not in finished.verify()
