"""The one exception for mistakes that a user can fix; commands print it as one line and exit with `EXIT_USER_ERROR`."""

from collections.abc import Sequence

EXIT_USER_ERROR = 2
MOST_LISTED = 12  # names in a message
# Characters of a message and of a name in a list; paths may have 4,096, and others say all there is to say in fewer.
LONGEST_MESSAGE, LONGEST_NAME = 2000, 200


class UserError(Exception):
    """Bad input. The message is one printable line (see `plain`) that names the thing and the remedy."""

    def __init__(self, message: str):
        super().__init__(plain(message))


def plain(text: str, longest: int = LONGEST_MESSAGE) -> str:
    """Returns text that is safe to print: one line, with terminal escapes spelt out, and cut in the middle if it is too long.

    Names of tensors and files, and fields of JSON, come from strangers.
    """
    if len(text) > longest:
        text = f"{text[: longest * 2 // 3]} [...] {text[-(longest // 3) :]}"
    line = " ".join(text.split())
    if line.isprintable():
        return line
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def listed(names: Sequence[str]) -> str:
    """The names, the first of them where they are many."""
    rest = f" and {len(names) - MOST_LISTED} more" if len(names) > MOST_LISTED else ""
    return ", ".join(plain(name, LONGEST_NAME) for name in names[:MOST_LISTED]) + rest
