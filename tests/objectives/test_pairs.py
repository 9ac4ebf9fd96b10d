"""Next-sentence and sentence-order prediction: what they want of second segments, how often, and what their labels mean."""

import numpy as np
import pytest

from bert_jax.objectives import nsp, sop
from bert_jax.random_numbers import row_keys

COUNT = 4000
KEYS = row_keys(0, np.arange(COUNT))
FIELDS = {"is_other_document": np.array([True, False, False]), "is_swapped": np.array([False, False, True])}


def assert_share(drawn: np.ndarray, share: float) -> None:
    assert abs(drawn.mean() - share) <= 5 * (share * (1 - share) / len(drawn)) ** 0.5, (
        f"{drawn.mean()} instead of {share}"
    )


@pytest.mark.parametrize("share", [0.5, 0.2, 0.0, 1.0])
def test_next_sentence_shares(share):
    wanted = nsp.Objective(nsp.Options(nsp_probability=share), None).second_segments(np.ones(COUNT, bool), KEYS)
    assert_share(wanted.is_other_document, share)
    assert not wanted.is_swapped.any()


def test_next_sentence_of_a_document_that_ended_is_random():
    has_next = np.arange(COUNT) % 3 > 0
    wanted = nsp.Objective(nsp.Options(), None).second_segments(has_next, KEYS)
    assert wanted.is_other_document[~has_next].all()
    assert_share(wanted.is_other_document[has_next], 0.5)


@pytest.mark.parametrize("share", [0.5, 0.3, 0.0, 1.0])
def test_sentence_order_shares(share):
    wanted = sop.Objective(sop.Options(swapped_share=share), None).second_segments(np.ones(COUNT, bool), KEYS)
    assert_share(wanted.is_swapped, share)
    assert not wanted.is_other_document.any()


@pytest.mark.parametrize("module, expected", [(nsp, [1, 0, 0]), (sop, [0, 0, 1])])
def test_labels_are_what_became_of_the_segments(module, expected):
    batch = FIELDS | {"input_ids": np.ones((3, 4), np.int32)}
    labelled = module.Objective(module.Options(), None).corrupt(batch, KEYS[:3])
    (name,) = labelled.keys() - batch.keys()
    assert name == f"{module.__name__.split('.')[-1]}_labels"
    assert labelled[name].tolist() == expected and labelled[name].dtype == np.int32
    assert all(labelled[field] is array for field, array in batch.items())
