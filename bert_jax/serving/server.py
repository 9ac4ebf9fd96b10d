"""A request from its body to its answer: limits, the queue, time-outs, and clients that go away."""

import asyncio
import dataclasses
from concurrent.futures import Future
from typing import Any

import numpy as np
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request

from bert_jax.serving.failures import Failure
from bert_jax.serving.requests import Body, read_body
from bert_jax.serving.runs import ServedRun
from bert_jax.serving.scheduler import Full, Scheduler
from bert_jax.serving.telemetry import Telemetry
from bert_jax.tasks.common.packing import Output
from bert_jax.tasks.common.prediction import Answer

CLIENT_CLOSED_REQUEST = 499  # in the metrics alone: nobody is there to read an answer


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a server accepts."""

    body_bytes: int = 1 << 20
    seconds: float = 30.0  # for the body, and for the answer
    waiting_tokens: int = 1 << 16  # in the queue


class Server:
    """The served runs and the queue that they share."""

    def __init__(self, runs: dict[str, ServedRun], limits: Limits):
        self.runs, self.limits, self.telemetry = runs, limits, Telemetry()
        self.scheduler = Scheduler(limits.waiting_tokens, self.telemetry.add_batch)
        self.telemetry.watch(self.scheduler)
        self.is_compiled = False
        self.has_failed = False  # to compile

    @property
    def is_ready(self) -> bool:
        return self.is_compiled and self.scheduler.is_alive

    def compile(self) -> None:
        """Compiles all programs of all runs; requests are refused until then."""
        for run in self.runs.values():
            run.compile()
        self.is_compiled = True

    def run(self, name: str) -> ServedRun:
        """Returns a run by its name. Raises Failure if there is none."""
        if name not in self.runs:
            raise Failure(404, f"no run named {name[:80]!r}; there are {', '.join(self.runs)}")
        return self.runs[name]

    async def body(self, request: Request, form: type[Body]) -> Body:
        """Reads the body of a request. Raises Failure if it is too large, too slow, not JSON, or of another form."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":  # browsers send other types to any host without asking it
            raise Failure(415, f"content-type is {kind or 'missing'}; send application/json")
        try:
            async with asyncio.timeout(self.limits.seconds):
                content = await self._content(request)
        except ClientDisconnect:
            raise Failure(CLIENT_CLOSED_REQUEST, "the client is gone") from None
        except TimeoutError:
            raise Failure(408, f"the body did not arrive within {self.limits.seconds:g} s") from None
        return read_body(form, content)

    async def _content(self, request: Request) -> bytes:
        content, most = bytearray(), self.limits.body_bytes
        async for chunk in request.stream():
            content += chunk
            if len(content) > most:
                raise Failure(413, f"the body has more than {most:,} bytes; send fewer or shorter texts at a time")
        return bytes(content)

    async def run_program(
        self, request: Request, run: ServedRun, operation: str, inputs: list[dict[str, Any]]
    ) -> list[Answer]:
        """Returns the answer of an operation to each input, computed together with the inputs of other requests.

        Raises:
          Failure: the run lacks the operation, the queue is full, or there is no answer in time.
          InputError: an input is invalid.
        """
        if operation not in run.programs:
            raise Failure(404, f"{run.name} has no {operation}; it has {', '.join(run.programs)}")
        if not self.is_ready:
            raise Failure(503, "the programs are being compiled; see /ready", retry_after=5.0)
        if not inputs:
            return []
        program = run.programs[operation]
        try:
            prepared = await run_in_threadpool(program.prediction.prepare, inputs)
            request.state.tokens = sum(item.length for item in prepared.items)
            future = self.scheduler.submit(program, prepared.items)
        except Full as full:
            raise Failure(429, str(full), retry_after=full.seconds) from None
        outputs = await self._outputs(request, future)
        if not all(np.isfinite(array).all() for output in outputs for array in output.values()):
            raise Failure(503, "the model computed values that are not finite")
        return await run_in_threadpool(prepared.postprocess, outputs)

    async def _outputs(self, request: Request, future: "Future[list[Output]]") -> list[Output]:
        """Waits for the outputs; cancels them if the client goes away or time is over."""
        result, gone = asyncio.wrap_future(future), asyncio.ensure_future(_disconnected(request))
        try:
            await asyncio.wait((result, gone), timeout=self.limits.seconds, return_when=asyncio.FIRST_COMPLETED)
            if result.done():
                return result.result()
            if gone.done():
                raise Failure(CLIENT_CLOSED_REQUEST, "the client is gone")
            raise Failure(504, f"no answer within {self.limits.seconds:g} s; send fewer or shorter texts at a time")
        except (RuntimeError, ValueError) as error:  # of the batch; see the log
            raise Failure(503, f"the batch could not be computed ({type(error).__name__}); try again") from None
        finally:
            gone.cancel()
            result.cancel()


async def _disconnected(request: Request) -> None:
    """Returns once the client is gone; its body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
