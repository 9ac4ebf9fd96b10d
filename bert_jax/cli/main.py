"""Entry point of all commands: prints errors of users on one line, shows the log, and ends the process reliably.

Exit codes of all commands: 0, EXIT_USER_ERROR, EXIT_INTERRUPTED and EXIT_PIPE_CLOSED.
"""

import _thread
import atexit
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
from ml_collections import config_flags
from ml_collections.config_flags import tuple_parser

from bert_jax.errors import EXIT_USER_ERROR, UserError, plain

# As for processes killed by these signals.
EXIT_INTERRUPTED, EXIT_PIPE_CLOSED = 128 + signal.SIGINT, 128 + signal.SIGPIPE
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
_CLOSED = (errno.EBADF, errno.EIO)  # of writing to a standard output that was closed or lost
# After a failure, threads of libraries may block, Orbax's for 10 minutes, and Python waits for them.
_SECONDS_TO_END = 5.0
# Processes of a job may hit a common error at different times; jax would abort after a minute.
_SECONDS_TO_END_OF_A_JOB = 30.0


class Tuples(tuple_parser.TupleParser):
    """Reads what ml_collections reads, and strings without quotes, such as `0.3:a/b,0.2:c`, and one dict without a comma."""

    def parse(self, argument: Any) -> Any:
        if isinstance(argument, str) and argument.lstrip().startswith("{"):  # else the tuple of its keys
            argument = f"({argument.rstrip(', ')},)"
        try:
            return super().parse(argument)
        except ValueError:
            if set("'\"()[]{}").intersection(argument):
                raise
            return tuple(filter(None, argument.split(",")))


config_flags.register_flag_parser_for_type(tuple, Tuples())


def run_command(main: Callable[[], object]) -> None:
    """Parses the flags, calls `main()` and exits; a UserError or an invalid flag gives one line and EXIT_USER_ERROR."""

    def parse(arguments: list[str]) -> list[str]:
        try:
            rest = flags.FLAGS(arguments)
        except BrokenPipeError:  # of --help
            raise
        except Exception as error:
            raise flag_error(arguments, error) from None
        if len(rest) > 1:
            fail(f"unexpected argument {rest[1]!r}; flags are written --name=value")
        return rest

    def start(_: list[str]) -> None:
        show_log()
        main()

    # ml_collections reads --config from sys.argv and needs it before its options; users may write them in any order.
    sys.argv[1:] = sorted(sys.argv[1:], key=lambda argument: not argument.startswith("--config="))
    with guarded():
        check_encoding(sys.argv)
        app.run(start, flags_parser=parse)


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Ends the process with one line and an exit code after an error of the user, an interrupt, or a closed output."""
    if signal.getsignal(signal.SIGINT) == _end_at_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if isinstance(sys.stdout, io.TextIOWrapper):  # independent of the locale; keeps file names unchanged
        sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")
    try:
        try:
            yield
        finally:
            if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
                signal.signal(signal.SIGINT, signal.SIG_DFL)  # an interrupt during shutdown would print a traceback
            sys.stdout.flush()  # here a failure can still be reported
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
        remedy = "free some space or write elsewhere" if is_full else "check the path and its permissions"
        fail(f"{'output' if error.filename is None else error.filename}: {error.strerror}; {remedy}, and start again")
    except RuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):  # jax's JaxRuntimeError, without an import of jax
            raise
        remedy = "raise train.accumulation_steps or parallel.fsdp, set model.remat, or lower train.batch_size"
        fail(f"out of memory: {str(error).partition('RESOURCE_EXHAUSTED: ')[2][:200]}; {remedy}")


def check_encoding(arguments: list[str]) -> None:
    """Raises UserError for an argument that is not UTF-8, which a config could not store."""
    for argument in arguments:
        may_have_any_name = argument.startswith(("--input=", "--output="))
        if not may_have_any_name and argument != argument.encode(errors="replace").decode():
            raise UserError(f"{argument}: has bytes that are not UTF-8; rename or convert it")


def _discard_output() -> None:
    """Discards output that could not be written; Python would try to write it again at exit."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)


def _fill_standard_streams() -> None:
    """Opens closed standard streams, so that no other file gets their numbers and their output. Writing to them fails."""
    for number, mode in enumerate((os.O_RDONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, mode), True)
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115


def _end_at_once(number: int, frame: FrameType | None) -> None:
    """Ends a process that is interrupted before `run_command`; an exception could break a running import."""
    os.write(2, b"interrupted\n")
    os._exit(EXIT_INTERRUPTED)


def _replace_hooks() -> None:
    """Hides tracebacks of Orbax's threads, whose errors are raised again in the main thread.

    Repeats an interrupt that arrives during garbage collection, where Python ignores it in jax's callback.
    """
    show_thread, show_unraisable = threading.excepthook, sys.unraisablehook

    def of_thread(arguments: threading.ExceptHookArgs) -> None:
        if not type(arguments.thread).__module__.startswith("orbax."):
            show_thread(arguments)

    def unraisable(arguments: Any) -> None:
        if isinstance(arguments.exc_value, KeyboardInterrupt):
            threading.Timer(0.01, _thread.interrupt_main).start()
        elif str(arguments.exc_value) != "Event loop is closed":  # of reads that continue after another has failed
            show_unraisable(arguments)

    threading.excepthook, sys.unraisablehook = of_thread, unraisable


