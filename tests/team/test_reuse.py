"""Data and model of this project used in another one."""

import hashlib
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, Project


@pytest.fixture
def consumer(template: Project, tmp_path: Path) -> Project:
    project = Project(tmp_path / "consumer", template.env)
    project.path.mkdir()
    project.git("init", "-q", "-b", "main")
    project.dvc("init", "-q")
    return project


@pytest.fixture
def shared(finished: Project, tmp_path: Path) -> Project:
    """The project as others see it: Git's files, and data in a remote."""
    finished.dvc("remote", "add", "-q", "--default", "team", str(tmp_path / "remote"))
    finished.dvc("remote", "modify", "team", "verify", "true")
    finished.commit("Remote")
    finished.dvc("push")
    return finished.clone(tmp_path / "shared")


def test_files_and_folders_are_fetched(
    finished: Project, shared: Project, consumer: Project
) -> None:
    consumer.dvc("get", str(shared.path), "data/tensors")
    for file in (finished.path / "data/tensors").iterdir():
        assert (consumer.path / "tensors" / file.name).read_bytes() == file.read_bytes()
    consumer.dvc("get", str(shared.path), "data/model/model.keras", "--out", "digits.keras")
    model = finished.path / "data/model/model.keras"
    assert (consumer.path / "digits.keras").read_bytes() == model.read_bytes()


def test_an_import_follows_changes(finished: Project, shared: Project, consumer: Project) -> None:
    consumer.dvc("import", str(shared.path), "data/tensors")
    consumer.commit("Import")
    assert "up to date" in consumer.dvc("status")
    labels = Path("tensors/validation_labels.npy")
    before = (consumer.path / labels).read_bytes()

    finished.set_params({"preprocess": {"validation_size": 20}})
    finished.dvc("repro", "preprocess")
    finished.commit("Smaller")
    finished.dvc("push")
    shared.git("pull", "-q")
    assert "update available" in consumer.dvc("status")
    assert (consumer.path / labels).read_bytes() == before
    consumer.dvc("update", "tensors.dvc")
    after = (consumer.path / labels).read_bytes()
    assert after != before
    assert after == (finished.path / "data" / labels).read_bytes()


def test_python_reads_without_a_checkout(
    finished: Project, shared: Project, consumer: Project
) -> None:
    script = """
import sys, hashlib, dvc.api
repo = sys.argv[1]
model = dvc.api.read("data/model/model.keras", repo=repo, mode="rb")
with dvc.api.open("data/tensors/test_images.npy", repo=repo, mode="rb") as file:
    print(hashlib.sha256(model).hexdigest(), hashlib.sha256(file.read()).hexdigest())
print(dvc.api.params_show(repo=repo)["train"]["epochs"])
"""
    printed = consumer.run(sys.executable, "-c", script, str(shared.path)).split()
    files = [
        finished.path / name for name in ("data/model/model.keras", "data/tensors/test_images.npy")
    ]
    assert printed == [*(hashlib.sha256(file.read_bytes()).hexdigest() for file in files), "1"]


def test_a_released_model_is_had_by_its_name(
    finished: Project, shared: Project, consumer: Project
) -> None:
    shared.git("tag", "-a", "model@v1.0.0", "-m", "The first model that others may use")
    consumer.dvc("artifacts", "get", str(shared.path), "model")
    model = finished.path / "data/model/model.keras"
    assert (consumer.path / model.name).read_bytes() == model.read_bytes()


def test_artifacts_are_what_stages_write(finished: Project) -> None:
    artifacts = yaml.safe_load((ROOT / "dvc.yaml").read_text())["artifacts"]
    assert {artifact["type"] for artifact in artifacts.values()} == {"model", "dataset"}
    for artifact in artifacts.values():
        assert artifact["desc"]
        tracked = finished.dvc("list", ".", artifact["path"], "--dvc-only").split()
        assert tracked
