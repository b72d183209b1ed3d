"""The Makefile: its targets, an archive without Git, and what old tools understand."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from project import ROOT, Project

MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = re.findall(r"^([a-z][a-z-]*):", MAKEFILE, re.MULTILINE)


def test_make_alone_lists_every_target() -> None:
    printed = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    listed = [line.split(None, 2) for line in printed.splitlines()]
    assert [line[1] for line in listed] == TARGETS
    assert all(line[0] == "make" and len(line[2]) > 10 for line in listed)
    assert max(map(len, printed.splitlines())) <= 100
    phony = {
        name for names in re.findall(r"^\.PHONY:(.*)", MAKEFILE, re.M) for name in names.split()
    }
    assert phony == set(TARGETS)


def test_nothing_that_make_3_81_or_the_tools_of_macos_lack() -> None:
    newer = (
        r"\.ONESHELL|\.SHELLFLAGS|\.RECIPEPREFIX|\.EXTRA_PREREQS|\$\(file |\$\(let |\$\(intcmp |"
        r"&:|!=|::=|^undefine |private |sed -i|sed -r|\\s|grep -P|readlink -f|date -d|xargs -r"
    )
    assert re.findall(newer, MAKEFILE, re.MULTILINE) == []


def test_an_archive_without_git_says_what_to_do_and_that_helps(finished: Project) -> None:
    shutil.rmtree(finished.path / ".git")
    printed = finished.run("make", "repro", status=2)
    line = (
        "error: not a Git repository, which DVC needs: clone the project, or run "
        "`git init && git add .` here first"
    )
    assert printed.splitlines()[0] == line
    assert not (finished.path / ".venv").exists()
    [remedy] = re.findall("`(.*)`", line)
    finished.run("sh", "-c", remedy)
    printed = finished.run("make", "-o", ".venv/pipeline.stamp", "repro")
    assert "up to date" in printed


@pytest.mark.parametrize("version", ["3.10", "3.14"])
def test_another_python_is_refused_before_anything_is_installed(
    tmp_path: Path, version: str
) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / ".git").mkdir()
    (tmp_path / "requirements-uv.lock").touch()
    python = tmp_path / "python"
    python.write_text(
        "#!/bin/sh\nshift\n"
        f'exec python3 -c "import sys; sys.version_info = ({version.replace(".", ", ")}, 0)\n$1"\n'
    )
    python.chmod(0o755)
    result = subprocess.run(
        ["make", ".venv/bin/uv", f"PYTHON={python}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stderr.startswith(
        f"error: {python} is Python {version}; this needs 3.11 to 3.13: make PYTHON=python3.12\n"
    )
    assert not (tmp_path / ".venv").exists()
