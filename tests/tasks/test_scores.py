"""Scores equal their definitions, computed anew here, on random predictions."""

import numpy as np
import pytest

from bert_jax.tasks.finetuning.scores import SCORES


@pytest.fixture(params=range(3))
def classes(request):
    rng = np.random.default_rng(request.param)
    return rng.integers(0, 2, 200), rng.integers(0, 2, 200)


def test_scores_of_classes(classes):
    gold, predicted = classes
    tp, fp = ((predicted == 1) & (gold == 1)).sum(), ((predicted == 1) & (gold == 0)).sum()
    fn, tn = ((predicted == 0) & (gold == 1)).sum(), ((predicted == 0) & (gold == 0)).sum()
    assert SCORES["accuracy"](gold, predicted) == pytest.approx((tp + tn) / 200)
    assert SCORES["f1"](gold, predicted) == pytest.approx(2 * tp / (2 * tp + fp + fn))
    other = 2 * tn / (2 * tn + fp + fn)
    assert SCORES["macro_f1"](gold, predicted) == pytest.approx((2 * tp / (2 * tp + fp + fn) + other) / 2)
    norm = np.sqrt(float(tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    assert SCORES["matthews"](gold, predicted) == pytest.approx((tp * tn - fp * fn) / norm)


def test_scores_of_several_labels():
    rng = np.random.default_rng(0)
    gold, predicted = rng.integers(0, 2, (2, 100, 4)).astype(np.float32)
    assert SCORES["exact"](gold, predicted) == np.mean(
        [list(g) == list(p) for g, p in zip(gold, predicted, strict=True)]
    )
    both = (gold * predicted).sum()
    assert SCORES["micro_f1"](gold, predicted) == pytest.approx(2 * both / (gold.sum() + predicted.sum()))


@pytest.mark.parametrize("name", ["micro_f1", "macro_f1"])
def test_scores_of_a_single_label(name):
    """F1 of the label, not of the label and of its absence."""
    gold, predicted = np.float32([[1], [1], [0], [0], [0]]), np.float32([[1], [0], [1], [0], [0]])
    assert SCORES[name](gold, predicted) == pytest.approx(0.5)
    assert SCORES[name](gold * 0, predicted * 0) == 0.0


def test_scores_of_numbers():
    rng = np.random.default_rng(0)
    gold = rng.integers(0, 6, 100).astype(np.float32)  # with ties
    predicted = gold + rng.standard_normal(100).astype(np.float32)

    def ranks(values):  # the mean of the places of all equal values
        return np.array([np.mean(np.flatnonzero(np.sort(values) == value)) for value in values])

    assert SCORES["pearson"](gold, predicted) == pytest.approx(np.corrcoef(gold, predicted)[0, 1], abs=1e-6)
    expected = np.corrcoef(ranks(gold), ranks(predicted))[0, 1]
    assert SCORES["spearman"](gold, predicted) == pytest.approx(expected, abs=1e-6)
    assert SCORES["mean_squared_error"](gold, predicted) == pytest.approx(np.mean((gold - predicted) ** 2))
    assert SCORES["pearson"](gold, np.zeros(100)) == SCORES["spearman"](gold, np.zeros(100)) == 0.0
