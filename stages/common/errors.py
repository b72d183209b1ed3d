"""Expected failures: one line for the user instead of a traceback."""

import os
import re
import signal
import sys
from collections.abc import Callable
from types import FrameType, TracebackType

_interrupted = False


class StageError(Exception):
    """An expected failure; its text names the file, URL or parameter, and what to do."""


def run(main: Callable[[], None]) -> None:
    """Run a stage's `main`; turn an expected failure into one `error:` line and status 1.

    Ctrl-C is left to `excepthook`. Anything else is a bug and keeps its traceback.
    """
    try:
        main()
    except StageError as error:
        _exit(str(error))
    except MemoryError as error:
        _exit(f"not enough memory ({error}); close other programs or set preprocess.max_images")
    except OSError as error:
        # Python names the file when it cannot be opened, but not when a disk is full.
        name = "cannot read or write" if error.filename is None else os.fsdecode(error.filename)
        _exit(f"{name}: {error.strerror or error}; mend that and run it again")


def note_interrupt(number: int, frame: FrameType | None) -> None:
    """Do as Python does on Ctrl-C, and let `excepthook` know of it.

    A library that is interrupted while it is imported may raise something else instead.
    """
    global _interrupted
    _interrupted = True
    signal.default_int_handler(number, frame)


def excepthook(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    """End Ctrl-C in one `error:` line and status 130, as shells expect; else show the traceback."""
    if _interrupted or issubclass(kind, KeyboardInterrupt):
        _exit("interrupted; run it again to complete", status=130)
    sys.__excepthook__(kind, error, traceback)


def hide_credentials(text: str) -> str:
    """Take name and password out of the web addresses in a text that people will see."""
    return re.sub(r"//[^/?#\s]*@", "//", text)


def _exit(message: str, status: int = 1) -> None:
    print("error:", " ".join(message.split()), file=sys.stderr)
    sys.exit(status)
