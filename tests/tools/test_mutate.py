"""Changes to the code: the command that makes them, and the list of them."""

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from stages.common.errors import StageError
from tools import mutate

CODE = "def add(a, b):\n    return a + b\n"
TEST = "from code_here import add\n\ndef test_it():\n    assert add(2, 0) == 2\n"
CHANGES = {
    "the difference": ("a + b", "a - b"),
    "the first alone": ("a + b", "b"),
    "nothing that is there": ("a * b", "a"),
    "what stands there twice": ("a", "b"),
}


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A work tree with a piece of code, its test, and a file that Git does not track."""
    for name, content in (("code_here.py", CODE), ("test_it.py", TEST)):
        (tmp_path / name).write_text(content)
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    subprocess.run(["git", "add", "."], cwd=tmp_path, check=True)
    (tmp_path / "untracked").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(copy: Path, *names: str, reason: str = "", tests: str = "test_it.py") -> bool:
    changes = [
        mutate.Change(breaks=name, old=CHANGES[name][0], new=CHANGES[name][1], reason=reason)
        for name in names
    ]
    copy.mkdir()
    mutate.copy_project(copy)
    group = mutate.Group(file=Path("code_here.py"), tests=tests, changes=changes)
    return mutate.run([group], copy)


@pytest.mark.slow
def test_each_change_is_told_and_the_work_tree_is_left_alone(
    work: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path_factory.mktemp("copies") / "copy"
    assert not run(copy, *CHANGES)
    assert capsys.readouterr().out.splitlines() == [
        "SURVIVED: code_here.py: the difference",
        "caught: code_here.py: the first alone",
        "does not apply: code_here.py: nothing that is there",
        "does not apply: code_here.py: what stands there twice",
        "1 caught, 1 SURVIVED, 2 does not apply",
    ]
    assert (work / "code_here.py").read_text() == (copy / "code_here.py").read_text() == CODE
    assert not (copy / "untracked").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("work")
def test_only_what_survives_is_excused_by_a_reason(
    tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    copies = tmp_path_factory.mktemp("copies")
    assert run(copies / "one", "the difference", "the first alone", reason="0 has no sign")
    assert capsys.readouterr().out.splitlines()[-1] == "1 caught, 1 survived, as expected"
    assert not run(copies / "two", "nothing that is there", reason="0 has no sign")


@pytest.mark.slow
def test_tests_that_fail_without_a_change_tell_nothing(
    work: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    (work / "test_it.py").write_text("def test_it():\n    assert False\n")
    with pytest.raises(StageError, match=r"`pytest test_it.py` fails without a change"):
        run(tmp_path_factory.mktemp("copies") / "copy", "the difference")
    with pytest.raises(StageError, match=r"`pytest test_it.py -k nothing` ends with status 5"):
        run(
            tmp_path_factory.mktemp("copies") / "two",
            "the difference",
            tests="test_it.py -k nothing",
        )


def test_the_command_takes_a_pattern() -> None:
    command = [sys.executable, "-m", "tools.mutate", "--only", "no change is of this kind"]
    result = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=False)
    assert (result.returncode, result.stdout) == (1, "")
    assert (
        result.stderr == "error: --only no change is of this kind: no change in the list matches\n"
    )


def test_every_change_applies_to_the_code_as_it_is() -> None:
    for group in mutate.load(ROOT / mutate.LIST):
        text = (ROOT / group.file).read_text("utf-8")
        for change in group.changes:
            assert text.count(change.old) == 1, f"{group.file}: {change.breaks}: {change.old!r}"
            assert change.old != change.new


def test_no_change_is_described_twice() -> None:
    names = [(g.file, c.breaks) for g in mutate.load(ROOT / mutate.LIST) for c in g.changes]
    assert len(set(names)) == len(names)
