"""Data and model of this project used in another one."""

import hashlib
import sys
from pathlib import Path

import pytest
import yaml
from project import PIPELINE, ROOT, Project

SCRIPT = """
import sys, hashlib, dvc.api
repo = sys.argv[1]
model = dvc.api.read("data/model/model.keras", repo=repo, mode="rb")
with dvc.api.open("data/tensors/test_images.npy", repo=repo, mode="rb") as file:
    print(hashlib.sha256(model).hexdigest(), hashlib.sha256(file.read()).hexdigest())
print(dvc.api.params_show(repo=repo)["train"]["epochs"])
"""


@pytest.mark.timeout(600)
def test_another_project_gets_imports_and_reads(finished: Project, tmp_path: Path) -> None:
    finished.dvc("remote", "add", "-q", "--default", "team", str(tmp_path / "remote"))
    finished.dvc("remote", "modify", "team", "verify", "true")
    finished.commit("Remote")
    finished.dvc("push")
    shared = finished.clone(tmp_path / "shared")  # Git's files; data are in the remote
    url, model = str(shared.path), (finished.path / "data/model/model.keras").read_bytes()
    consumer = Project(tmp_path / "consumer", finished.env)
    consumer.path.mkdir()
    consumer.git("init", "-q", "-b", "main")
    consumer.dvc("init", "-q")

    consumer.dvc("get", url, "data/model/model.keras", "--out", "digits.keras")
    assert (consumer.path / "digits.keras").read_bytes() == model
    shared.git("tag", "-a", "model@v1.0.0", "-m", "The first model that others may use")
    consumer.dvc("artifacts", "get", url, "model")
    assert (consumer.path / "model.keras").read_bytes() == model
    printed = consumer.run(sys.executable, "-c", SCRIPT, url).split()
    images = (finished.path / "data/tensors/test_images.npy").read_bytes()
    assert printed == [*(hashlib.sha256(content).hexdigest() for content in (model, images)), "1"]

    consumer.dvc("import", url, "data/tensors")
    consumer.commit("Import")
    labels = Path("tensors/validation_labels.npy")
    for file in (finished.path / "data/tensors").iterdir():
        assert (consumer.path / "tensors" / file.name).read_bytes() == file.read_bytes()
    finished.set_params({"preprocess": {"validation_size": 20}})
    finished.dvc("repro", "preprocess")
    finished.commit("Smaller")
    finished.dvc("push")
    shared.git("pull", "-q")
    assert "update available" in consumer.dvc("status")
    before = (consumer.path / labels).read_bytes()
    consumer.dvc("update", "tensors.dvc")
    after = (consumer.path / labels).read_bytes()
    assert before != after == (finished.path / "data" / labels).read_bytes()


def test_artifacts_are_what_stages_write() -> None:
    artifacts = yaml.safe_load((ROOT / "dvc.yaml").read_text())["artifacts"]
    assert {artifact["type"] for artifact in artifacts.values()} == {"model", "dataset"}
    outputs = [out for stage in PIPELINE.values() for out in stage.get("outs", [])]
    for artifact in artifacts.values():
        assert artifact["desc"]
        assert artifact["path"] in outputs
