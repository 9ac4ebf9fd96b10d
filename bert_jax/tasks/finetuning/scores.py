"""What predictions on labelled data are worth, by scikit-learn and SciPy. Shapes: N examples or words, C classes.

The scores of each GLUE task are those of Wang et al. 2019, section 3. Both libraries are imported where they are used: they
take as long to import as JAX, and predict needs no score.
"""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import special

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


SCORES: dict[str, Score] = {
    "accuracy": _of_sklearn("accuracy_score"),
    "f1": _of_sklearn("f1_score", zero_division=0.0),  # of class 1
    "macro_f1": _of_sklearn("f1_score", average="macro", zero_division=0.0),
    "micro_f1": _of_sklearn("f1_score", average="micro", zero_division=0.0),
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
