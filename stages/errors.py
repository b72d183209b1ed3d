"""Expected failures: one line for the user instead of a traceback."""

import os
import sys
from collections.abc import Callable


class StageError(Exception):
    """An expected failure; its text names the file, URL or parameter, and what to do."""


def run(main: Callable[[], None]) -> None:
    """Run a stage's `main`; turn an expected failure into one `error:` line and status 1.

    Ctrl-C ends with status 130, as shells expect. Anything else is a bug and keeps its traceback.
    """
    try:
        main()
    except KeyboardInterrupt:
        _exit("interrupted; run it again to complete", status=130)
    except StageError as error:
        _exit(str(error))
    except MemoryError as error:
        _exit(f"not enough memory ({error}); close other programs or set preprocess.max_images")
    except OSError as error:
        # Python names the file when it cannot be opened, but not when a disk is full.
        name = "cannot read or write" if error.filename is None else os.fsdecode(error.filename)
        _exit(f"{name}: {error.strerror or error}; mend that and run it again")


def _exit(message: str, status: int = 1) -> None:
    print("error:", " ".join(message.split()), file=sys.stderr)
    sys.exit(status)
