"""Load on an HTTP server: clients that each ask, wait for the answer and ask again, on connections that stay open."""

import asyncio
import dataclasses
import itertools
import json
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

LOST = 0  # status of a request that got no answer
TIMEOUT = 60.0  # seconds


@dataclasses.dataclass
class Load:
    """What clients saw in `seconds`: the status of each request, and the latency of those that were answered with 200."""

    seconds: float
    statuses: list[int] = dataclasses.field(default_factory=list)
    latencies: list[float] = dataclasses.field(default_factory=list)  # seconds

    @property
    def rate(self) -> float:
        """Answers with 200 in a second."""
        return len(self.latencies) / self.seconds

    @property
    def failures(self) -> int:
        return sum(status != 200 for status in self.statuses)

    def percentile(self, share: float) -> float:
        """Returns a latency in milliseconds; NaN without answers."""
        return 1000 * float(np.percentile(self.latencies, share)) if self.latencies else float("nan")


def measure_load(port: int, path: str, bodies: Sequence[Any], clients: int, seconds: float) -> Load:
    """Runs clients on this machine's port for some seconds, and waits for the answers to all requests."""
    return asyncio.run(_clients(port, path, bodies, clients, seconds))


async def _clients(port: int, path: str, bodies: Sequence[Any], clients: int, seconds: float) -> Load:
    requests = itertools.cycle([request(path, body) for body in bodies])
    start = time.perf_counter()
    load = Load(seconds)
    await asyncio.gather(*(_client(port, requests, start + seconds, load) for _ in range(clients)))
    load.seconds = time.perf_counter() - start
    return load


async def _client(port: int, requests: Iterator[bytes], end: float, load: Load) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while time.perf_counter() < end:
        start = time.perf_counter()
        status = LOST
        try:
            async with asyncio.timeout(TIMEOUT):
                writer.write(next(requests))
                status, _ = await response(reader)
        except (OSError, asyncio.IncompleteReadError, TimeoutError):
            writer.close()
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        load.statuses.append(status)
        if status == 200:
            load.latencies.append(time.perf_counter() - start)
    writer.close()


def request(path: str, body: Any) -> bytes:
    """Returns a POST request with a body of JSON values, or of bytes as they are."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: localhost",
        "Content-Type: application/json",
        f"Content-Length: {len(content)}",
    ]
    return "\r\n".join([*lines, "", ""]).encode() + content


async def response(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Reads a response with a Content-Length; returns its status and body."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower().split("\r\n")
    size = next(int(line.split(":")[1]) for line in head if line.startswith("content-length:"))
    return int(head[0].split()[1]), await reader.readexactly(size)
