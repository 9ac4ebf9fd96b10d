"""Runs a server on this machine that speaks the protocol of S3 (moto), for tests and benchmarks."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import util

from bert_jax.errors import UserError

SECONDS = 60.0  # until it answers; it imports for a second or two
# What the client reads. The keys are those of nobody; without the last one it would ask a cloud for others.
VARIABLES = {
    "AWS_ACCESS_KEY_ID": "local",
    "AWS_SECRET_ACCESS_KEY": "local",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@contextlib.contextmanager
def s3_server(bucket: str) -> Iterator[dict[str, str]]:
    """Starts a server with an empty bucket, and stops it at the end.

    Yields:
      The variables of the environment of its clients, which are set in this process.

    Raises:
      UserError: moto or s3fs is not installed, or the server does not start.
    """
    if util.find_spec("moto") is None or util.find_spec("s3fs") is None:
        raise UserError("moto or s3fs is not installed; pip install 'moto[server]' and bert_jax[cloud]")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    variables = VARIABLES | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}
    command = [sys.executable, "-c", "from moto.server import main; main()", "-H", "127.0.0.1", "-p", str(port)]
    import s3fs

    before = {name: os.environ.get(name) for name in variables}
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait(server, port)
        os.environ.update(variables)
        s3fs.S3FileSystem.clear_instance_cache()  # a client knows the server of its start
        s3fs.S3FileSystem().mkdir(bucket)
        yield variables
    finally:
        server.kill()
        server.wait()
        for name, value in before.items():
            os.environ.pop(name, None)
            os.environ |= {} if value is None else {name: value}
        s3fs.S3FileSystem.clear_instance_cache()


def _wait(server: subprocess.Popen[bytes], port: int) -> None:
    """Waits until the server answers."""
    deadline = time.monotonic() + SECONDS
    while server.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    raise UserError(f"the S3 server does not answer on port {port}; start the command again")
