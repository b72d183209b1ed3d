"""The stages of the pipeline, and the modules that they share; dvc.yaml has their order."""

import sys

from stages.common import environment, errors

# `python -m stages.NAME` runs this first, while sys.argv[0] is still "-m". Everything below must
# happen before the stage imports its libraries. Other programs that import us are left alone.
if sys.argv[0] == "-m":
    errors.catch_signals()
    environment.isolate()
