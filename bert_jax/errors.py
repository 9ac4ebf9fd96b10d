"""The one exception for mistakes that a user can mend; commands print it as one line and exit with `EXIT_USER_ERROR`."""

EXIT_USER_ERROR = 2


class UserError(Exception):
    """Bad input. The message is one line that names the thing and the remedy."""
