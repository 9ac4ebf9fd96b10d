"""The API: Hugging Face's client gets what `Predictor` predicts; limits, tokens, metrics."""

import signal
import time

import huggingface_hub
import numpy as np
import pytest

from bert_jax.serving import app
from bert_jax.serving.server import Limits, Server

TEXT, OTHER = "the old river and a quiet ship", "a ship"
CONTEXT = "the old river was quiet and a ship was on the river"
ASKED = {"question": "ship", "context": CONTEXT}


@pytest.fixture(scope="session")
def ask(served):
    """`ask("fill_mask", "masks", text)`: the answer of Hugging Face's client."""
    client, _ = served
    inference = huggingface_hub.InferenceClient()

    def call(method: str, run: str, *arguments, operation: str = "predict", **parameters):
        address = f"{client.base_url}/v1/{run}/{operation}"
        return getattr(inference, method)(*arguments, model=address, **parameters)

    return call


@pytest.fixture(scope="session")
def predicted(runs):
    """`predicted("texts", input)`: the answer of the run's predictor."""
    return lambda run, values: runs[run].predictor.predict([values])[0]


def post(served, run: str, body, operation: str = "predict", code: int = 200):
    response = served[0].post(f"/v1/{run}/{operation}", json=body)
    assert response.status_code == code, response.text
    return response.json()


@pytest.mark.parametrize("run", ["texts", "several"])
def test_labels(ask, predicted, run):
    expected = predicted(run, TEXT)["probabilities"]
    received = ask("text_classification", run, TEXT)
    assert {one.label: one.score for one in received} == pytest.approx(expected, abs=1e-6)
    assert [one.score for one in received] == sorted(expected.values(), reverse=True)
    (first,) = ask("text_classification", run, TEXT, top_k=1)
    assert first.label == max(expected, key=expected.get)


def test_entities(ask, predicted):
    expected = predicted("words", TEXT)
    received = ask("token_classification", "words", TEXT)
    assert expected["entities"], "the golden model finds some"
    assert [(one.entity_group, one.word, one.start, one.end) for one in received] == [
        (one["type"], one["text"], one["start"], one["end"]) for one in expected["entities"]
    ]
    assert [TEXT[one.start : one.end] for one in received] == [one.word for one in received]
    assert [one.score for one in received] == pytest.approx([one["score"] for one in expected["entities"]], abs=1e-5)
    tags = ask("token_classification", "words", TEXT, aggregation_strategy="none", ignore_labels=[])
    assert [one.entity for one in tags] == expected["tags"] and [one.word for one in tags] == TEXT.split()
    assert [one.score for one in tags] == pytest.approx(expected["scores"], abs=1e-5)


def test_answers_to_questions(ask, predicted):
    expected = predicted("questions", ASKED)
    received = ask("question_answering", "questions", question=ASKED["question"], context=CONTEXT)
    assert (received.answer, received.start, received.end) == (expected["answer"], expected["start"], expected["end"])
    assert received.score == pytest.approx(expected["score"], abs=1e-5)
    assert CONTEXT[received.start : received.end] == received.answer
    several = ask("question_answering", "questions", top_k=3, **ASKED)
    assert [one.answer for one in several] == [one["text"] for one in expected["candidates"][:3]]
    share = sum(one["probability"] for one in expected["candidates"])
    assert several[0].none_score == pytest.approx(1 - share, abs=1e-5)


def test_masks(ask, predicted, runs):
    text = "the [MASK] river"
    (expected,) = predicted("masks", text)["masks"]
    received = ask("fill_mask", "masks", text)
    assert [one.score for one in received] == pytest.approx([one["probability"] for one in expected], rel=1e-5)
    assert [one.token for one in received] == [one["id"] for one in expected]
    tokenizer = runs["masks"].predictor.task.tokenizer
    words = [one for one in received if not tokenizer.tokens([one.token])[0].startswith("##")]
    assert words and all(one.sequence == f"the {one.token_str} river" for one in words)
    targets = ["s", "o", "##r"]
    chosen = ask("fill_mask", "masks", text, targets=targets, top_k=3)
    assert {one.token for one in chosen} == {tokenizer.token_id(target) for target in targets}
    every = {one.token: one.score for one in ask("fill_mask", "masks", text, top_k=50)}
    assert [one.score for one in chosen] == pytest.approx(sorted((every[one.token] for one in chosen), reverse=True))
    first, second = post((ask_client(ask), None), "masks", {"inputs": "the [MASK] [MASK]"})
    assert len(first) == len(second) == 5 and first[0]["sequence"].endswith("[MASK]")


def ask_client(ask):
    return ask.__closure__[0].cell_contents


