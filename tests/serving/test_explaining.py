"""Gradient x input: compared with jax's gradient with respect to the embeddings, text by text, and with a change of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("fastapi", reason="needs requirements-serve.txt")

from bert_jax.serving.runs import EXPLAIN

TEXTS = ["the old river and a quiet ship", "a ship", "river, (ship) river!"]


def scores_one_by_one(run, text: str, label: int) -> np.ndarray:
    """The same from the definition: the gradient with respect to the token table, spread over the positions of a lone row."""
    task, params = run.predictor.task, run.predictor.params
    model, tokenizer = task.losses.model, task.tokenizer
    ids = np.array([tokenizer.cls_id, *tokenizer.encode([text])[0], tokenizer.sep_id])
    table = params["encoder"]["embeddings"]["tokens"]["embedding"]

    def logit(vectors):
        # A token of its own for each position, after those of the vocabulary.
        whole = jnp.concatenate([table, vectors])
        embeddings = params["encoder"]["embeddings"] | {"tokens": {"embedding": whole}}
        bound = model.bind(params | {"encoder": params["encoder"] | {"embeddings": embeddings}})
        own_ids = len(table) + jnp.arange(len(ids))[None]
        output = bound.encoder(own_ids)
        return bound.heads["classification"].logits(bound.encoder, output, jnp.ones_like(own_ids))[0, label]

    vectors = table[ids]
    return np.asarray((jax.grad(logit)(vectors) * vectors).sum(-1))


@pytest.mark.parametrize("name", ["texts", "several"])
def test_scores_of_texts_in_shared_rows(runs, name):
    run = runs[name]
    program, labels = run.programs[EXPLAIN], run.labels
    prepared = program.prediction.prepare([{"text": text} for text in TEXTS])
    rows, shape = program.fitting(prepared.items)
    outputs = program.run(prepared.items, rows, shape)
    computed = [number for row in rows for number in row]
    assert computed
    for number in computed:
        label = int(outputs[number]["label"])
        probabilities = run.predictor.predict([TEXTS[number]])[0]["probabilities"]
        assert labels[label] == max(probabilities, key=probabilities.get)
        expected = scores_one_by_one(run, TEXTS[number], label)
        np.testing.assert_allclose(outputs[number]["token_scores"], expected, atol=1e-5)


def test_words_get_the_sums_of_their_tokens(served, runs):
    text, run = TEXTS[2], runs["texts"]
    for label in (None, *run.labels):
        answer = served[0].post("/v1/texts/explain", json={"inputs": text, "label": label}).json()
        number = run.labels.index(answer["label"])
        assert label in (None, answer["label"])
        (words,) = answer["words"]
        assert [word["text"] for word in words] == ["river", ",", "(", "ship", ")", "river", "!"]
        assert all(text[word["start"] : word["end"]] == word["text"] for word in words)
        expected = scores_one_by_one(run, text, number)[1:-1]  # without [CLS] and [SEP]
        sizes = [len(run.predictor.task.tokenizer.encode([word["text"]])[0]) for word in words]
        parts = np.split(expected, np.cumsum(sizes)[:-1])
        np.testing.assert_allclose([word["score"] for word in words], [part.sum() for part in parts], atol=1e-5)
