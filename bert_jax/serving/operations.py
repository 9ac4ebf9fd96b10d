"""The operations of the API: each reads its body, has the inputs computed, and returns JSON values."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from bert_jax.serving import requests
from bert_jax.serving.answers import to_huggingface, with_mask_parameters
from bert_jax.serving.embedding import similarities
from bert_jax.serving.requests import InputError, inputs_of
from bert_jax.serving.runs import EMBED, EXPLAIN, PREDICT, ServedRun
from bert_jax.serving.server import Server
from bert_jax.serving.tokens import tokens_of


class Operation(NamedTuple):
    """An operation of a run, at /v1/RUN/NAME.

    Attributes:
      summary: for the description of the API.
      bodies: the forms of its body.
      handle: returns its answer. Raises InputError, UserError or server.Failure.
    """

    summary: str
    bodies: Sequence[type[requests.Strict]]
    handle: Callable[[Server, Request, ServedRun], Awaitable[Any]]


async def predict(server: Server, request: Request, run: ServedRun) -> Any:
    body = await server.body(request, requests.PREDICT_BODIES.get(run.kind, requests.PREDICT_OTHER))
    inputs = inputs_of(run, body.inputs)
    if isinstance(body.parameters, requests.MaskParameters):
        inputs = with_mask_parameters(inputs, body.parameters)
    answers = await server.answers(request, run, PREDICT, inputs)
    return to_huggingface(run, body.parameters, inputs, answers, isinstance(body.inputs, list))


async def embed(server: Server, request: Request, run: ServedRun) -> Any:
    body = await server.body(request, requests.Embed)
    found = await _vectors(server, request, run, [body.inputs] if isinstance(body.inputs, str) else body.inputs)
    if body.normalize:
        found = found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)
    return found.tolist()


async def similarity(server: Server, request: Request, run: ServedRun) -> Any:
    inputs = (await server.body(request, requests.CompareTexts)).inputs
    if isinstance(inputs, list):
        found = await _vectors(server, request, run, inputs)
        return similarities(found, found).tolist()
    found = await _vectors(server, request, run, [inputs.source_sentence, *inputs.sentences])
    return similarities(found[:1], found[1:])[0].tolist()


async def explain(server: Server, request: Request, run: ServedRun) -> Any:
    body = await server.body(request, requests.Explain)
    (values,) = inputs_of(run, body.inputs)
    if body.label is not None and body.label not in run.labels:
        raise InputError(("label",), f"{body.label[:80]!r} is not a label of this run")
    (answer,) = await server.answers(request, run, EXPLAIN, [values | {"label": body.label}])
    return answer


async def tokens(server: Server, request: Request, run: ServedRun) -> Any:
    body = await server.body(request, requests.Tokenize)
    (values,) = inputs_of(run, body.inputs)
    return await run_in_threadpool(tokens_of, run, values)


async def _vectors(server: Server, request: Request, run: ServedRun, texts: list[str]) -> np.ndarray:
    answers = await server.answers(request, run, EMBED, [{"text": text} for text in texts])
    return np.stack([answer["vector"] for answer in answers]) if answers else np.zeros((0, 1))


OPERATIONS = {
    "predict": Operation("What the run is for", [*requests.PREDICT_BODIES.values(), requests.PREDICT_OTHER], predict),
    "embed": Operation("Vectors of texts", [requests.Embed], embed),
    "similarity": Operation("Cosines of the vectors of texts", [requests.CompareTexts], similarity),
    "explain": Operation("Words that decided about a label", [requests.Explain], explain),
    "tokens": Operation("What the model sees of an input", [requests.Tokenize], tokens),
}
