"""Git calls DVC from .venv: data follows commits, and a push takes the data along."""

import sys
from pathlib import Path

import pytest
from conftest import Project
from remotes import publish

# The pipeline's environment is there, and is not to be renewed.
MAKE = ("make", "--no-print-directory", "-o", ".venv/pipeline.stamp")


@pytest.fixture
def hooked(finished: Project, tmp_path: Path) -> Project:
    """The project with hooks; only .venv has DVC."""
    publish(finished, tmp_path / "origin.git")
    (finished.path / ".venv").mkdir()
    for name in ("bin", "lib", "pyvenv.cfg"):  # without the last two it is another Python
        (finished.path / ".venv" / name).symlink_to(Path(sys.prefix, name))
    project = Project(finished.path, finished.env | {"PATH": "/usr/bin:/bin"})
    project.run("sh", "-c", "! command -v dvc")
    for _ in range(2):  # once more does no harm
        project.run(*MAKE, "hooks")
    return project


def test_a_checkout_brings_the_data(hooked: Project) -> None:
    tensor = hooked.path / "data/tensors/validation_labels.npy"
    before = tensor.read_bytes()
    hooked.git("checkout", "-q", "-b", "smaller")
    hooked.set_params({"preprocess": {"validation_size": 20}})
    hooked.run(
        ".venv/bin/dvc",
        "repro",
        "preprocess",
        env={"PATH": f"{hooked.path}/.venv/bin:/usr/bin:/bin"},
    )
    assert "changed" in hooked.git("commit", "-a", "-m", "Smaller")  # dvc status: train is to run
    after = tensor.read_bytes()
    assert after != before
    hooked.git("checkout", "-q", "main")
    assert tensor.read_bytes() == before
    hooked.git("checkout", "-q", "smaller")
    assert tensor.read_bytes() == after


def test_a_push_takes_the_data_along_or_fails(hooked: Project, tmp_path: Path) -> None:
    remote = tmp_path / "remote"
    for line in (f"add --default team {remote}", "modify team verify true"):
        hooked.run(".venv/bin/dvc", "remote", *line.split())
    hooked.git("commit", "-qam", "Remote")
    remote.write_text("a file where the folder should be")
    hooked.git("push", "-q", status=1)
    assert hooked.git("rev-parse", "origin/main") != hooked.git("rev-parse", "main")
    remote.unlink()
    hooked.git("push", "-q")
    assert hooked.git("rev-parse", "origin/main") == hooked.git("rev-parse", "main")
    assert len([file for file in remote.rglob("*") if file.is_file()]) == 12
