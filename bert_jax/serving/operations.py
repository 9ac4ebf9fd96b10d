"""The operations of the API: each reads its body, has the inputs computed, and returns JSON values."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from bert_jax.errors import listed
from bert_jax.serving import requests, responses
from bert_jax.serving.answers import to_huggingface, with_mask_parameters
from bert_jax.serving.embedding import similarities
from bert_jax.serving.failures import invalid
from bert_jax.serving.requests import inputs_of
from bert_jax.serving.runs import EMBED, EXPLAIN, PREDICT, ServedRun
from bert_jax.serving.server import Server
from bert_jax.serving.tokens import tokens_of


class Operation(NamedTuple):
    """An operation of a run, at /v1/RUN/NAME.

    Attributes:
      summary, description: for the description of the API.
      bodies: the forms of its body, by kind of run; under '' that of all others.
      shape: that of its answer.
      handle: returns its answer to a body. Raises InputError, UserError or Failure.
    """

    summary: str
    description: str
    bodies: Mapping[str, type[requests.Strict]]
    shape: Any
    handle: Callable[[Server, Request, ServedRun, Any], Awaitable[Any]]

    def body_of(self, run: ServedRun) -> type[requests.Strict]:
        """Returns the form of a body for a run."""
        return self.bodies.get(run.kind, self.bodies[""])


async def predict(server: Server, request: Request, run: ServedRun, body: requests.Predict) -> Any:
    parameters = body.parameters or requests.PARAMETERS.get(run.kind, requests.NoParameters)()
    inputs = inputs_of(run, body.inputs)
    if isinstance(parameters, requests.MaskParameters):
        inputs = with_mask_parameters(inputs, parameters)
    if isinstance(parameters, requests.TextParameters):
        _check_function(run, parameters)
    answers = await server.run_program(request, run, PREDICT, inputs)
    return to_huggingface(run, parameters, inputs, answers, isinstance(body.inputs, list))


def _check_function(run: ServedRun, parameters: requests.TextParameters) -> None:
    own = {"classification": "softmax", "multi_label": "sigmoid", "regression": "none"}[run.problem]
    if parameters.function_to_apply not in (None, own):
        reason = f"{parameters.function_to_apply} is not supported; supported for this run: {own}"
        raise invalid(("parameters", "function_to_apply"), reason)


async def embed(server: Server, request: Request, run: ServedRun, body: requests.Embed) -> Any:
    texts = [body.inputs] if isinstance(body.inputs, str) else body.inputs
    cut = "error" if body.truncate is False else body.truncation_direction or "right"
    vectors = await _vectors(server, request, run, texts, cut)
    if body.normalize:
        vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return vectors.tolist()


async def similarity(server: Server, request: Request, run: ServedRun, body: requests.CompareTexts) -> Any:
    if isinstance(body.inputs, list):
        vectors = await _vectors(server, request, run, body.inputs)
        return similarities(vectors, vectors).tolist()
    vectors = await _vectors(server, request, run, [body.inputs.source_sentence, *body.inputs.sentences])
    return similarities(vectors[:1], vectors[1:])[0].tolist()


async def explain(server: Server, request: Request, run: ServedRun, body: requests.Explain) -> Any:
    (values,) = inputs_of(run, body.inputs)
    if body.label is not None and body.label not in run.labels:
        raise invalid(("label",), f"{body.label[:80]!r} is not a label of this run; it has {listed(run.labels)}")
    (answer,) = await server.run_program(request, run, EXPLAIN, [values | {"label": body.label}])
    return answer


async def tokens(server: Server, request: Request, run: ServedRun, body: requests.Tokenize) -> Any:
    (values,) = inputs_of(run, body.inputs)
    return await run_in_threadpool(tokens_of, run, values)


async def _vectors(
    server: Server, request: Request, run: ServedRun, texts: list[str], cut: str = "right"
) -> np.ndarray:
    answers = await server.run_program(request, run, EMBED, [{"text": text, "cut": cut} for text in texts])
    return np.stack([answer["vector"] for answer in answers]) if answers else np.zeros((0, 1))


OPERATIONS = {
    "predict": Operation(
        "What the run is for",
        "Labels texts or words, answers questions or fills masks, in the shapes of Hugging Face's task specifications.",
        requests.PREDICT_BODIES,
        responses.Prediction,
        predict,
    ),
    "embed": Operation(
        "Vectors of texts",
        "The mean of the last hidden states of each text, as Hugging Face's feature-extraction.",
        {"": requests.Embed},
        list[list[float]],
        embed,
    ),
    "similarity": Operation(
        "Cosines of the vectors of texts",
        "Of one sentence to others, as Hugging Face's sentence-similarity, or of all texts to all.",
        {"": requests.CompareTexts},
        responses.Similarities,
        similarity,
    ),
    "explain": Operation(
        "Words that decided about a label",
        "The contribution of each word of a text to the logit of a label, by integrated gradients.",
        {"": requests.Explain},
        responses.Explanation,
        explain,
    ),
    "tokens": Operation(
        "What the model sees of an input",
        "The tokens of an input with their segments and positions, and how many are cut off.",
        {"": requests.Tokenize},
        responses.Tokens,
        tokens,
    ),
}
