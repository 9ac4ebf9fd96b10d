"""What predictions on labelled texts are worth, by scikit-learn and SciPy. Shapes: N examples, C classes.

The scores of each GLUE task are those of Wang et al. 2019, section 3.
"""

import warnings
from collections.abc import Callable

import numpy as np
from scipy import stats
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


SCORES: dict[str, Score] = {
    "accuracy": lambda gold, predicted: float(metrics.accuracy_score(gold, predicted)),
    "f1": lambda gold, predicted: float(metrics.f1_score(gold, predicted, zero_division=0.0)),  # of class 1
    "macro_f1": lambda gold, predicted: float(metrics.f1_score(gold, predicted, average="macro", zero_division=0.0)),
    "micro_f1": lambda gold, predicted: float(metrics.f1_score(gold, predicted, average="micro", zero_division=0.0)),
    "exact": lambda gold, predicted: float((gold == predicted).all(-1).mean()),  # all labels of an example right
    "matthews": lambda gold, predicted: float(metrics.matthews_corrcoef(gold, predicted)),
    "pearson": _correlation(stats.pearsonr),
    "spearman": _correlation(stats.spearmanr),
    "mean_squared_error": lambda gold, predicted: float(metrics.mean_squared_error(gold, predicted)),
}
