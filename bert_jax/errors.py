"""The one exception for mistakes that a user can fix; commands print it as one line and exit with `EXIT_USER_ERROR`."""

from collections.abc import Sequence

EXIT_USER_ERROR = 2
MOST_LISTED = 12  # names in a message


class UserError(Exception):
    """Bad input. The message is one line that names the thing and the remedy."""


def listed(names: Sequence[str]) -> str:
    """The names, the first of them where they are many."""
    rest = f" and {len(names) - MOST_LISTED} more" if len(names) > MOST_LISTED else ""
    return ", ".join(names[:MOST_LISTED]) + rest
