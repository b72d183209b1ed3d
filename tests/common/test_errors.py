"""Expected failures end in one line; bugs keep their traceback."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

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
        (errors.StageError("a.txt: two\n lines"), "a.txt: two lines"),
        (
            OSError(errno.ENOSPC, "No space left on device", b"a"),
            "a: No space left on device; free some disk space, then run it again",
        ),
        (
            OSError(errno.EDQUOT, "Disk quota exceeded"),
            "a file: Disk quota exceeded; free some disk space, then run it again",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "a"),
            "a: Permission denied; check its permissions, then run it again",
        ),
        (
            OSError(errno.EPERM, "Operation not permitted", "a"),
            "a: Operation not permitted; check its permissions, then run it again",
        ),
        (
            OSError(errno.EROFS, "Read-only file system", "a"),
            "a: Read-only file system; make its disk writable, then run it again",
        ),
        (
            OSError("10 requested and 5 written"),  # as NumPy says it
            "a file: 10 requested and 5 written; check the file and its disk, then run it again",
        ),
        (
            MemoryError("Unable to allocate 9 GiB"),
            "not enough memory (Unable to allocate 9 GiB); "
            "close other programs or set preprocess.max_images",
        ),
    ],
)
def test_one_line_and_status_1(
    error: BaseException, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        raising(error)
    assert stop.value.code == 1
    assert capsys.readouterr() == ("", f"error: {line}\n")


@pytest.mark.parametrize("imports", [0, 30, 150])
@pytest.mark.parametrize("module", [*(f"stages.{name}" for name in STAGES), "tools.verify"])
@pytest.mark.parametrize(
    ("number", "line"),
    [
        (signal.SIGINT, "error: interrupted; run it again to complete\n"),
        (signal.SIGTERM, "error: stopped by SIGTERM; run it again to complete\n"),
    ],
)
def test_a_signal_while_importing_is_one_line_and_the_status_that_shells_expect(
    module: str, imports: int, number: signal.Signals, line: str, tmp_path: Path
) -> None:
    # Python says of each import when it is done, so that the signal comes in the midst of them.
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
        process.send_signal(number)
        printed = [line for line in process.stderr if not line.startswith("import time:")]
    assert printed == [line]
    assert process.returncode == 128 + number


# A stage that says when it is ready, and that it could clean up.
WAITING = """
import sys; sys.argv[0] = "-m"
import contextlib, os, time
from stages.common import errors

def main():
    try:
        print("ready", flush=True)
        BUSY
        time.sleep(60)
    finally:
        time.sleep(0.2)
        print("cleaned up", flush=True)

errors.run(main)
"""


def waiting(busy: str = "pass", **options: Any) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", WAITING.replace("BUSY", busy)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.1)
    return process


def test_a_second_signal_at_once_does_not_stop_the_cleaning_up() -> None:
    process = waiting()
    process.send_signal(signal.SIGTERM)
    time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.communicate() == (
        "cleaned up\n",
        "error: stopped by SIGTERM; run it again to complete\n",
    )
    assert process.returncode == 143


@pytest.mark.slow
def test_a_signal_that_a_library_swallowed_can_be_sent_again() -> None:
    process = waiting("with contextlib.suppress(BaseException): time.sleep(60)")
    process.send_signal(signal.SIGTERM)
    time.sleep(1.1)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate()
    assert stderr == "error: interrupted; run it again to complete\n"
    assert process.returncode == 130


@pytest.mark.slow
def test_a_closed_terminal_stops_it_but_not_under_nohup() -> None:
    process = waiting(preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL))
    process.send_signal(signal.SIGHUP)
    _, stderr = process.communicate()
    assert stderr == "error: stopped by SIGHUP; run it again to complete\n"
    assert process.returncode == 129

    process = waiting(preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    process.send_signal(signal.SIGHUP)
    time.sleep(1)
    assert process.poll() is None
    process.kill()
    process.communicate()


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


def test_a_stage_in_the_background_of_a_script_can_be_interrupted() -> None:
    process = waiting(preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN))
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=10)
    assert process.returncode == 130
