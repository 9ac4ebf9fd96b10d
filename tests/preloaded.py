"""Runs Python programs in forks of one process that has imported the large packages, which take most of a command's start.

    python tests/preloaded.py

Reads requests from standard input, one JSON object a line: `arguments` of Python (`-m MODULE ...` or `FILE ...`), `folder`,
`environment`, and the files `stdout` and `stderr`. Prints the process's number, and its exit status when it has ended. No
program is imported here, no device is opened and no thread is started, so a fork is what a new process of Python would be.
"""

import json
import os
import runpy
import signal
import sys
from pathlib import Path

import absl.app  # noqa: F401
import array_record.python.array_record_module  # noqa: F401
import flax.nnx  # noqa: F401
import jax  # noqa: F401
import ml_collections  # noqa: F401
import optax  # noqa: F401
import orbax.checkpoint  # noqa: F401
import safetensors.numpy  # noqa: F401
import sentencepiece  # noqa: F401
import tokenizers  # noqa: F401


def next_program() -> list[str]:
    """Waits for requests; returns the arguments of one in the process that is to run it, and ends when none is left."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for line in sys.stdin:
        request = json.loads(line)
        if child := os.fork():
            print(child, flush=True)
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
            continue
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.chdir(request["folder"])
        os.environ.clear()
        os.environ.update(request["environment"])
        for number, name in enumerate((os.devnull, request["stdout"], request["stderr"])):
            os.dup2(os.open(name, os.O_RDWR), number)
        return request["arguments"]
    os._exit(0)


if __name__ == "__main__":
    program, *sys.argv[1:] = next_program()
    if program == "-m":
        module = sys.argv.pop(1)
        sys.path[0] = str(Path.cwd())
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    else:
        sys.argv[0] = program
        path = Path(program).resolve()
        sys.path[0] = str(path.parent)
        runpy.run_path(str(path), run_name="__main__")
