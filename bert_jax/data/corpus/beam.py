"""Runs the work of a preparation on Apache Beam: a pipeline for each stage, whose elements are numbers of parts or shards."""

import contextlib
import io
import logging
import logging.handlers
import re
import shlex
import socket
from collections.abc import Callable, Sequence
from functools import partial
from types import ModuleType

from bert_jax.errors import UserError, optional_package

logger = logging.getLogger(__name__)
# Processes of this machine. Beam's own default, DirectRunner, first downloads the binary of another runner.
_DEFAULT = "--runner=FnApiRunner"
_DASK, _FULL_NAME = "--runner=DaskRunner", "--runner=apache_beam.runners.dask.dask_runner.DaskRunner"
# Otherwise Dask would get 128 elements in a partition, which is the work of one thread.
_DASK_PARTITIONS = ("--dask_partition_size", "--dask_npartitions")
# What remains of an error of a worker in the message of a runner: its traceback, as text.
_RUNNING = " [while running "
_USER_ERROR = re.compile(rf"bert_jax\.errors\.UserError: (.*?)(?:{re.escape(_RUNNING)}|\\n|\n|$)")


def run_on_beam(options: str, function: Callable[[int], None], numbers: Sequence[int]) -> None:
    """Calls a function for each number, by workers of Beam; the `ForEach` of `distributed.make_shards`.

    Args:
      options: those of Beam's pipelines, such as `--runner=DaskRunner --dask_client_address=...`.
      function: is pickled; workers import this package.
      numbers: the arguments.

    Raises:
      UserError: Beam is not installed, it does not take the options, the pipeline failed, or a worker raised UserError or
        OSError.
    """
    if not numbers:
        return
    beam = _package("apache_beam")
    pipeline = beam.Pipeline(options=pipeline_options(options))
    # Without the shuffle, runners would give all elements to the worker that creates them.
    _ = pipeline | beam.Create(list(numbers)) | beam.Reshuffle() | "work" >> beam.Map(partial(_call, function))
    try:
        result = pipeline.run()
        with getattr(result, "client", contextlib.nullcontext()):  # Beam leaves the connection to Dask open
            state = result.wait_until_finish()
    except Exception as error:  # of many kinds, by runner
        raise _user_error(error) from error
    if state != "DONE":
        raise UserError(f"the pipeline of Beam ended as {state}; see the log of its runner, and start again")


def pipeline_options(options: str) -> object:
    """Returns Beam's PipelineOptions for a command line. Raises UserError if Beam is not installed or does not take them."""
    module = _package("apache_beam.options.pipeline_options")
    try:
        flags = shlex.split(options)
    except ValueError as error:
        raise UserError(f"beam_options={options!r}: {error}; quote it like a command line") from None
    if not any(flag.startswith("--runner") for flag in flags):
        flags.append(_DEFAULT)
    if _DASK in flags or _FULL_NAME in flags:
        _package("distributed")
        flags = [_FULL_NAME if flag == _DASK else flag for flag in flags]
        if not any(flag.startswith(_DASK_PARTITIONS) for flag in flags):
            flags.append(f"{_DASK_PARTITIONS[0]}=1")
    usage, unknown = io.StringIO(), logging.handlers.BufferingHandler(capacity=100)
    beam_logger = logging.getLogger(module.__name__)
    beam_logger.addHandler(unknown)
    try:
        with contextlib.redirect_stderr(usage):  # argparse prints its usage and exits
            parsed = module.PipelineOptions(flags)
            # Options of a runner are known when its module has been imported.
            _package("apache_beam.runners.runner").create_runner(parsed.view_as(module.StandardOptions).runner)
            parsed.get_all_options()
    except (SystemExit, ValueError, ImportError, AttributeError) as error:
        reason = (usage.getvalue() or str(error)).strip().splitlines()[-1]
        raise UserError(f"beam_options={options!r}: {reason}; see Beam's pipeline options") from None
    finally:
        beam_logger.removeHandler(unknown)
    for record in unknown.buffer:
        logger.warning("beam_options: %s", record.getMessage())
    return parsed


def _call(function: Callable[[int], None], number: int) -> None:
    try:
        function(number)
    except OSError as error:
        name, reason = error.filename or "output", error.strerror or str(error)
        raise UserError(
            f"{name}: {reason} (on {socket.gethostname()}); check the disk and its permissions, and start again"
        ) from error


def _user_error(error: Exception) -> UserError:
    """Returns an error of a runner as one of the user, on one line."""
    if isinstance(error, UserError):
        return UserError(str(error).partition(_RUNNING)[0])
    if messages := _USER_ERROR.findall(str(error)):
        return UserError(messages[-1])
    last = str(error).strip().splitlines()[-1:] or [type(error).__name__]
    return UserError(f"the pipeline of Beam failed ({type(error).__name__}: {last[0]:.300}); see the log of its runner")


def _package(name: str) -> ModuleType:
    return optional_package(name, "runner=beam", "beam")
