"""Git runs ruff and DVC from .venv: data follow commits, and a push takes the data along."""

import re
import sys
from pathlib import Path

from project import ROOT, Project
from remotes import publish

# The environment is there, and is not to be renewed.
MAKE = ("make", "--no-print-directory", "-o", ".venv/pipeline.stamp", "-o", ".venv/tests.stamp")


def add_venv(project: Project) -> Project:
    """Let .venv be the tests' own environment, and nothing else have DVC."""
    (project.path / ".venv").mkdir()
    for name in ("bin", "lib", "pyvenv.cfg"):  # without the last two it is another Python
        (project.path / ".venv" / name).symlink_to(Path(sys.prefix, name))
    return Project(project.path, project.env | {"PATH": "/usr/bin:/bin"})


def test_hooks_check_commits_and_move_the_data(finished: Project, tmp_path: Path) -> None:
    publish(finished, tmp_path / "origin.git")
    hooked = add_venv(finished)
    hooked.run("sh", "-c", "! command -v dvc")
    hooked.git("checkout", "-q", "-b", "smaller")
    for _ in range(2):  # once more does no harm
        hooked.run(*MAKE, "hooks")

    # A commit: ruff and line endings are checked, and what is out of date is shown.
    script = hooked.path / "stages/plot.py"
    text = script.read_text()
    script.write_text(("import csv\n" + text).replace("\n", "\r\n"), newline="")
    hooked.set_params({"preprocess": {"validation_size": 20}})
    printed = hooked.git("commit", "-am", "Smaller", status=1)
    assert "error: stages/plot.py: lines" in printed
    assert "F401" in printed
    script.write_text(text)
    path = f"{hooked.path}/.venv/bin:/usr/bin:/bin"
    hooked.run("dvc", "repro", "preprocess", env={"PATH": path})
    printed = hooked.git("commit", "-am", "Smaller")
    assert re.search(r"train:\n.*changed deps", printed)

    # A checkout.
    tensor = hooked.path / "data/tensors/validation_labels.npy"
    smaller = tensor.read_bytes()
    hooked.git("checkout", "-q", "main")
    assert tensor.read_bytes() != smaller
    hooked.git("checkout", "-q", "smaller")
    assert tensor.read_bytes() == smaller

    # A push: without a remote, with one that fails, and with one that works.
    hooked.git("push", "-q", "-u", "origin", "smaller")
    remote = tmp_path / "remote"
    settings = f"[core]\n    remote = team\n['remote \"team\"']\n    url = {remote}\n"
    (hooked.path / ".dvc/config.local").write_text(settings)
    remote.write_text("a file where the folder should be")
    hooked.git("commit", "-q", "--allow-empty", "--no-verify", "-m", "Again")
    hooked.git("push", "-q", status=1)
    assert hooked.git("rev-parse", "origin/smaller") != hooked.git("rev-parse", "smaller")
    remote.unlink()
    hooked.git("push", "-q")
    assert hooked.git("rev-parse", "origin/smaller") == hooked.git("rev-parse", "smaller")
    sent = {file.parent.name + file.name for file in remote.rglob("*") if file.is_file()}
    pinned = re.findall(r"md5: (\w+\.dir|\w+)\n", (hooked.path / "dvc.lock").read_text())
    assert len(sent) > 10
    assert len(sent & set(pinned)) == 3  # two folders and the model; the rest are their files


def test_hooks_in_a_submodule(template: Project, tmp_path: Path) -> None:
    outer = Project(tmp_path, template.env)
    outer.git("init", "-q")
    add = ("-c", "protocol.file.allow=always", "submodule", "--quiet", "add")
    outer.git(*add, str(template.path), "digits")
    hooked = add_venv(Project(tmp_path / "digits", template.env))
    hooked.run(*MAKE, "hooks")
    assert "dvc status" in hooked.git("commit", "--allow-empty", "-m", "Empty")
    hooked.git("rm", "-q", ".pre-commit-config.yaml")  # old commits have none
    hooked.git("commit", "-q", "-m", "Without")


def test_hooks_elsewhere(template: Project, tmp_path: Path) -> None:
    """Where Git looks for hooks somewhere else, or they would run for a whole repository."""
    outer = Project(tmp_path / "outer", template.env)
    hooked = add_venv(template.copy(outer.path / "digits"))
    hooked.git("config", "core.hooksPath", ".husky")
    printed = hooked.run(*MAKE, "hooks", status=2)
    assert printed.startswith(
        "error: core.hooksPath is set, so Git takes its hooks from .husky: remove that setting, "
        "or add the lines of docs/team.md to the hooks there\n"
    )
    assert not (hooked.path / ".husky").exists()
    page = (ROOT / "docs/team.md").read_text()
    lines = re.findall(r"^\| `([a-z-]+)` \| `(\.venv/bin/.*)` \|$", page, re.MULTILINE)
    assert [name for name, _ in lines] == ["pre-commit", "pre-push", "post-checkout"]
    (hooked.path / ".husky").mkdir()
    for name, line in lines:
        hook = hooked.path / ".husky" / name
        hook.write_text(f"#!/bin/sh\n{line}\n")
        hook.chmod(0o755)
    assert "dvc status" in hooked.git("commit", "--allow-empty", "-m", "Empty")

    hooked.run("rm", "-rf", ".git")
    outer.git("init", "-q")
    printed = hooked.run(*MAKE, "hooks", status=2)
    assert printed.startswith(
        f"error: hooks run for a whole repository, and this is a folder of {outer.path}: run "
        "`dvc checkout` after `git checkout` and `dvc push` before `git push` yourself\n"
    )
