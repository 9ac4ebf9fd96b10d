"""Scores of predictions on labelled data, by scikit-learn, SciPy and seqeval. Shapes: N examples or words, C classes.

The scores of each GLUE task are those of Wang et al. 2019, section 3. The packages are imported where
they are used: they take as long to import as JAX, and predict needs no scores.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import special

from bert_jax.data.datasets.schemes import Entity, tags_of
from bert_jax.train.writers.base import Row

Score = Callable[[np.ndarray, np.ndarray], float]  # of gold and predicted: class numbers [N], numbers [N] or 0/1 [N, C]


def _of_sklearn(name: str, **options: Any) -> Score:
    def score(gold: np.ndarray, predicted: np.ndarray) -> float:
        from sklearn import metrics

        return float(getattr(metrics, name)(gold, predicted, **options))

    return score


def _correlation(name: str) -> Score:
    def score(gold: np.ndarray, predicted: np.ndarray) -> float:
        from scipy import stats

        if len(gold) < 2:
            return 0.0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", stats.ConstantInputWarning)
            value = float(getattr(stats, name)(gold, predicted).statistic)
        return 0.0 if np.isnan(value) else value  # of predictions that are all the same; as of a single one, above

    return score


def _f1(average: str) -> Score:
    of_classes, of_one = (_of_sklearn("f1_score", average=name, zero_division=0.0) for name in (average, "binary"))

    def score(gold: np.ndarray, predicted: np.ndarray) -> float:
        if gold.shape[1:] == (1,):  # a single label; scikit-learn would take the column for two classes
            return of_one(gold[:, 0], predicted[:, 0])
        return of_classes(gold, predicted)

    return score


SCORES: dict[str, Score] = {
    "accuracy": _of_sklearn("accuracy_score"),
    "f1": _of_sklearn("f1_score", zero_division=0.0),  # of class 1
    "macro_f1": _f1("macro"),
    "micro_f1": _f1("micro"),
    "exact": lambda gold, predicted: float((gold == predicted).all(-1).mean()),  # all labels of an example right
    "matthews": _of_sklearn("matthews_corrcoef"),
    "pearson": _correlation("pearsonr"),
    "spearman": _correlation("spearmanr"),
    "mean_squared_error": _of_sklearn("mean_squared_error"),
}


def best_temperature(logits_NxC: np.ndarray, gold: np.ndarray) -> float:
    """What logits are to be divided by for probabilities of the least loss (Guo et al. 2017, section 4.2).

    Args:
      logits_NxC: of held-out data.
      gold: class numbers [N], or 0/1 for each of several labels [N, C].
    """
    from scipy import optimize

    def loss(log_temperature: float) -> float:
        scaled = logits_NxC / np.exp(log_temperature)
        if gold.ndim == 2:
            return float(-(gold * special.log_expit(scaled) + (1 - gold) * special.log_expit(-scaled)).mean())
        return float(-special.log_softmax(scaled, axis=-1)[np.arange(len(gold)), gold].mean())

    # Where all of a few examples are right the best one is 0: it stays above a hundredth.
    return float(np.exp(optimize.minimize_scalar(loss, bounds=(np.log(0.01), np.log(100.0)), method="bounded").x))


def entity_scores(gold: Sequence[Sequence[Entity]], predicted: Sequence[Sequence[Entity]], sizes: Sequence[int]) -> Row:
    """Computes F1, precision and recall of entities that agree in type and extent, by seqeval; 'f1/TYPE' for each type.

    Whatever their scheme, entities are passed to it as IOB2: it has no BMES, and its own IOB1 (in `seqeval.scheme`) does not
    count "O B-PER" as an entity.

    Args:
      gold: entities of each sentence, in order.
      predicted: likewise.
      sizes: number of words of each sentence.
    """
    from seqeval import metrics as seqeval

    types = sorted({entity.type for found in gold for entity in found} - {""})  # the same whatever was predicted
    if not any(map(len, (*gold, *predicted))):  # seqeval fails on sentences without any
        return dict.fromkeys(("f1", "precision", "recall"), 0.0)
    tags = ([tags_of(*sentence, "IOB2") for sentence in zip(side, sizes, strict=True)] for side in (gold, predicted))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of types that were never predicted
        report = seqeval.classification_report(*tags, output_dict=True, zero_division=0)
    overall = report["micro avg"]
    return {
        "f1": float(overall["f1-score"]),
        "precision": float(overall["precision"]),
        "recall": float(overall["recall"]),
        **{f"f1/{name}": float(report[name]["f1-score"]) for name in types},
    }
