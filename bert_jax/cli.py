"""What all commands share: `run` turns a user's mistakes into one line, and shows the log."""

import errno
import logging
import re
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import absl.logging
from absl import app, flags

from bert_jax.errors import EXIT_USER_ERROR, UserError, plain

_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)


def run(main: Callable[[], object]) -> None:
    """Parses the flags, calls `main()` and exits; a UserError or a wrong flag is one line and EXIT_USER_ERROR."""

    def parse(arguments: list[str]) -> list[str]:
        try:
            rest = flags.FLAGS(arguments)
        except flags.Error as error:
            fail(error)
        except Exception as error:
            if isinstance(error, UserError):  # of the config file
                fail(error)
            misspelt = _misspelt(arguments, str(error))
            if isinstance(error, AttributeError) and misspelt:  # an option that the config does not have
                meant = re.search(r'Did you mean "(\w+)"', str(error))
                hint = f"did you mean {meant[1]}?" if meant else "see the config file for those there are"
                fail(f"{misspelt}: no such option; {hint}")
            file = _config_file(arguments)
            if not Path(file.partition(":")[0]).is_file():
                fail(f"{file}: no such config file; name a file of configs/")
            fail(f"{file}: not a bert_jax config ({type(error).__name__}: {error}); name a file of configs/")
        if len(rest) > 1:
            fail(f"unexpected argument {rest[1]!r}; flags are written --name=value")
        return rest

    def guarded(arguments: list[str]) -> None:
        del arguments
        show_log()
        try:
            main()
        except UserError as error:
            fail(error)
        except OSError as error:
            if error.errno not in _DISK_ERRORS:
                raise
            fail(f"{error.filename or 'output'}: {error.strerror}; make room or take another folder, and start again")

    _leave_library_errors_to_the_main_thread()
    # ml_collections looks for the config in sys.argv, and wants it before its options; a user may write them in any order.
    sys.argv[1:] = sorted(sys.argv[1:], key=lambda argument: not argument.startswith("--config="))
    app.run(guarded, flags_parser=parse)


def show_log() -> None:
    """Shows our own log as plain lines on stderr, and hides that of libraries: what they log as errors they raise as well."""
    absl.logging.set_verbosity(absl.logging.FATAL)
    handler = logging.StreamHandler()
    handler.setFormatter(_Lines("%(message)s"))
    ours = logging.getLogger("bert_jax")
    ours.handlers, ours.propagate = [handler], False
    ours.setLevel(logging.INFO)


class _Lines(logging.Formatter):
    """Records as printable lines: what they tell of may hold terminal escapes."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(plain(line) for line in super().format(record).splitlines())


def _misspelt(arguments: list[str], message: str) -> str:
    """The flag that names an option which `message` says is missing."""
    flag_names = [argument.split("=")[0] for argument in arguments if argument.startswith("--config.")]
    return next((name for name in flag_names if repr(name.split(".")[-1]) in message.replace('"', "'")), "")


def _config_file(arguments: list[str]) -> str:
    """The value of --config."""
    given = [argument.split("=", 1)[1] for argument in arguments if argument.lstrip("-").startswith("config=")]
    return given[-1] if given else "--config"


def _leave_library_errors_to_the_main_thread() -> None:
    """Orbax raises the errors of its threads again where they are waited for; two tracebacks more would bury our line."""
    show_thread, show_unraisable = threading.excepthook, sys.unraisablehook

    def of_thread(arguments: threading.ExceptHookArgs) -> None:
        if not type(arguments.thread).__module__.startswith("orbax."):
            show_thread(arguments)

    def unraisable(arguments: Any) -> None:
        if str(arguments.exc_value) != "Event loop is closed":  # of reads that went on when another had failed
            show_unraisable(arguments)

    threading.excepthook, sys.unraisablehook = of_thread, unraisable


def fail(error: object) -> NoReturn:
    """Ends the program with a mistake of the user, on one line."""
    print(f"error: {plain(str(error))}", file=sys.stderr)
    sys.exit(EXIT_USER_ERROR)
