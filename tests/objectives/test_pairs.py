"""Next-sentence and sentence-order prediction: what their labels mean and how often each occurs."""

import numpy as np
import pytest

from bert_jax.objectives import nsp, sop

A, B, OTHER = np.arange(10, 17), np.arange(20, 25), np.arange(90, 95)
EMPTY = np.zeros(0, np.int64)


class Draft:
    """Two segments, and another document."""

    def __init__(self, a=A, b=B):
        self.a, self.b = a, b

    def from_another_document(self, rng):
        return OTHER


def drawn(objective, draft, count=4000):
    rng = np.random.default_rng(0)
    return [objective.pair(draft, rng) for _ in range(count)]


@pytest.mark.parametrize("share", [0.5, 0.2, 0.0, 1.0])
def test_next_sentence_labels_and_shares(share):
    pairs = drawn(nsp.Objective(nsp.Options(nsp_probability=share), None), Draft())
    for a, b, labels in pairs:
        assert np.array_equal(a, A), "the first segment was changed"
        assert np.array_equal(b, OTHER if labels["nsp_labels"] else B), f"label {labels['nsp_labels']} for {b}"
    found = np.mean([labels["nsp_labels"] for _, _, labels in pairs])
    assert abs(found - share) <= 5 * (share * (1 - share) / len(pairs)) ** 0.5, f"{found} are random"


def test_next_sentence_of_a_document_that_ended_is_random():
    for _, b, labels in drawn(nsp.Objective(nsp.Options(), None), Draft(b=EMPTY), 50):
        assert labels["nsp_labels"] == 1 and np.array_equal(b, OTHER)


@pytest.mark.parametrize("share", [0.5, 0.3, 0.0, 1.0])
def test_sentence_order_labels_and_shares(share):
    pairs = drawn(sop.Objective(sop.Options(swapped_share=share), None), Draft())
    for a, b, labels in pairs:
        first, second = (b, a) if labels["sop_labels"] else (a, b)
        assert np.array_equal(first, A) and np.array_equal(second, B), "swapped back, they are not consecutive"
    found = np.mean([labels["sop_labels"] for _, _, labels in pairs])
    assert abs(found - share) <= 5 * (share * (1 - share) / len(pairs)) ** 0.5, f"{found} are swapped"


@pytest.mark.parametrize("size", [1, 2, 7])
def test_sentence_order_of_a_lone_segment(size):
    for a, b, labels in drawn(sop.Objective(sop.Options(), None), Draft(a=A[:size], b=EMPTY), 50):
        first, second = (b, a) if labels["sop_labels"] else (a, b)
        assert np.array_equal(np.concatenate([first, second]), A[:size]), "text was lost or added"
        assert size == 1 or (len(first) and len(second)), "a segment is empty although there is text for two"
        assert size > 1 or labels["sop_labels"] == 0, "a single token cannot be swapped"
