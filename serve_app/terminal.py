"""Where the commands print: what they found on standard output, what they are doing on standard error."""

import sys

from rich.console import Console

_WIDE = 400
"""Characters a line where nobody looks at it on a screen."""
PROGRESS = Console(stderr=True, highlight=False)


def output() -> Console:
    """A terminal folds long rows; a file or a pipe gets one line a row."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else _WIDE)
