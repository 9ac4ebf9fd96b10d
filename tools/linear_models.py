"""Fits linear baselines for fine-tuning: over frozen features of an encoder, or over words, without an encoder.

    python tools/linear_models.py --config=configs/finetune/glue.py:CoLA --config.init_from=runs/x --config.data.dir=GLUE \\
        --over=features --output=runs/probe

OUTPUT/scores.json has the scores on the held-out set. Features are computed once and cached in OUTPUT: for texts the mean over
the tokens (--pooling=first: the first token, [CLS]), for words the first piece, in layer --layer. `--over=words` still needs
init_from; texts are then TF-IDF vectors of words and pairs of words, and pairs of texts both vectors and their product; words
are described by themselves, their endings and shapes, and those of their neighbours.
"""

import contextlib
import hashlib
import re
from collections.abc import Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_collections import config_flags
from scipy import sparse
from sklearn.feature_extraction import DictVectorizer
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MaxAbsScaler, StandardScaler

from bert_jax.cli.main import run_command
from bert_jax.data.datasets.conll import Sentence
from bert_jax.errors import UserError, plain
from bert_jax.files import open_regular, whole_file, write_json
from bert_jax.library import load
from bert_jax.model.build import Model, Params
from bert_jax.model.classifiers import means_over_examples
from bert_jax.tasks import base as tasks
from bert_jax.tasks import tokens
from bert_jax.tasks.common.packing import Item, words_only
from bert_jax.tasks.finetuning.task import HELD_OUT, TRAIN, FineTuning
from bert_jax.tasks.finetuning.texts import TextTask
from bert_jax.train.writers.base import Row


def define_flags() -> None:
    config_flags.DEFINE_config_file("config", None, "A file of configs/finetune/.")
    flags.DEFINE_enum("over", "features", ["features", "words"], "Inputs of the linear model.")
    flags.DEFINE_integer("layer", -1, "Layer of the features: 0 for the embeddings, -1 for the last.")
    flags.DEFINE_enum("pooling", "mean", ["mean", "first"], "Token(s) of a text that are its features.")
    flags.DEFINE_string("output", None, "Folder for scores.json and cached features.")


def main() -> None:
    values = flags.FLAGS
    if not values.output or values.config is None:
        raise UserError("--output or --config is missing; set a folder, and a file of configs/finetune/")
    output = Path(values.output)
    task = tasks.create(values.config, output)
    output.mkdir(parents=True, exist_ok=True)
    if values.over == "words":
        scores = on_words(task)
    else:
        scores = on_features(task, output / "features.npz", values.layer, values.pooling)
    write_json(output / "scores.json", scores)
    print(plain(f"over {values.over}: " + ", ".join(f"{name} {score:.4f}" for name, score in scores.items())))


def on_features(task: Any, cache: Path, layer: int = -1, pooling: str = "mean") -> Row:
    """Returns held-out scores of a linear model over frozen features of the encoder of `init_from`.

    The features are read from the .npz file `cache` if it holds those of the same data, encoder and layer, else written there.

    Raises:
      UserError: another task, options for training an encoder, or no such layer.
    """
    check_task(task)
    encoder = load(task.raw_config.init_from)
    config, num_layers = task.raw_config, encoder.model.config.num_layers
    if config.from_scratch or config.reinit_layers or config.model.num_layers != num_layers:
        remedy = "leave out from_scratch and reinit_layers, and use --layer"
        raise UserError(f"features are those of the pretrained encoder: {remedy}")
    if not -1 <= layer <= num_layers:
        raise UserError(f"--layer={layer}: the encoder has 0 (the embeddings) to {num_layers}, -1 the last")
    splits = (task.training_items, task.held_out_items)
    hashed = hashlib.blake2b(f"{layer} {pooling}".encode())
    for array in (*jax.tree.leaves(encoder.params), *(item.tokens["input_ids"] for items in splits for item in items)):
        hashed.update(np.asarray(array).tobytes())
    key = hashed.hexdigest()
    matrices = read_features(cache, key) if cache.exists() else None
    if matrices is None:
        matrices = [features(task, encoder.model, encoder.params, items, layer, pooling) for items in splits]
        with whole_file(cache, binary=True) as file:
            np.savez(file, what=np.array(key), train=matrices[0], held_out=matrices[1])
    train, held_out = matrices
    return linear_scores(task, train, held_out, StandardScaler())


def read_features(cache: Path, key: str) -> list[np.ndarray] | None:
    """Reads features of training and held-out set, float32 [n, D]; None if of another key. Raises UserError if damaged."""
    matrices = list[np.ndarray]()
    # numpy and zipfile raise many types of exceptions for a damaged archive. Pickles are not loaded by default.
    with open_regular(cache) as file, contextlib.suppress(Exception), np.load(file) as arrays:
        if arrays["what"].item() != key:
            return None
        matrices = [arrays["train"], arrays["held_out"]]
    if not matrices or any(array.ndim != 2 or array.dtype != np.float32 for array in matrices):
        raise UserError(f"{cache}: damaged; remove it, and the features are computed again")
    return matrices


