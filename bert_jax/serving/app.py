"""The HTTP application: the routes of the API and of the page."""

import contextlib
import logging
import signal
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Request, Response, Security
from fastapi import Path as PathParameter
from fastapi.responses import FileResponse, JSONResponse
from fastapi.security import HTTPBearer
from fastapi.staticfiles import StaticFiles
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException

from bert_jax import __version__
from bert_jax.errors import UserError
from bert_jax.serving import responses as shapes
from bert_jax.serving.failures import INVALID, Failure
from bert_jax.serving.guards import Guard
from bert_jax.serving.operations import OPERATIONS, Operation
from bert_jax.serving.requests import place_of
from bert_jax.serving.runs import ServedRun
from bert_jax.serving.server import Server
from bert_jax.serving.telemetry import log
from bert_jax.tasks.common.prediction import InputError

PAGE = Path(__file__).parent / "page"
LOCAL_HOSTS = ["localhost", "127.0.0.1", "[::1]"]
logger = logging.getLogger(__name__)
STATUSES = {
    400: "The Host header names another server.",
    401: "The token is missing or wrong.",
    404: "There is no such run, or it lacks the operation.",
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    415: "The body is not JSON.",
    422: "The body is invalid: `field` says where.",
    429: "The queue is full: try again after `Retry-After` seconds.",
    500: "A bug: see the log of the server.",
    503: "The server is not ready, or the batch could not be computed.",
    504: "There is no answer in time.",
}
Responses = dict[int | str, dict[str, Any]]  # of the description, by status
RETRY_AFTER = {"retry-after": {"description": "Seconds after which to try again.", "schema": {"type": "integer"}}}
TAGS = [
    {"name": "runs", "description": "The served runs and their operations."},
    {"name": "server", "description": "For whoever runs the server."},
]