def test_vectors_and_similarities(ask, served, run_folders):
    import bert_jax

    expected = bert_jax.load(run_folders["masks"]).encode([TEXT, OTHER])
    received = ask("feature_extraction", "masks", [TEXT, OTHER], operation="embed")
    np.testing.assert_allclose(received, expected, atol=1e-5)
    unit = ask("feature_extraction", "masks", TEXT, operation="embed", normalize=True)
    np.testing.assert_allclose(unit[0], expected[0] / np.linalg.norm(expected[0]), atol=1e-5)
    cosine = expected[0] @ expected[1] / np.linalg.norm(expected[0]) / np.linalg.norm(expected[1])
    assert ask("sentence_similarity", "masks", TEXT, [OTHER, TEXT], operation="similarity") == pytest.approx(
        [cosine, 1.0], abs=1e-5
    )
    matrix = post(served, "texts", {"inputs": [TEXT, OTHER, "old"]}, "similarity")
    np.testing.assert_allclose(matrix, np.transpose(matrix), atol=1e-6)
    np.testing.assert_allclose(np.diag(matrix), 1.0, atol=1e-6)


@pytest.mark.parametrize(
    ("run", "inputs"),
    [
        ("texts", [TEXT, OTHER, "old " * 40]),
        ("words", [TEXT, OTHER, ""]),
        ("questions", [ASKED, {"question": "old", "context": "a ship was old"}]),
        ("masks", ["the [MASK]", "[MASK] and [MASK]"]),
    ],
)
def test_a_list_is_its_elements(served, run, inputs):
    together = post(served, run, {"inputs": inputs})
    single = [post(served, run, {"inputs": values}) for values in inputs]
    single = [one[0] for one in single] if run == "texts" else single
    assert_close(together, single)
    assert post(served, run, {"inputs": []}) == []


def assert_close(one, other) -> None:
    """Compares JSON values, whose numbers may differ by rounding: other batches have other shapes."""
    assert type(one) is type(other)
    if isinstance(one, float):
        assert one == pytest.approx(other, abs=1e-5)
    elif isinstance(one, list):
        assert len(one) == len(other)
        for pair in zip(one, other, strict=True):
            assert_close(*pair)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        assert_close(list(one.values()), list(other.values()))
    else:
        assert one == other


def test_what_the_model_sees_of_any_text(served):
    """Of a run that fills masks, also a text without one; and an empty text."""
    seen = served[0].post("/v1/masks/tokens", json={"inputs": "the old river"}).json()
    assert seen["cut"] == 0 and seen["tokens"] == len(seen["windows"][0]) - 2
    assert served[0].post("/v1/texts/tokens", json={"inputs": ""}).json()["cut"] == 0


def test_limits(serve):
    with serve(Limits(body_bytes=200, seconds=0.2, waiting_tokens=20)) as (client, server):
        assert client.post("/v1/texts/predict", json={"inputs": "a" * 300}).status_code == 413
        run_batch = server.runs["texts"].programs["predict"].run

        def slow(*arguments):
            time.sleep(1.0)
            return run_batch(*arguments)

        program = server.runs["texts"].programs["predict"]
        program.run = slow
        try:
            response = client.post("/v1/texts/predict", json={"inputs": TEXT})
            assert response.status_code == 504 and "0.2 s" in response.json()["error"]
            waiting = [server.scheduler.submit(program, program.prediction.prepare([{"text": TEXT}]).items)] * 1
            response = client.post("/v1/texts/predict", json={"inputs": [TEXT] * 3})
            assert response.status_code == 429 and int(response.headers["retry-after"]) >= 1
            assert waiting[0].result(timeout=20), "what waited is answered"
        finally:
            program.run = run_batch
        assert client.post("/v1/texts/predict", json={"inputs": TEXT}).status_code == 200


def test_a_failing_batch_is_503_and_the_next_is_not(serve, monkeypatch):
    with serve() as (client, server):
        program = server.runs["texts"].programs["predict"]
        monkeypatch.setattr(program, "run", lambda *_: (_ for _ in ()).throw(RuntimeError("out of memory")))
        response = client.post("/v1/texts/predict", json={"inputs": TEXT})
        assert response.status_code == 503 and "could not be computed" in response.json()["error"]
        monkeypatch.undo()
        assert client.post("/v1/texts/predict", json={"inputs": TEXT}).status_code == 200
        monkeypatch.setattr(program, "run", lambda *_: [{"logits": np.full(3, np.nan)}])
        assert "not finite" in client.post("/v1/texts/predict", json={"inputs": TEXT}).json()["error"]


