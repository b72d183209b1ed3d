"""Commands that are run by hand, and are no stages."""

import stages  # noqa: F401 (Ctrl-C ends in one line from here on)
