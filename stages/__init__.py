"""The stages of the pipeline, in the order of dvc.yaml, and the modules that they share."""

import signal
import sys

from stages.common import errors

# `python -m stages.NAME` runs this first, with "-m" still in the name's place: Ctrl-C ends in one
# line while the stage imports its libraries, too. Whoever imports a module of ours is left alone.
if sys.argv[0] == "-m":
    signal.signal(signal.SIGINT, errors.note_interrupt)
    sys.excepthook = errors.excepthook