# At import, because later imports open files and take seconds.
_fill_standard_streams()
_replace_hooks()
_in_main_thread = threading.current_thread() is threading.main_thread()
if _in_main_thread and signal.getsignal(signal.SIGINT) == signal.default_int_handler:
    signal.signal(signal.SIGINT, _end_at_once)


def flag_error(arguments: list[str], error: Exception) -> UserError:
    """Converts an exception of absl or ml_collections to a message about the flags."""
    from bert_jax.config import RENAMED, renamed_hint  # not before the standard streams are open

    argument = re.search(r"unexpected keyword argument '(\w+)'", str(error))  # of a dataclass, in a config file
    for old in RENAMED:
        if argument and argument[1] == old.split(".")[-1]:
            return UserError(f"{_config_file(arguments)}: {old}: {renamed_hint(old)}")
    if isinstance(error, flags.UnrecognizedFlagError):
        return UserError(f"{error}; --help shows all flags" if "Did you mean" not in str(error) else str(error))
    if isinstance(error, UserError | flags.Error):
        return UserError(str(error))
    misspelt = _misspelt(arguments, str(error).partition("Did you mean")[0].replace("\\", ""))
    if isinstance(error, AttributeError) and misspelt:  # an unknown option
        if hint := renamed_hint(misspelt.removeprefix("--config.")):
            return UserError(f"{misspelt}: {hint}")
        suggestion = re.search(r'Did you mean "(\w+)"', str(error))
        hint = f"did you mean {suggestion[1]}?" if suggestion else "see the config file for all options"
        return UserError(f"{misspelt}: no such option; {hint}")
    file = _config_file(arguments)
    if not Path(file.partition(":")[0]).is_file():
        return UserError(f"{file}: no such config file; use a file of configs/")
    return UserError(f"{file}: not a bert_jax config ({type(error).__name__}: {error}); use a file of configs/")


def loaded_config() -> Any:
    """Returns the config of the flag --config, a ConfigDict. Raises UserError if there is no such file, or it fails."""
    from ml_collections import config_flags

    flag: Any = flags.FLAGS["config"]
    with contextlib.suppress(OSError, AttributeError):
        if "task" in flag.value.keys():  # noqa: SIM118  a file that failed to load raises its error here
            return flag.value
    file = config_flags.get_config_filename(flag)
    what = "not a bert_jax config" if Path(file.partition(":")[0]).is_file() else "no such config file"
    raise UserError(f"{file}: {what}; use a file of configs/")


def show_log() -> None:
    """Shows the log of bert_jax as plain lines on stderr, and hides that of libraries, which also raise their errors."""
    absl.logging.set_verbosity(absl.logging.FATAL)
    handler = logging.StreamHandler()
    handler.setFormatter(_Lines("%(message)s"))
    own = logging.getLogger("bert_jax")
    own.handlers, own.propagate = [handler], False
    own.setLevel(logging.INFO)


class _Lines(logging.Formatter):
    """Formats records as printable lines; names in them may contain terminal escapes."""

    def format(self, record: logging.LogRecord) -> str:
        lines = super().format(record)
        return lines if record.exc_info else plain(lines)  # a traceback has several


def _misspelt(arguments: list[str], message: str) -> str:
    """Returns the flag with the option that is missing according to `message`."""
    flag_names = [argument.split("=")[0] for argument in arguments if argument.startswith("--config.")]
    return next((name for name in flag_names if repr(name.split(".")[-1]) in message.replace('"', "'")), "")


def _config_file(arguments: list[str]) -> str:
    """Returns the value of --config."""
    values = [argument.split("=", 1)[1] for argument in arguments if argument.lstrip("-").startswith("config=")]
    return values[-1] if values else "--config"


def fail(error: object) -> NoReturn:
    """Prints an error of the user on one line and ends the process."""
    _end(f"error: {plain(str(error))}", EXIT_USER_ERROR)


def _end(line: str, code: int) -> NoReturn:
    """Ends the process within seconds, even if threads block."""
    with contextlib.suppress(OSError):  # stderr is closed
        print(line, file=sys.stderr)
    jax = sys.modules.get("jax")
    seconds = _SECONDS_TO_END_OF_A_JOB if jax and jax.distributed.is_initialized() else _SECONDS_TO_END
    timer = threading.Timer(seconds, os._exit, [code])
    timer.daemon = True
    timer.start()
    if code == EXIT_INTERRUPTED:
        # Without the rest of Python's end, where jax's threads, which still compute, have ended in a segmentation fault.
        atexit._run_exitfuncs()
        os._exit(code)
    sys.exit(code)
