"""Programs that are run by hand and are no stages."""

import stages  # noqa: F401 (from here on, Ctrl-C ends in one line)
