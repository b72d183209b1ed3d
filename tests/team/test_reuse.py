"""Data and model of this project used in another one."""

from pathlib import Path

import yaml
from project import PIPELINE, ROOT, Project
from remotes import share


def test_another_project_gets_a_release_and_imports_data(finished: Project, tmp_path: Path) -> None:
    share(finished, tmp_path / "remote")
    finished.dvc("push")
    shared = finished.clone(tmp_path / "shared")  # Git's files; data are in the remote
    consumer = Project(tmp_path / "consumer", finished.env)
    consumer.path.mkdir()
    consumer.git("init", "-q", "-b", "main")
    consumer.dvc("init", "-q")

    shared.git("tag", "-a", "model@v1.0.0", "-m", "The first model that others may use")
    consumer.dvc("artifacts", "get", str(shared.path), "model")
    model = "model.keras"
    assert (consumer.path / model).read_bytes() == (
        finished.path / "data/model" / model
    ).read_bytes()

    consumer.dvc("import", str(shared.path), "data/tensors")
    for file in (finished.path / "data/tensors").iterdir():
        assert (consumer.path / "tensors" / file.name).read_bytes() == file.read_bytes()


def test_artifacts_are_what_stages_write() -> None:
    artifacts = yaml.safe_load((ROOT / "dvc.yaml").read_text())["artifacts"]
    assert {artifact["type"] for artifact in artifacts.values()} == {"model", "dataset"}
    outputs = [out for stage in PIPELINE.values() for out in stage.get("outs", [])]
    for artifact in artifacts.values():
        assert artifact["desc"]
        assert artifact["path"] in outputs
