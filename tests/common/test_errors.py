"""Expected failures end in one line; bugs keep their traceback."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, STAGES

from stages.common import errors


def raising(error: BaseException) -> None:
    def main() -> None:
        raise error

    errors.run(main)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (errors.StageError("a.txt: two\n lines"), "error: a.txt: two lines"),
        (
            OSError(errno.ENOSPC, "No space left on device", "a"),
            "a: No space left on device;",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied"),
            "cannot read or write: Permission",
        ),
        (MemoryError("Unable to allocate 9 GiB"), "not enough memory (Unable to allocate 9 GiB)"),
    ],
)
def test_one_line_and_status_1(
    error: BaseException, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        raising(error)
    printed = capsys.readouterr()
    assert stop.value.code == 1
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert line in printed.err
    assert printed.err.count("\n") == 1


@pytest.mark.parametrize("imports", [0, 30, 150])
@pytest.mark.parametrize("module", [*(f"stages.{name}" for name in STAGES), "tools.verify"])
def test_an_interrupt_while_importing_is_one_line_and_the_status_that_shells_expect(
    module: str, imports: int, tmp_path: Path
) -> None:
    # Python says of each import when it is done, so that Ctrl-C comes in the midst of them.
    command = [sys.executable, "-X", "importtime", "-m", module]
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr
        while not next(process.stderr).strip().endswith(" stages"):
            pass
        for _ in range(imports):
            next(process.stderr)
        process.send_signal(signal.SIGINT)
        printed = [line for line in process.stderr if not line.startswith("import time:")]
    assert printed == ["error: interrupted; run it again to complete\n"]
    assert process.returncode == 130


def test_an_interrupted_import_that_fails_is_an_interrupt(tmp_path: Path) -> None:
    # As compiled modules do: what is raised does not say what came before.
    (tmp_path / "pydantic.py").write_text(
        "import os, signal\n"
        "try:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "except KeyboardInterrupt:\n"
        "    error = ImportError('numpy')\n"
        "raise error\n"
    )
    result = subprocess.run(
        [sys.executable, "-m", "stages.fetch"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stderr == "error: interrupted; run it again to complete\n"
    assert result.returncode == 130


def test_a_bug_is_not_hidden(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ZeroDivisionError):
        raising(ZeroDivisionError())
    errors.excepthook(ZeroDivisionError, ZeroDivisionError("by what"), None)
    assert capsys.readouterr().err == "ZeroDivisionError: by what\n"
