"""Every optional argument of Hugging Face's client: it works, or is refused with a message that lists what does."""

import inspect

import httpx
import huggingface_hub
import numpy as np
import pytest

TEXT, OTHER = "the old river and a quiet ship", "a ship"
ASKED = {"question": "ship", "context": "the old river was quiet and a ship was on the river"}
# By method: the run, the operation, and the arguments that must be given.
METHODS = {
    "text_classification": ("texts", "predict", {"text": TEXT}),
    "token_classification": ("words", "predict", {"text": TEXT}),
    "question_answering": ("questions", "predict", ASKED),
    "fill_mask": ("masks", "predict", {"text": "a [MASK]"}),
    "feature_extraction": ("masks", "embed", {"text": TEXT}),
    "sentence_similarity": ("masks", "similarity", {"sentence": TEXT, "other_sentences": [OTHER]}),
}
SUPPORTED = {
    "text_classification": {"top_k": 1, "function_to_apply": "softmax"},
    "token_classification": {"aggregation_strategy": "simple", "ignore_labels": ["O"]},
    "question_answering": {"handle_impossible_answer": False, "top_k": 2},
    "fill_mask": {"targets": ["s"], "top_k": 2},
    "feature_extraction": {
        "normalize": True,
        "truncate": True,
        "truncation_direction": "left",
        "encoding_format": "float",
    },
    "sentence_similarity": {},
}
REFUSED = {
    "token_classification": {"stride": 8},
    "question_answering": {
        "align_to_words": True,
        "doc_stride": 8,
        "max_answer_len": 8,
        "max_question_len": 8,
        "max_seq_len": 32,
    },
    "feature_extraction": {"prompt_name": "query", "dimensions": 8},
}


@pytest.fixture(scope="module")
def ask(served):
    """`ask("fill_mask", top_k=2)`: what the client's method returns."""
    base, inference = served[0].base_url, huggingface_hub.InferenceClient()

    def call(method: str, **options):
        run, operation, arguments = METHODS[method]
        return getattr(inference, method)(**arguments, model=f"{base}/v1/{run}/{operation}", **options)

    return call


@pytest.mark.parametrize("method", METHODS)
def test_every_argument_of_the_client_is_tried(method):
    arguments = inspect.signature(getattr(huggingface_hub.InferenceClient, method)).parameters.keys()
    optional = arguments - {"self", "model"} - METHODS[method][2].keys()
    assert optional == SUPPORTED[method].keys() | REFUSED.get(method, {}).keys()


@pytest.mark.parametrize(("method", "name"), [(method, name) for method, names in SUPPORTED.items() for name in names])
def test_supported_arguments(ask, method, name):
    assert len(ask(method, **{name: SUPPORTED[method][name]}))


@pytest.mark.parametrize("method", METHODS)
def test_supported_arguments_together(ask, method):
    assert len(ask(method, **SUPPORTED[method]))


@pytest.mark.parametrize(("method", "name"), [(method, name) for method, names in REFUSED.items() for name in names])
def test_refused_arguments(ask, method, name):
    with pytest.raises(huggingface_hub.errors.HfHubHTTPError) as refused:
        ask(method, **{name: REFUSED[method][name]})
    answer = refused.value.response.json()
    supported = SUPPORTED[method].keys()
    assert refused.value.response.status_code == 422
    assert answer["field"] == (name if method == "feature_extraction" else f"parameters.{name}")
    assert "is not supported; supported: " in answer["error"] and all(name in answer["error"] for name in supported)


@pytest.mark.parametrize("method", METHODS)
def test_null_is_not_given(served, method):
    """The client leaves out what is None; others send it."""
    run, operation, arguments = METHODS[method]
    names = [*SUPPORTED[method], *REFUSED.get(method, {})]
    inputs = arguments.get("text", arguments)
    if method == "sentence_similarity":
        inputs = {"source_sentence": TEXT, "sentences": [OTHER]}
    empty = dict.fromkeys(names)
    bodies = [{}, {"parameters": None}, {"parameters": {}}]
    bodies.append(empty if method == "feature_extraction" else {"parameters": empty})
    answers = [served[0].post(f"/v1/{run}/{operation}", json={"inputs": inputs} | body) for body in bodies]
    assert [answer.status_code for answer in answers] == [200] * len(bodies), [answer.text for answer in answers]
    assert all(answer.json() == answers[0].json() for answer in answers)


def test_unknown_names_list_the_supported_ones(served):
    def error(path: str, **body) -> str:
        response: httpx.Response = served[0].post(f"/v1/{path}", json={"inputs": TEXT} | body)
        assert response.status_code == 422
        return response.json()["error"]

    known = "top_k, function_to_apply"
    assert error("texts/predict", parameters={"temperature": 1}) == (
        f"parameters.temperature: is unknown; supported: {known}"
    )
    assert error("masks/embed", normalise=True).startswith("normalise: is unknown; supported: inputs, normalize")
    assert error("masks/embed", parameters={"top_k": 1}) == "parameters.top_k: is unknown; there are no parameters"
    assert error("texts/predict", parameters={"function_to_apply": "none"}).endswith("supported for this run: softmax")
    several = {"function_to_apply": "sigmoid"}
    assert served[0].post("/v1/several/predict", json={"inputs": TEXT, "parameters": several}).status_code == 200


def test_truncation_is_as_specified(served, runs):
    """With truncate=false a text is embedded whole, or not at all; otherwise one of its ends is cut."""
    task = runs["masks"].predictor.task
    space = task.row_length - task.tokenizer.num_special_tokens(1)
    words = ["ship" if number % 2 else "river" for number in range(space)]
    size = len(task.tokenizer.encode([" ".join(words)])[0])
    assert size > space, "the text is longer than the model reads"

    def embed(inputs, code: int = 200, **options):
        response = served[0].post("/v1/masks/embed", json={"inputs": inputs} | options)
        assert response.status_code == code, response.text
        return response.json()

    text = " ".join(words)
    refused = embed([TEXT, text], 422, truncate=False)
    assert refused["field"] == "inputs.1" and f"text of {size} tokens: the model reads {space}" in refused["error"]
    np.testing.assert_allclose(embed(TEXT, truncate=False), embed(TEXT), atol=1e-6)
    right, left = (np.array(embed(text, truncation_direction=end)) for end in ("right", "left"))
    np.testing.assert_allclose(embed(text), right, atol=1e-6)
    assert np.abs(left - right).max() > 1e-3
    letters = "a b " * size  # a token each
    end = " ".join(letters.split()[-space:])
    np.testing.assert_allclose(embed(letters, truncation_direction="left"), embed(end), atol=1e-5)
