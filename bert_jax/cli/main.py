"""What all commands share: `run` turns a user's mistakes into one line, shows the log, and ends the process as it should.

Exit codes that all have: 0, EXIT_USER_ERROR, EXIT_INTERRUPTED and EXIT_PIPE_CLOSED.
"""

import _thread
import contextlib
import errno
import io
import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import absl.logging
from absl import app, flags

from bert_jax.errors import EXIT_USER_ERROR, UserError, plain

EXIT_INTERRUPTED, EXIT_PIPE_CLOSED = 128 + signal.SIGINT, 128 + signal.SIGPIPE  # as of a process that these signals end
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
_CLOSED = (errno.EBADF, errno.EIO)  # what writing to a standard output that was closed or lost gives
# Threads of libraries may wait long for what will not come after a failure, Orbax's for 10 minutes, and Python for them.
_SECONDS_TO_END = 5.0
# Processes of a job end together, and may meet a common mistake at different times; after a minute jax would abort.
_SECONDS_TO_END_OF_A_JOB = 30.0


def run(main: Callable[[], object]) -> None:
    """Parses the flags, calls `main()` and exits; a UserError or a wrong flag is one line and EXIT_USER_ERROR."""

    def parse(arguments: list[str]) -> list[str]:
        try:
            rest = flags.FLAGS(arguments)
        except Exception as error:
            raise flag_mistake(arguments, error) from None
        if len(rest) > 1:
            fail(f"unexpected argument {rest[1]!r}; flags are written --name=value")
        return rest

    def start(arguments: list[str]) -> None:
        del arguments
        show_log()
        main()

    _leave_library_errors_to_the_main_thread()
    # ml_collections looks for the config in sys.argv, and wants it before its options; a user may write them in any order.
    sys.argv[1:] = sorted(sys.argv[1:], key=lambda argument: not argument.startswith("--config="))
    with guarded():
        check_encoding(sys.argv)
        app.run(start, flags_parser=parse)


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Ends the process with one line and its exit code after a user's mistake, an interrupt, or output that nobody reads."""
    if signal.getsignal(signal.SIGINT) == _end_at_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if isinstance(sys.stdout, io.TextIOWrapper):  # whatever the locale says; names of files as they are
        sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")
    try:
        try:
            yield
        finally:
            if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
                signal.signal(signal.SIGINT, signal.SIG_DFL)  # while Python ends, an interrupt would be a traceback
            sys.stdout.flush()  # here it can still be told if that fails
    except UserError as error:
        fail(error)
    except KeyboardInterrupt:
        _end("interrupted", EXIT_INTERRUPTED)
    except BrokenPipeError:  # as of `| head`
        _discard_output()
        sys.exit(EXIT_PIPE_CLOSED)
    except UnicodeEncodeError as error:
        if error.reason != "surrogates not allowed":
            raise
        fail(f"{error.object}: has bytes that are not UTF-8; rename or convert it")
    except OSError as error:
        if error.filename is None and error.errno not in (*_DISK_ERRORS, *_CLOSED):
            raise
        _discard_output()
        is_full = error.errno in _DISK_ERRORS
        remedy = "free some space or name another place" if is_full else "check the path and its permissions"
        fail(f"{'output' if error.filename is None else error.filename}: {error.strerror}; {remedy}, and start again")


def check_encoding(arguments: list[str]) -> None:
    """Raises UserError for an argument that is not UTF-8: a run could not keep it in its config.

    Files of inputs and answers may have any name.
    """
    for argument in arguments:
        if (
            not argument.startswith(("--input=", "--output="))
            and argument != argument.encode(errors="replace").decode()
        ):
            raise UserError(f"{argument}: has bytes that are not UTF-8; rename or convert it")


def _discard_output() -> None:
    """What could not be written is still in a buffer, and Python would try again at its end."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)


def _fill_standard_streams() -> None:
    """Opens the standard streams that are closed, for a file would get their number, and with it what is printed.

    Writing to such an output fails, as it should.
    """
    for number, mode in enumerate((os.O_RDONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, mode), True)
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115


def _end_at_once(number: int, frame: FrameType | None) -> None:
    """Ends a process that is interrupted before `run`: an exception can crash a module that is being imported."""
    os.write(2, b"interrupted\n")
    os._exit(EXIT_INTERRUPTED)


def _keep_interrupts() -> None:
    """Raises an interrupt once more if it comes within garbage collection: Python ignores it in jax's callback for that."""
    show = sys.unraisablehook

    def unraisable(arguments: Any) -> None:
        if isinstance(arguments.exc_value, KeyboardInterrupt):
            threading.Timer(0.01, _thread.interrupt_main).start()
        else:
            show(arguments)

    sys.unraisablehook = unraisable


# At once: the modules that commands import after this one open files, and take seconds.
_fill_standard_streams()
_keep_interrupts()
if (
    signal.getsignal(signal.SIGINT) == signal.default_int_handler
    and threading.current_thread() is threading.main_thread()
):
    signal.signal(signal.SIGINT, _end_at_once)


def flag_mistake(arguments: list[str], error: Exception) -> UserError:
    """Returns what was wrong in the flags, by the exception that absl and ml_collections met in them."""
    from bert_jax.config import RENAMED  # not before the standard streams are open

    argument = re.search(r"unexpected keyword argument '(\w+)'", str(error))  # of a dataclass, in a config file
    for old, new in RENAMED.items():
        if argument and argument[1] == old.split(".")[-1]:
            return UserError(f"{_config_file(arguments)}: the option {old} is called {new} now")
    if isinstance(error, UserError | flags.Error):
        return UserError(str(error))
    misspelt = _misspelt(arguments, str(error))
    if isinstance(error, AttributeError) and misspelt:  # an option that the config does not have
        if renamed := RENAMED.get(misspelt.removeprefix("--config.")):
            return UserError(f"{misspelt}: the option is called {renamed} now")
        meant = re.search(r'Did you mean "(\w+)"', str(error))
        hint = f"did you mean {meant[1]}?" if meant else "see the config file for those there are"
        return UserError(f"{misspelt}: no such option; {hint}")
    file = _config_file(arguments)
    if not Path(file.partition(":")[0]).is_file():
        return UserError(f"{file}: no such config file; name a file of configs/")
    return UserError(f"{file}: not a bert_jax config ({type(error).__name__}: {error}); name a file of configs/")


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
        lines = super().format(record)
        return lines if record.exc_info else plain(lines)  # a traceback has several


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
    """Ends the process with a mistake of the user, on one line."""
    _end(f"error: {plain(str(error))}", EXIT_USER_ERROR)


def _end(line: str, code: int) -> NoReturn:
    """Ends the process in seconds, whatever its threads wait for."""
    with contextlib.suppress(OSError):  # nobody reads it
        print(line, file=sys.stderr)
    last_resort = threading.Timer(_seconds_to_end(), os._exit, [code])
    last_resort.daemon = True
    last_resort.start()
    sys.exit(code)


def _seconds_to_end() -> float:
    """How long this process may take to end."""
    jax = sys.modules.get("jax")
    return _SECONDS_TO_END_OF_A_JOB if jax and jax.distributed.is_initialized() else _SECONDS_TO_END
