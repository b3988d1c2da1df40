"""The error of the scripts that is the user's to mend: one line on stderr, exit status 2."""

from __future__ import annotations

import sys
from collections.abc import Callable


class UsageError(Exception):
    """What was asked for cannot be done; the message says why in one line."""


def run_main(main: Callable[[], int]) -> None:
    """Exits with main's status: 2 and one line for a UsageError, 130 for Ctrl-C."""
    try:
        status = main()
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = 130
    sys.exit(status)
