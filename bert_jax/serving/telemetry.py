"""Metrics in the format of Prometheus, and a log of requests: a JSON object per line on stderr, without any text of clients."""

import json
import logging
import sys
import time
from typing import Any

import jax
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from bert_jax.serving.scheduler import Batch, Scheduler

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)  # upper bounds of latencies
TOKENS = (16, 64, 256, 1024, 4096, 16384, 65536)
COMPILED = "/jax/core/compile/backend_compile_duration"  # jax's event after each compilation
_compilations = [0]  # of the process


def _count(event: str, duration_secs: float, **_: Any) -> None:
    _compilations[0] += event == COMPILED


jax.monitoring.register_event_duration_secs_listener(_count)


class Telemetry:
    """The metrics of a server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        names = ("run", "operation")
        self.requests = Counter("bert_jax_requests", "Requests.", (*names, "status"), registry=self.registry)
        self.seconds = Histogram(
            "bert_jax_request_seconds", "Time to the answer.", names, buckets=SECONDS, registry=self.registry
        )
        self.tokens = Histogram("bert_jax_batch_tokens", "Tokens of a batch.", buckets=TOKENS, registry=self.registry)
        self.batch_seconds = Histogram(
            "bert_jax_batch_seconds", "Time of a batch.", buckets=SECONDS, registry=self.registry
        )
        self.padding = Counter("bert_jax_padding_tokens", "Padding in all batches.", registry=self.registry)
        self.waiting = Gauge("bert_jax_waiting_tokens", "Tokens in the queue.", registry=self.registry)
        self.compilations = Gauge("bert_jax_compilations", "Programs compiled so far.", registry=self.registry)
        self.compilations.set_function(lambda: _compilations[0])

    def watch(self, scheduler: Scheduler) -> None:
        self.waiting.set_function(lambda: scheduler.waiting_tokens)

    def add_batch(self, batch: Batch) -> None:
        self.tokens.observe(batch.tokens)
        self.batch_seconds.observe(batch.seconds)
        self.padding.inc(batch.slots - batch.tokens)

    def add_request(self, run: str, operation: str, status: int, seconds: float, **more: int) -> None:
        self.requests.labels(run, operation, status).inc()
        self.seconds.labels(run, operation).observe(seconds)
        log("request", run=run, operation=operation, status=status, seconds=round(seconds, 4), **more)

    def page(self) -> bytes:
        return generate_latest(self.registry)


def log(event: str, **values: Any) -> None:
    """Writes a line of the log."""
    line = {"time": round(time.time(), 3), "event": event} | values
    sys.stderr.write(json.dumps(line) + "\n")
    sys.stderr.flush()


def show_log_of_uvicorn() -> None:
    """Leaves to uvicorn's own log what went wrong; requests are in the log of `log`."""
    for name in ("uvicorn", "uvicorn.error"):
        logging.getLogger(name).setLevel(logging.WARNING)
