"""Integrated gradients, compared with their definition, text by text, and with the difference of logits that they explain."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.serving.explaining import POINTS
from bert_jax.serving.runs import EXPLAIN

TEXTS = ["the old river and a quiet ship", "a ship", "river, (ship) river!"]


def scores_one_by_one(run, text: str, label: int, points: int = POINTS) -> tuple[np.ndarray, float]:
    """The scores of the tokens of a lone text, and the difference of the logits with and without its words."""
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
    masked = np.array(vectors)
    masked[1:-1] = table[tokenizer.mask_id]
    gradient = jax.jit(jax.grad(logit))
    on_the_way = [gradient(masked + (vectors - masked) * (number + 0.5) / points) for number in range(points)]
    scores = (np.mean(on_the_way, axis=0) * (vectors - masked)).sum(-1)
    return scores, float(logit(vectors) - logit(masked))


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
        expected, difference = scores_one_by_one(run, TEXTS[number], label)
        assert expected.sum() == pytest.approx(difference, rel=0.05, abs=0.02)
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
        expected = scores_one_by_one(run, text, number)[0][1:-1]  # without [CLS] and [SEP]
        sizes = [len(run.predictor.task.tokenizer.encode([word["text"]])[0]) for word in words]
        parts = np.split(expected, np.cumsum(sizes)[:-1])
        np.testing.assert_allclose([word["score"] for word in words], [part.sum() for part in parts], atol=1e-5)