def make_app(server: Server, token: str = "", hosts: list[str] | None = LOCAL_HOSTS) -> FastAPI:
    """Returns the application.

    Args:
      server: the runs. They are compiled when the application starts.
      token: that clients must send; '' for none.
      hosts: names by which browsers may address the server, so that no other site can pass its name off as this one; None for
        any.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        threading.Thread(target=compile_programs, args=(server,), name="compile", daemon=True).start()
        yield
        server.scheduler.close()

    app = FastAPIOffline(
        title="bert_jax",
        version=__version__,
        redoc_url=None,
        lifespan=lifespan,
        description="Predictions of runs.",
        openapi_tags=TAGS,
    )
    add_routes(app, server, needs_token=bool(token))
    app.mount("/page", StaticFiles(directory=PAGE), name="page")
    app.add_exception_handler(HTTPException, _not_found)
    app.add_middleware(Guard, token=token, hosts=hosts)
    return app


def compile_programs(server: Server) -> None:
    """Compiles the programs of a server, or ends the process, which could never be ready."""
    start = time.perf_counter()
    try:
        server.compile()
    except Exception:  # such as a lack of memory
        logger.exception("the programs cannot be compiled")
        server.has_failed = True
        signal.raise_signal(signal.SIGTERM)
        return
    log("ready", runs=list(server.runs), seconds=round(time.perf_counter() - start, 1))


async def _not_found(request: Request, error: Exception) -> Response:
    """Returns the error of a path or a method that is not there in the form of all others."""
    assert isinstance(error, HTTPException)
    failure = Failure(error.status_code, f"{request.method} {request.url.path[:80]!r}: {error.detail}")
    return JSONResponse(failure.body, failure.status, error.headers)


def add_routes(app: FastAPI, server: Server, needs_token: bool) -> None:
    """Adds the routes. Bodies are read by `Server.body`, within its limits, instead of by FastAPI.

    The token is checked by `Guard`, and here only described.
    """
    bearer = HTTPBearer(description="The token of the server (--token_file).", auto_error=False)
    secured: dict[str, Any] = {"dependencies": [Security(bearer)] if needs_token else []}

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(PAGE / "index.html")

    @app.get("/health", tags=["server"], summary="Is the process alive?", responses=_errors(400))
    async def health() -> shapes.Health:
        """Answers as soon as the process listens, and needs no token."""
        return shapes.Health(status="alive", version=__version__)

    not_ready: Responses = {503: {"description": "Some programs are still being compiled.", "model": shapes.Ready}}

    @app.get("/ready", tags=["server"], summary="Are all programs compiled?", responses=_errors(400) | not_ready)
    async def ready(response: Response) -> shapes.Ready:
        """Says whether requests are answered; needs no token."""
        response.status_code = 200 if server.is_ready else 503
        return shapes.Ready(ready=server.is_ready)

    text: Responses = {
        200: {"description": "A metric per line.", "content": {"text/plain": {"schema": {"type": "string"}}}}
    }

    @app.get(
        "/metrics",
        tags=["server"],
        summary="Metrics in the format of Prometheus",
        response_class=Response,
        responses=_errors(400, 401) | text,
        **secured,
    )
    async def metrics() -> Response:
        """Counts requests, seconds, batches, padding, what waits, and compilations."""
        return Response(server.telemetry.page(), media_type="text/plain; version=0.0.4")

    @app.get(
        "/v1/runs", tags=["runs"], summary="The runs, and what they are for", responses=_errors(400, 401), **secured
    )
    async def runs() -> list[shapes.Run]:
        """Describes each run: what it is for, and what it reads."""
        return [shapes.Run(**run.describe()) for run in server.runs.values()]

    for name, operation in OPERATIONS.items():
        _add_operation(app, server, name, operation, secured)


def _add_operation(app: FastAPI, server: Server, name: str, operation: Operation, secured: dict[str, Any]) -> None:
    async def endpoint(
        request: Request, run: Annotated[str, PathParameter(description="Name of a run, as in GET /v1/runs.")]
    ) -> Response:
        return await _respond(server, request, run, name, operation)

    schemas = [_without_references(body.model_json_schema()) for body in operation.bodies.values()]
    content = {"application/json": {"schema": schemas[0] if len(schemas) == 1 else {"anyOf": schemas}}}
    app.post(
        f"/v1/{{run}}/{name}",
        summary=operation.summary,
        description=operation.description,
        tags=["runs"],
        operation_id=name,
        response_model=operation.shape,  # described only: the endpoint returns a Response
        response_description="The answer.",
        responses=_errors(*STATUSES),
        openapi_extra={"requestBody": {"description": "What to compute.", "required": True, "content": content}},
        **secured,
    )(endpoint)


async def _respond(server: Server, request: Request, run: str, name: str, operation: Operation) -> Response:
    """Returns the response of an operation, or of its failure, and notes it in metrics and log."""
    start = time.perf_counter()
    request.state.tokens = 0
    try:
        response = JSONResponse(await _result(server, request, server.run(run), operation))
    except Failure as failure:
        response = JSONResponse(failure.body, failure.status, failure.headers)
    except Exception:
        logger.exception("%s of %s failed", name, run)
        response = JSONResponse({"error": "internal error; see the log of the server"}, 500)
    seconds, known = time.perf_counter() - start, run if run in server.runs else "unknown"
    server.telemetry.add_request(known, name, response.status_code, seconds, tokens=request.state.tokens)
    return response


async def _result(server: Server, request: Request, run: ServedRun, operation: Operation) -> Any:
    """Returns the answer of an operation. Raises Failure, also for what a task refuses."""
    body: Any = await server.body(request, operation.body_of(run))
    try:
        return await operation.handle(server, request, run, body)
    except InputError as error:
        raise Failure(INVALID, str(error), place_of(error, body.inputs)) from None
    except UserError as error:
        raise Failure(INVALID, str(error), ("inputs",)) from None


def _errors(*statuses: int) -> Responses:
    """Returns the description of the responses with these statuses."""
    return {
        status: {"description": STATUSES[status], "model": shapes.Error}
        | ({"headers": RETRY_AFTER} if status in (429, 503) else {})
        for status in statuses
    }


def _without_references(schema: Any, definitions: dict[str, Any] | None = None) -> Any:
    """Returns a JSON schema with each definition in its place, as the references of a part would not hold in the whole."""
    if definitions is None:
        definitions = schema.get("$defs", {})
    if isinstance(schema, list):
        return [_without_references(part, definitions) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:  # maybe with a description of its own
        definition = definitions[schema["$ref"].rpartition("/")[2]]
        schema = definition | {name: part for name, part in schema.items() if name != "$ref"}
    return {name: _without_references(part, definitions) for name, part in schema.items() if name != "$defs"}
