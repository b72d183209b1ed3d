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
from project import ROOT

from stages.common import errors


def raising(error: BaseException) -> None:
    def main() -> None:
        raise error

    errors.run(main)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            errors.StageError("a.txt: \x1b[31m two\n lines of https://me:secret@a/b?@"),
            "a.txt: ?[31m two lines of https://a/b?@",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "a"),
            "[Errno 13] Permission denied: 'a'; check permissions and free space there, "
            "then run it again",
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


@pytest.mark.parametrize(
    ("module", "imports", "number", "line"),
    [
        ("stages.fetch", 0, signal.SIGINT, "error: interrupted; run it again to complete\n"),
        (
            "tools.verify",
            30,
            signal.SIGTERM,
            "error: stopped by SIGTERM; run it again to complete\n",
        ),
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


@pytest.mark.slow
def test_ctrl_c_ends_what_swallowed_a_signal_and_another_does_not_cut_the_cleaning_short() -> None:
    # nohup ignores SIGHUP and the & of a script SIGINT: the first is respected.
    process = waiting(
        "with contextlib.suppress(BaseException): time.sleep(60)\n"
        "        print(errors._caught.name, flush=True)",
        preexec_fn=lambda: [
            signal.signal(n, signal.SIG_IGN) for n in (signal.SIGHUP, signal.SIGINT)
        ],
    )
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    assert process.stdout
    assert process.stdout.readline() == "SIGTERM\n"
    process.send_signal(signal.SIGINT)
    time.sleep(0.1)  # while it cleans up
    process.send_signal(signal.SIGTERM)
    stdout, stderr = process.communicate(timeout=10)
    assert (stdout, stderr) == ("cleaned up\n", "error: interrupted; run it again to complete\n")
    assert process.returncode == 130


@pytest.mark.slow
def test_a_closed_terminal_stops_it() -> None:
    process = waiting(preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL))
    process.send_signal(signal.SIGHUP)
    assert process.communicate()[1] == "error: stopped by SIGHUP; run it again to complete\n"
    assert process.returncode == 129


# What DVC is to a stage: the process that starts it, perhaps through a shell that it becomes.
PARENT = """
import os, subprocess, sys
subprocess.Popen("exec " + sys.argv[1], shell=True, stdin=subprocess.PIPE)
sys.stdin.readline()
os._exit(9)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells of a parent's end")
@pytest.mark.parametrize("stage", ["train", None])
def test_a_stage_ends_with_the_dvc_that_runs_it(stage: str | None, tmp_path: Path) -> None:
    (tmp_path / "stage.py").write_text(WAITING.replace("BUSY", "pass"))
    env = {k: v for k, v in os.environ.items() if k != "DVC_STAGE"} | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, f"{sys.executable} stage.py"],
        cwd=tmp_path,
        env=env | ({"DVC_STAGE": stage} if stage else {}),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as parent:
        assert parent.stdin
        assert parent.stdout
        assert parent.stdout.readline() == "ready\n"
        parent.stdin.close()
        parent.wait()
        if stage:
            assert parent.stdout.read() == "cleaned up\n"
            assert parent.stderr
            assert parent.stderr.read() == "error: stopped by SIGTERM; run it again to complete\n"
        else:
            time.sleep(0.5)
            os.killpg(parent.pid, signal.SIGKILL)
            assert parent.stdout.read() == ""  # until then it was there


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


HINT = (
    "error: no; DVC removed the old outputs of this stage before it ran: "
    "`git restore metrics` and `dvc checkout` bring them back"
)


@pytest.mark.parametrize(
    ("stage", "folder", "line"),
    [
        ("train", ".", HINT),
        ("plot", ".", "error: no"),  # never run: there was nothing to remove
        ("", ".", "error: no"),
        ("train", ".dvc/tmp/exps/standalone/tmp1", "error: no"),  # dvc exp run --temp, the queue
    ],
)
def test_what_dvc_removed_is_said_where_it_removed_something(
    stage: str, folder: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(tmp_path / folder)
    Path("dvc.lock").write_text("stages:\n  train:\n    cmd: python\n")
    monkeypatch.setenv("DVC_STAGE", stage)
    assert errors.line("no") == line
