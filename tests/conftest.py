"""Fixtures of all tests: the small project, not run and run."""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from project import ROOT, SMALL_PARAMS, Project, add_small_dataset, alone, environment

from stages.model import runtime

pytest_plugins = ["remotes", "slurm"]


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Function]) -> None:
    """Mark as slow what needs a copy of the project, to run stages in."""
    for item in items:
        if "template" in item.fixturenames:
            item.add_marker(pytest.mark.slow)


def pytest_collectstart(collector: pytest.Collector) -> None:
    """Start TensorFlow before a module of tests imports it: as stages do, in half the time."""
    if collector.path.parent == ROOT / "tests/model" and "tensorflow" not in sys.modules:
        runtime.start(0, 2, "native")


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Give tests, and all that they start, a temporary folder that must be empty at the end."""
    folder = tmp_path_factory.mktemp("tmp")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(folder))
        patch.setattr(tempfile, "tempdir", None)
        for name in ("MAKEFLAGS", "MAKELEVEL"):  # of the `make test` that may have started us
            patch.delenv(name, raising=False)
        yield
    assert list(folder.iterdir()) == []


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The project with a small data set, committed, nothing run; not to be changed."""
    home = tmp_path_factory.mktemp("home")
    project = Project(tmp_path_factory.mktemp("template") / "project", environment(home))
    tracked = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\0")
    outputs = ("dvc.lock", "metrics/", "tests/", "benchmarks/", "data/mirror/")
    for name in filter(None, tracked):
        if not name.startswith(outputs) and (ROOT / name).is_file():
            target = project.path / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target)
    add_small_dataset(project.path)
    project.set_params(SMALL_PARAMS)
    project.git("init", "-q", "-b", "main")
    project.commit("Small data set")
    return project


# Run by every Python of the pipeline: logs the files it opens, by stage.
AUDIT = """
import os, sys
stage = sys.orig_argv[-1].removeprefix("stages.")
if "-m" in sys.orig_argv and sys.orig_argv[-1].startswith("stages."):
    root = os.getcwd() + os.sep
    log = os.open(os.environ["AUDIT_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    def hook(event, arguments):
        if event in ("open", "os.rename"):
            path = arguments[0] if event == "open" else arguments[1]
            if isinstance(path, (str, os.PathLike)):
                path = os.path.abspath(os.fspath(path))
                if path.startswith(root) and (event == "os.rename" or os.path.isfile(path)):
                    kind = "read" if event == "open" else "written"
                    os.write(log, f"{stage} {kind} {path.removeprefix(root)}\\n".encode())
    sys.addaudithook(hook)
"""


@pytest.fixture(scope="session")
def reproduced(template: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The small project after `dvc repro`, results committed; not to be changed.

    Beside it, audit.log has a line `STAGE read|written PATH` for each file that was opened or
    renamed into place.
    """
    with alone("reproduced", tmp_path_factory) as common:
        if not (common / "reproduced").exists():
            project = template.copy(common / "running")
            (common / "sitecustomize.py").write_text(AUDIT)
            env = {"PYTHONPATH": str(common), "AUDIT_LOG": str(common / "audit.log")}
            # Python would open compiled modules instead of their sources.
            project.dvc("repro", env=env | {"PYTHONDONTWRITEBYTECODE": "1"})
            project.run(sys.executable, "-m", "compileall", "-q", "stages", "tools")
            project.commit("Results")
            project.path.rename(common / "reproduced")
    return Project(common / "reproduced", template.env)


@pytest.fixture
def project(template: Project, tmp_path: Path) -> Project:
    """A copy of the small project, nothing run, for one test to change."""
    return template.copy(tmp_path / "project")


@pytest.fixture
def finished(reproduced: Project, tmp_path: Path) -> Project:
    """A copy of the small project, all stages run and committed, for one test to change."""
    return reproduced.copy(tmp_path / "project")