def features(
    task: FineTuning, model: Model, params: Params, items: Sequence[Item], layer: int = -1, pooling: str = "mean"
) -> np.ndarray:
    """Returns frozen features float32 [N, D]: a vector for each word (its first piece) or text.

    They are hidden states of a layer, 0 for the embeddings, -1 for the last; for a text their mean or that of its first token.
    """
    is_words = "token_weights" in items[0].tokens
    outputs = task.run(partial(_states, model, layer, "" if is_words else pooling), params, items)
    if not is_words:
        return np.stack([output["states"] for output in outputs])
    return words_only(items, outputs, "token_states")


@partial(jax.jit, static_argnums=(0, 1, 2))
def _states(model: Model, layer: int, pooling: str, params: Params, batch: dict[str, Any]) -> dict[str, jax.Array]:
    batch = {name: array[0] for name, array in batch.items()}
    inputs = (batch["input_ids"], batch["attention_mask"], batch["token_type_ids"])
    encoder = model.bind(params).encoder
    layout = {"position_ids_BxL": batch["position_ids"], "segment_ids_BxL": batch["segment_ids"]}
    hidden_states = encoder(*inputs, **layout, all_hidden_states=True).hidden_states
    assert hidden_states is not None
    states_RxLxD = hidden_states[layer].astype("float32")
    if not pooling:
        return {"token_states": states_RxLxD}
    if pooling == "first":
        return {"states": jnp.take_along_axis(states_RxLxD, batch["starts"][:, :, None], axis=1)}
    return {"states": means_over_examples(states_RxLxD, batch["segment_ids"], batch["starts"].shape[1])}


def on_words(task: Any) -> Row:
    """Returns held-out scores of a linear model over words, without an encoder. Raises UserError as `check_task`."""
    check_task(task)
    if isinstance(task, TextTask):
        texts = ([row.texts for row in task.read(split)] for split in (TRAIN, HELD_OUT))
        return linear_scores(task, *tfidf(*texts), MaxAbsScaler())
    described = [list(chain(*map(word_features, task.sentences(split)))) for split in (TRAIN, HELD_OUT)]
    vectorizer = DictVectorizer().fit(described[0])
    train, held_out = map(vectorizer.transform, described)
    return linear_scores(task, train, held_out, MaxAbsScaler())


def check_task(task: Any) -> None:
    """Raises UserError if a task is on neither texts nor words."""
    if not isinstance(task, TextTask | tokens.Task):
        raise UserError(f"task {task.raw_config.task}: not supported; linear models are for texts and words")


def linear_scores(task: TextTask | tokens.Task, train: Any, held_out: Any, scaler: Any) -> Row:
    """Returns scores of logistic or, for numbers, ridge regression; the matrices have a row for each text or word."""
    if isinstance(task, TextTask):
        gold, held_out_gold = (task.targets(task.read(split)) for split in (TRAIN, HELD_OUT))
        models = {
            "classification": LogisticRegression(max_iter=1000, tol=1e-3),
            "multi_label": OneVsRestClassifier(LogisticRegression(max_iter=1000, tol=1e-3)),
            "regression": Ridge(alpha=1.0),
        }
        model = make_pipeline(scaler, models[task.problem]).fit(train, gold)
        return task.score(held_out_gold, model.predict(held_out))
    tags = [tag for sentence in task.sentences(TRAIN) for tag in sentence.tags]
    # For sparse features of words, little regularization is best (docs/results.md).
    strength = 30.0 if sparse.issparse(train) else 1.0
    model = make_pipeline(scaler, LogisticRegression(C=strength, max_iter=300, tol=1e-3)).fit(train, tags)
    predicted, sentences = iter(model.predict(held_out).tolist()), task.sentences(HELD_OUT)
    return task.score(sentences, [[next(predicted) for _ in sentence.words] for sentence in sentences])


def tfidf(train: Sequence[tuple[str, ...]], held_out: Sequence[tuple[str, ...]]) -> tuple[Any, Any]:
    """Returns TF-IDF vectors of texts; for pairs both vectors and their product, which keeps common words only."""
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True).fit([text for texts in train for text in texts])

    def matrix(rows: Sequence[tuple[str, ...]]) -> Any:
        parts = [vectorizer.transform(column) for column in zip(*rows, strict=True)]
        return sparse.hstack([*parts, parts[0].multiply(parts[1])] if len(parts) == 2 else parts).tocsr()

    return matrix(train), matrix(held_out)


def word_features(sentence: Sentence) -> list[dict[str, str]]:
    """Returns the features of each word of a sentence."""
    padded = ["<s>", *sentence.words, "</s>"]
    lower, shapes = [word.lower() for word in padded], list(map(shape, padded))
    return [
        {
            "word": lower[place],
            "ending": lower[place][-3:],
            "shape": shapes[place],
            "before": lower[place - 1],
            "after": lower[place + 1],
            "shape before": shapes[place - 1],
            "shape after": shapes[place + 1],
            "ending before": lower[place - 1][-2:],
            "ending after": lower[place + 1][-2:],
        }
        for place in range(1, len(padded) - 1)
    ]


def shape(word: str) -> str:
    """Returns the kinds of characters of a word, with runs collapsed: 'McDonald' is 'XxXx', '1985' is '9'."""
    kinds = re.sub("[a-z]", "x", re.sub("[A-Z]", "X", re.sub(r"\d", "9", word)))
    return re.sub(r"(.)\1+", r"\1", kinds)


if __name__ == "__main__":
    define_flags()
    run_command(main)
