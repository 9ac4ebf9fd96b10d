"""Scores of predictions on labelled data, by scikit-learn, SciPy and seqeval. Shapes: N examples or words, C classes.

These packages take as long to import as JAX and are not needed for prediction, so functions import them.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import special

from bert_jax.data.datasets.schemes import Entity, tags_of
from bert_jax.train.writers.base import Row

Score = Callable[[np.ndarray, np.ndarray], float]  # (gold, predicted): class numbers [N], numbers [N] or 0/1 [N, C]


def _sklearn(name: str, **options: Any) -> Score:
    def score(gold: np.ndarray, predicted: np.ndarray) -> float:
        from sklearn import metrics

        return float(getattr(metrics, name)(gold, predicted, **options))

    return score


def _correlation(name: str) -> Score:
    def score(gold: np.ndarray, predicted: np.ndarray) -> float:
        from scipy import stats

        if len(gold) < 2 or np.ptp(gold) == 0 or np.ptp(predicted) == 0:  # undefined
            return 0.0
        return float(np.nan_to_num(getattr(stats, name)(gold, predicted).statistic))

    return score


def _f1(average: str) -> Score:
    def score(gold: np.ndarray, predicted: np.ndarray) -> float:
        if gold.shape[1:] == (1,):  # a single label; scikit-learn would take the column for two classes
            return SCORES["f1"](gold[:, 0], predicted[:, 0])
        return _sklearn("f1_score", average=average, zero_division=0.0)(gold, predicted)

    return score


SCORES: dict[str, Score] = {
    "accuracy": _sklearn("accuracy_score"),
    "f1": _sklearn("f1_score", zero_division=0.0),  # of class 1
    "macro_f1": _f1("macro"),
    "micro_f1": _f1("micro"),
    "exact": lambda gold, predicted: float((gold == predicted).all(-1).mean()),  # all labels of an example are correct
    "matthews": _sklearn("matthews_corrcoef"),
    "pearson": _correlation("pearsonr"),
    "spearman": _correlation("spearmanr"),
    "mean_squared_error": _sklearn("mean_squared_error"),
}


def best_temperature(logits_NxC: np.ndarray, gold: np.ndarray) -> float:
    """Returns the temperature, from 0.01 to 100, with the lowest loss (Guo et al. 2017, section 4.2).

    `gold` has class numbers [N], or 0/1 for each of several labels [N, C].
    """
    from scipy import optimize

    def loss(log_temperature: float) -> float:
        scaled = logits_NxC / np.exp(log_temperature)
        if gold.ndim == 2:
            return float(-(gold * special.log_expit(scaled) + (1 - gold) * special.log_expit(-scaled)).mean())
        return float(-special.log_softmax(scaled, axis=-1)[np.arange(len(gold)), gold].mean())

    # If all predictions are correct, the best temperature is 0, hence the bound.
    return float(np.exp(optimize.minimize_scalar(loss, bounds=(np.log(0.01), np.log(100.0)), method="bounded").x))


def entity_scores(gold: Sequence[Sequence[Entity]], predicted: Sequence[Sequence[Entity]], sizes: Sequence[int]) -> Row:
    """Returns F1 ('f1', and 'f1/TYPE' for each gold type), precision and recall of entities with the same type and extent.

    Arguments are gold and predicted entities and the number of words of each sentence. Entities of any scheme are passed to
    seqeval as IOB2: it lacks BMES, and its IOB1 (in `seqeval.scheme`) does not count "O B-PER" as an entity.
    """
    from seqeval import metrics as seqeval

    types = sorted({entity.type for sentence in gold for entity in sentence} - {""})
    if not any(map(len, (*gold, *predicted))):  # seqeval fails without entities
        return dict.fromkeys(("f1", "precision", "recall"), 0.0)
    tags = ([tags_of(*sentence, "IOB2") for sentence in zip(side, sizes, strict=True)] for side in (gold, predicted))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about types that were never predicted
        report = seqeval.classification_report(*tags, output_dict=True, zero_division=0)
    keys = {"f1": "f1-score", "precision": "precision", "recall": "recall"}
    scores = {name: float(report["micro avg"][key]) for name, key in keys.items()}
    return scores | {f"f1/{name}": float(report[name]["f1-score"]) for name in types}
