"""How a stage ends when it does not succeed: one line for the user instead of a traceback."""

import ctypes
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>: the signal to get when the parent process ends

_caught: signal.Signals | None = None


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
        _exit(f"{error}; check permissions and free space there, then run it again")


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
    global _caught
    # The end of DVC brings a second one, which must not cut the cleaning up short. Ctrl-C may.
    if _caught and number != signal.SIGINT:
        return
    _caught = signal.Signals(number)
    raise KeyboardInterrupt


def excepthook(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    """End a signal in one `error:` line; show the traceback of anything else."""
    if _caught:
        _exit("")
    sys.__excepthook__(kind, error, traceback)


def one_line(text: str) -> str:
    """Make a text fit for people: no line breaks, control characters, or passwords in addresses."""
    text = re.sub(r"//[^/?#\s]*@", "//", " ".join(text.split()))
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", "?", text)


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
    return f"error: {one_line(message)}"
