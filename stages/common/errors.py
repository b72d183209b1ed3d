"""How a stage ends when it does not succeed: one line for the user instead of a traceback."""

import ctypes
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>: the signal to get when the parent process ends

_caught: signal.Signals | None = None
_caught_at = 0.0


class StageError(Exception):
    """An expected failure; its text names the file, URL or parameter, and what to do."""


def run(main: Callable[[], None]) -> None:
    """Run a stage's `main`; turn an expected failure into one `error:` line and status 1.

    Signals are left to `excepthook`. Anything else is a bug and keeps its traceback.
    """
    try:
        main()
    except StageError as error:
        _exit(str(error))
    except MemoryError as error:
        _exit(f"not enough memory ({error}); close other programs or set preprocess.max_images")
    except OSError as error:
        # Python names the file when it cannot be opened, but not when a disk is full.
        name = "a file" if error.filename is None else os.fsdecode(error.filename)
        why = error.strerror or error
        _exit(f"{name}: {why}; check its permissions and its disk, then run it again")


def catch_signals() -> None:
    """Let Ctrl-C, `kill` and a closed terminal end this process in one line, cleaned up.

    On Linux, so does the end of the `dvc repro` that runs this stage: DVC stops no stage itself.
    """
    for number in SIGNALS:
        # nohup ignores SIGHUP, which we respect; a shell's & ignores SIGINT, which we do not.
        if number == signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _stop)
    sys.excepthook = excepthook
    # Without DVC nobody is watched: a stage that was started with nohup outlives its shell.
    if "DVC_STAGE" in os.environ and sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _stop(number: int, _: FrameType | None) -> None:
    """Raise KeyboardInterrupt, and remember the signal for `excepthook`.

    A library that is interrupted while it is imported may raise something else instead.
    """
    global _caught, _caught_at
    # A signal to a whole process group comes twice: to us, and again when DVC has died of it.
    # The second must not cut the cleaning up short.
    if _caught and time.monotonic() - _caught_at < 1:
        return
    _caught, _caught_at = signal.Signals(number), time.monotonic()
    raise KeyboardInterrupt


def excepthook(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    """End a signal in one `error:` line; show the traceback of anything else."""
    if _caught:
        _exit("")
    sys.__excepthook__(kind, error, traceback)


def hide_credentials(text: str) -> str:
    """Take name and password out of the web addresses in a text that people will see."""
    return re.sub(r"//[^/?#\s]*@", "//", text)


def _exit(message: str) -> None:
    status = 1
    if _caught:  # whatever a library made of it
        how = "interrupted" if _caught == signal.SIGINT else f"stopped by {_caught.name}"
        message, status = f"{how}; run it again to complete", 128 + _caught
    # In one piece: several workers may write to the same place at once.
    sys.stderr.write(line(message) + "\n")
    sys.exit(status)


def line(message: str) -> str:
    """Return the line for an error; under DVC it says how to get back what DVC has removed."""
    stage, lock = os.environ.get("DVC_STAGE"), Path("dvc.lock")
    removed = stage and lock.exists() and f"\n  {stage}:\n" in lock.read_text(encoding="utf-8")
    # `dvc exp run --temp` and the queue work in a copy: nothing is gone from the workspace.
    if removed and ".dvc/tmp/exps" not in Path.cwd().as_posix():
        message += (
            "; DVC removed the old outputs of this stage before it ran: "
            "`git restore metrics` and `dvc checkout` bring them back"
        )
    return f"error: {' '.join(message.split())}"
