"""The exception for mistakes that a user can fix; commands print it on one line and exit with `EXIT_USER_ERROR`."""

import importlib
from collections.abc import Sequence
from types import ModuleType

EXIT_USER_ERROR = 2
MOST_LISTED = 12  # names in a message
# Characters of a message, and of a name in a list.
LONGEST_MESSAGE, LONGEST_NAME = 2000, 200


class UserError(Exception):
    """Invalid input. The message is one printable line (see `plain`) that says what is wrong and how to fix it."""

    def __init__(self, message: str):
        super().__init__(plain(message))


def optional_package(name: str, needed_by: str, extra: str) -> ModuleType:
    """Imports a package that only some users need.

    Args:
      name: of the package or of a module in it.
      needed_by: the option or argument that needs it, for the message.
      extra: has a file of requirements and an extra of this name.

    Raises:
      UserError: the package is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        problem = f"needs the package {error.name or name}, which is not installed"
        remedy = f"pip install -r requirements-{extra}.txt, or bert_jax[{extra}]"
        raise UserError(f"{needed_by}: {problem}; {remedy}") from None


def plain(text: str, longest: int = LONGEST_MESSAGE) -> str:
    """Returns text that is safe to print: one line, control characters escaped, shortened in the middle if it is too long.

    Names of tensors and files and JSON fields are untrusted.
    """
    if len(text) > longest:
        text = f"{text[: longest * 2 // 3]} [...] {text[-(longest // 3) :]}"
    line = " ".join(text.split())
    if line.isprintable():
        return line
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def listed(names: Sequence[str]) -> str:
    """Joins names with commas; only the first if there are many."""
    rest = f" and {len(names) - MOST_LISTED} more" if len(names) > MOST_LISTED else ""
    return ", ".join(plain(name, LONGEST_NAME) for name in names[:MOST_LISTED]) + rest