def test_not_ready_before_all_is_compiled(serve):
    with serve() as (client, server):
        server.is_compiled = False
        assert client.get("/ready").status_code == 503 and client.get("/health").status_code == 200
        response = client.post("/v1/texts/predict", json={"inputs": TEXT})
        assert response.status_code == 503 and response.headers["retry-after"]


def test_a_failed_compilation_ends_the_process(runs, monkeypatch, caplog):
    signals, server = [], Server(runs, Limits())
    monkeypatch.setattr(server, "compile", lambda: (_ for _ in ()).throw(RuntimeError("out of memory")))
    monkeypatch.setattr(app.signal, "raise_signal", signals.append)
    app.compile_programs(server)
    server.scheduler.close()
    assert signals == [signal.SIGTERM] and server.has_failed and not server.is_ready
    assert "out of memory" in caplog.text


def test_a_token(serve):
    token = "a-secret-of-some-length"
    with serve(token=token) as (client, _):
        paths = ["/v1/runs", "/metrics"]
        assert [client.get(path).status_code for path in paths] == [401, 401]
        assert client.post("/v1/texts/predict", json={"inputs": TEXT}).status_code == 401
        for wrong in ("", "Bearer", f"Basic {token}", f"Bearer {token}x", "Bearer \xfc"):
            headers = {"authorization": wrong.encode("latin-1")}
            assert client.get("/v1/runs", headers=headers).status_code == 401
        headers = {"authorization": f"Bearer {token}"}
        assert [client.get(path, headers=headers).status_code for path in paths] == [200, 200]
        assert [client.get(path).status_code for path in ("/", "/health", "/ready", "/docs")] == [200] * 4


def test_other_sites_cannot_take_the_name(served, serve):
    """A site whose name suddenly means 127.0.0.1 could otherwise read answers."""
    assert served[0].get("/v1/runs", headers={"host": "evil.example"}).status_code == 400
    with serve(hosts=None) as (client, _):
        assert client.get("/v1/runs", headers={"host": "server.example"}).status_code == 200


def test_every_answer_restricts_browsers(served):
    for path in ("/", "/v1/runs", "/docs", "/nothing", "/page/../serve.py"):
        headers = served[0].get(path).headers
        assert (
            "default-src 'self'" in headers["content-security-policy"]
            and headers["x-content-type-options"] == "nosniff"
        )
        assert "access-control-allow-origin" not in headers


def test_metrics_count_and_nothing_is_compiled_by_requests(served):
    client, _ = served

    def metric(name: str) -> float:
        return sum(
            float(line.rsplit(" ", 1)[1]) for line in client.get("/metrics").text.splitlines() if line.startswith(name)
        )

    for run, values in (("texts", TEXT), ("masks", "a [MASK]"), ("words", OTHER)):
        post(served, run, {"inputs": values})
    before = {
        name: metric(name) for name in ("bert_jax_requests_total", "bert_jax_compilations", "bert_jax_batch_tokens_sum")
    }
    for count in (1, 2, 3, 7, 20):
        post(served, "texts", {"inputs": ["the old river " * (n % 3 + 1) for n in range(count)]})
        post(served, "masks", {"inputs": ["a [MASK] " * (n % 3 + 1) for n in range(count)]})
        post(served, "masks", {"inputs": ["a ship"] * count}, "embed")
        post(served, "questions", {"inputs": [ASKED] * count})
        post(served, "words", {"inputs": [TEXT] * count})
    assert metric("bert_jax_requests_total") == before["bert_jax_requests_total"] + 25
    assert metric("bert_jax_batch_tokens_sum") > before["bert_jax_batch_tokens_sum"]
    assert metric("bert_jax_compilations") == before["bert_jax_compilations"]
    assert metric("bert_jax_waiting_tokens") == 0


def test_what_the_model_sees(served, runs):
    received = post(served, "questions", {"inputs": ASKED}, "tokens")
    assert len(received["windows"]) > 1, "the context is longer than a window"
    first = received["windows"][0]
    assert first[0]["token"] == "[CLS]" and first[0]["special"] and {one["segment"] for one in first} == {0, 1}
    assert [one["position"] for one in first] == list(range(len(first)))
    cut = post(served, "texts", {"inputs": "ship " * 100}, "tokens")
    assert cut["tokens"] == 100 * len(runs["texts"].predictor.task.tokenizer.encode(["ship"])[0])
    assert len(cut["windows"][0]) == cut["max_tokens"] and cut["cut"] == cut["tokens"] - cut["max_tokens"] + 2
    assert post(served, "masks", {"inputs": "a [MASK] ship"}, "tokens")["cut"] == 0
