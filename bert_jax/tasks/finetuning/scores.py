"""What predictions on labelled data are worth, by scikit-learn and SciPy. Shapes: N examples or words, C classes.

The scores of each GLUE task are those of Wang et al. 2019, section 3.
"""

import warnings
from collections.abc import Callable

import numpy as np
from scipy import optimize, special, stats
from sklearn import metrics

Score = Callable[[np.ndarray, np.ndarray], float]  # of gold and predicted: class numbers [N], numbers [N] or 0/1 [N, C]


def _correlation(of: Callable) -> Score:
    def score(gold: np.ndarray, predicted: np.ndarray) -> float:
        if len(gold) < 2:
            return 0.0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", stats.ConstantInputWarning)
            value = float(of(gold, predicted).statistic)
        return 0.0 if np.isnan(value) else value  # of predictions that are all the same; as of a single one, above

    return score


def _f1(average: str) -> Score:
    def score(gold: np.ndarray, predicted: np.ndarray) -> float:
        if gold.shape[1:] == (1,):  # the only label of several; scikit-learn takes the column for two classes
            return float(metrics.f1_score(gold[:, 0], predicted[:, 0], zero_division=0.0))
        return float(metrics.f1_score(gold, predicted, average=average, zero_division=0.0))

    return score


SCORES: dict[str, Score] = {
    "accuracy": lambda gold, predicted: float(metrics.accuracy_score(gold, predicted)),
    "f1": lambda gold, predicted: float(metrics.f1_score(gold, predicted, zero_division=0.0)),  # of class 1
    "macro_f1": _f1("macro"),
    "micro_f1": _f1("micro"),
    "exact": lambda gold, predicted: float((gold == predicted).all(-1).mean()),  # all labels of an example right
    "matthews": lambda gold, predicted: float(metrics.matthews_corrcoef(gold, predicted)),
    "pearson": _correlation(stats.pearsonr),
    "spearman": _correlation(stats.spearmanr),
    "mean_squared_error": lambda gold, predicted: float(metrics.mean_squared_error(gold, predicted)),
}


def best_temperature(logits_NxC: np.ndarray, gold: np.ndarray) -> float:
    """What logits are to be divided by for probabilities of the least loss (Guo et al. 2017, section 4.2).

    Args:
      logits_NxC: of held-out data.
      gold: class numbers [N], or 0/1 for each of several labels [N, C].
    """

    def loss(log_temperature: float) -> float:
        scaled = logits_NxC / np.exp(log_temperature)
        if gold.ndim == 2:
            return float(-(gold * special.log_expit(scaled) + (1 - gold) * special.log_expit(-scaled)).mean())
        return float(-special.log_softmax(scaled, axis=-1)[np.arange(len(gold)), gold].mean())

    # Where all of a few examples are right the best one is 0: it stays above a hundredth.
    return float(np.exp(optimize.minimize_scalar(loss, bounds=(np.log(0.01), np.log(100.0)), method="bounded").x))
