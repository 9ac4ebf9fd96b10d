"""Linear models beside fine-tuned ones: over an encoder's frozen features, or over words alone, without any encoder.

Texts without an encoder are TF-IDF vectors of words and pairs of words (of a pair of texts both, and their product), words are
themselves, their endings, shapes and neighbours. Scores are those of the task.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse
from sklearn.feature_extraction import DictVectorizer
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MaxAbsScaler, StandardScaler

from bert_jax.data.conll import Sentence, as_bio
from bert_jax.errors import UserError
from bert_jax.files import whole_file
from bert_jax.library import LoadedEncoder
from bert_jax.tasks import tokens
from bert_jax.tasks.finetuning.features import features
from bert_jax.tasks.finetuning.texts import HELD_OUT, TRAIN, TextTask
from bert_jax.train.metrics import Row


def on_features(task: Any, encoder: LoadedEncoder, cache: Path, layer: int = -1) -> Row:
    """Held-out scores of a linear model over frozen features, which are computed once and kept in the file `cache` (.npz).

    Raises:
      UserError: a task on neither texts nor words.
    """
    check(task)
    if not cache.exists():
        items = (task.training_items, task.held_out_items)
        cache.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(cache, binary=True) as file:
            np.savez(file, *(features(task, encoder.model, encoder.params, of_split, layer) for of_split in items))
    with np.load(cache) as arrays:
        return fitted(task, arrays["arr_0"], arrays["arr_1"], StandardScaler())


def on_words(task: Any) -> Row:
    """Held-out scores of a linear model over words, without an encoder. Raises UserError as `on_features`."""
    check(task)
    if isinstance(task, TextTask):
        train, held_out = ([row.texts for row in task.read(split)] for split in (TRAIN, HELD_OUT))
        return fitted(task, *tfidf(train, held_out), MaxAbsScaler())
    described = [
        [word for sentence in task.sentences(split) for word in words(sentence)] for split in (TRAIN, HELD_OUT)
    ]
    vectorizer = DictVectorizer()
    return fitted(task, vectorizer.fit_transform(described[0]), vectorizer.transform(described[1]), MaxAbsScaler())


def check(task: Any) -> None:
    """Raises UserError for a task on neither texts nor words."""
    if not isinstance(task, TextTask | tokens.Task) or getattr(task, "problem", "") == "multi_label":
        raise UserError(f"task {task.given.task}: linear models are for classes or a number of a text, and for words")


def fitted(task: Any, train: Any, held_out: Any, scaler: Any) -> Row:
    """Scores of logistic regression, or of ridge regression for a number, on two matrices of a row for each example."""
    if isinstance(task, TextTask):
        gold, held_out_gold = (task.targets(task.read(split), split) for split in (TRAIN, HELD_OUT))
        model = Ridge(alpha=1.0) if task.problem == "regression" else LogisticRegression(max_iter=1000, tol=1e-3)
        return task.score(held_out_gold, make_pipeline(scaler, model).fit(train, gold).predict(held_out))
    tags = [tag for sentence in task.sentences(TRAIN) for tag in sentence.tags]
    model = make_pipeline(scaler, LogisticRegression(max_iter=300, tol=1e-3)).fit(train, tags)
    predicted, sentences = iter(model.predict(held_out).tolist()), task.sentences(HELD_OUT)
    found = [as_bio([next(predicted) for _ in sentence.words]) for sentence in sentences]
    return tokens.entity_scores([list(sentence.tags) for sentence in sentences], found)


def tfidf(train: Sequence[tuple[str, ...]], held_out: Sequence[tuple[str, ...]]) -> tuple[Any, Any]:
    """TF-IDF vectors of single texts; of pairs both vectors, and their product, in which only common words are left."""
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True).fit([text for texts in train for text in texts])

    def matrix(rows: Sequence[tuple[str, ...]]) -> Any:
        parts = [vectorizer.transform(column) for column in zip(*rows, strict=True)]
        return sparse.hstack([*parts, parts[0].multiply(parts[1])] if len(parts) == 2 else parts).tocsr()

    return matrix(train), matrix(held_out)


def words(sentence: Sentence) -> list[dict[str, str]]:
    """What a linear model knows of each word of a sentence."""
    padded = ["<s>", *sentence.words, "</s>"]
    return [
        {
            "word": word.lower(),
            "ending": word[-3:].lower(),
            "shape": re.sub(r"(.)\1+", r"\1", re.sub("[a-z]", "x", re.sub("[A-Z]", "X", re.sub(r"\d", "9", word)))),
            "before": padded[place].lower(),
            "after": padded[place + 2].lower(),
        }
        for place, word in enumerate(sentence.words)
    ]
