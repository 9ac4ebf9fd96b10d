"""Serves predictions of runs over HTTP: an API for programs, and a page for people.

python -m bert_jax.serve --workdir=runs/y [--workdir=runs/x ...]

Each run is served at /v1/NAME/predict, where NAME is that of its folder or, with --workdir=NAME=FOLDER, its own, in the shapes
of Hugging Face's task specifications, and on the page http://127.0.0.1:8000. /docs has the API. Needs the extra `serve`:
launch/setup.sh --serve

Exit codes: 0 after SIGTERM or Ctrl-C, when all requests are answered; 2 for invalid input.
"""

import logging
import signal
import socket
import sys
from pathlib import Path

from absl import flags

from bert_jax.cli.main import run_command
from bert_jax.errors import UserError
from bert_jax.files import read_text
from bert_jax.parallel import hosts
from bert_jax.run import use_compilation_cache

logger = logging.getLogger("bert_jax.serve")  # __name__ is __main__
LOOPBACK = ("127.0.0.1", "localhost", "::1")
SHORTEST_TOKEN = 16  # characters


def define_flags() -> None:
    flags.DEFINE_multi_string("workdir", [], "The folder of a run, or NAME=FOLDER; may be given several times.")
    flags.DEFINE_string("host", LOOPBACK[0], "Address to listen on; 0.0.0.0 for all of this machine's.")
    flags.DEFINE_integer("port", 8000, "Port to listen on; 0 for a free one.", lower_bound=0, upper_bound=65535)
    flags.DEFINE_string("token_file", "", "File with a token that clients must send.")
    flags.DEFINE_integer(
        "batch_tokens", 0, "Tokens of a batch; 0 for 1,024 on CPU and 16,384 otherwise.", lower_bound=0
    )
    flags.DEFINE_integer("queue_tokens", 0, "Tokens that may wait; 0 for 64 batches.", lower_bound=0)
    flags.DEFINE_integer("body_bytes", 1 << 20, "Largest body of a request.", lower_bound=1)
    flags.DEFINE_float("timeout", 30.0, "Seconds in which a request is answered.", lower_bound=0.1)


def main() -> None:
    try:
        import uvicorn

        from bert_jax.serving.app import LOCAL_HOSTS, make_app
        from bert_jax.serving.runs import load_runs
        from bert_jax.serving.server import Limits, Server
        from bert_jax.serving.telemetry import show_log_of_uvicorn
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is not installed; pip install -r requirements-serve.txt") from None
    values = flags.FLAGS
    if not values.workdir:
        raise UserError("--workdir is missing; set it to the folder of a run")
    token = read_token(values.token_file)
    hosts.start("")
    use_compilation_cache(True)
    batch_tokens = values.batch_tokens or default_batch_tokens()
    runs = load_runs(values.workdir, batch_tokens)
    limits = Limits(values.body_bytes, values.timeout, values.queue_tokens or 64 * batch_tokens)
    is_local = values.host in LOOPBACK
    if not is_local:
        access = (
            "whoever has the token" if token else "everyone who can reach this machine; --token_file=FILE restricts it"
        )
        logger.warning("--host=%s: open to %s", values.host, access)
    listening = listen(values.host, values.port)
    server = Server(runs, limits)
    show_log_of_uvicorn()
    logger.info("serving %s at http://%s:%s", ", ".join(runs), values.host, listening.getsockname()[1])
    for number in (signal.SIGINT, signal.SIGTERM):  # uvicorn raises them again, for these handlers, when it has ended
        signal.signal(number, lambda *_: None)
    config = uvicorn.Config(
        make_app(server, token, LOCAL_HOSTS if is_local else None),
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=round(values.timeout) + 1,
    )
    uvicorn.Server(config).run(sockets=[listening])
    if server.has_failed:
        sys.exit(1)


def listen(host: str, port: int) -> socket.socket:
    """Returns a socket that listens. Raises UserError if the address is not this machine's, or is in use."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise UserError(f"--host={host} --port={port}: {error.strerror or error}; use another") from None


def read_token(path: str) -> str:
    """Reads a token from a file; '' without one. Raises UserError if it is short enough to be guessed."""
    if not path:
        return ""
    token = read_text(Path(path)).strip()
    if len(token) < SHORTEST_TOKEN or any(character.isspace() for character in token):
        remedy = "python -c 'import secrets; print(secrets.token_urlsafe())' prints one"
        raise UserError(f"--token_file={path}: must hold a token of at least {SHORTEST_TOKEN} characters; {remedy}")
    return token


def default_batch_tokens() -> int:
    import jax

    return 1024 if jax.default_backend() == "cpu" else 16384


if __name__ == "__main__":
    define_flags()
    run_command(main)
