"""Joined segments: special tokens, types, padding, cuts; a batch is its rows."""

import collections

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_jax.data.joining import join, join_rows, kept_lengths


def token_by_token(length_a: int, length_b: int, room: int) -> tuple[int, int]:
    """google-research/bert truncate_seq_pair: one token at a time from the longer one, the second where equal."""
    while length_a + length_b > room:
        if length_a > length_b:
            length_a -= 1
        else:
            length_b -= 1
    return length_a, length_b


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 200), st.integers(0, 200), st.integers(0, 150)), min_size=1, max_size=20))
def test_kept_lengths_are_those_of_the_original_loop(cases):
    expected = [token_by_token(*case) for case in cases]
    assert [tuple(map(int, kept_lengths(*case))) for case in cases] == expected
    assert list(zip(*kept_lengths(*np.array(cases).T), strict=True)) == expected


@pytest.mark.parametrize(
    "segments, ids, types",
    [
        (([7, 8],), [2, 7, 8, 3, 0, 0, 0, 0], [0] * 8),
        (([7], [8, 9]), [2, 7, 3, 8, 9, 3, 0, 0], [0, 0, 0, 1, 1, 1, 0, 0]),
        (([7], []), [2, 7, 3, 3, 0, 0, 0, 0], [0, 0, 0, 1, 0, 0, 0, 0]),
        (([7, 7, 7], [8, 8]), [2, 7, 7, 7, 3, 8, 8, 3], [0, 0, 0, 0, 0, 1, 1, 1]),
    ],
)
def test_join(tokenizer, segments, ids, types):
    assert (tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id) == (0, 2, 3)
    example = join(tokenizer, 8, *(np.array(segment, np.int32) for segment in segments))
    assert example["input_ids"].tolist() == ids
    assert example["token_type_ids"].tolist() == types
    assert example["attention_mask"].sum() == 1 + sum(len(segment) + 1 for segment in segments)
    assert example["example_weights"] == 1.0
    kinds = collections.Counter(example[name].dtype for name in ("input_ids", "token_type_ids", "attention_mask"))
    assert set(kinds) == {np.dtype(np.int32)}


class TwoSeparators:
    """As much of RoBERTa's tokenizer as joining needs."""

    pad_id, cls_id, sep_id, separators_between = 1, 0, 2, 2


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_rows_are_joined_as_one_by_one(tokenizer, data):
    joiner = data.draw(st.sampled_from([tokenizer, TwoSeparators()]))
    length, count = data.draw(st.integers(8, 40)), data.draw(st.integers(1, 2))
    sizes = st.integers(0, (length - 4) // count)
    rows = data.draw(st.lists(st.tuples(*[sizes] * count), min_size=1, max_size=6))
    rng = np.random.default_rng(0)
    texts = [[rng.integers(10, 100, size).astype(np.int32) for size in row] for row in rows]
    flat = [(np.concatenate(column), np.array([len(text) for text in column])) for column in zip(*texts, strict=True)]
    joined = join_rows(joiner, length, *flat)
    for row, segments in enumerate(texts):
        # Written out: the special tokens around the segments, then padding.
        between = [joiner.sep_id] * joiner.separators_between
        parts = [
            [joiner.cls_id],
            *([segments[0], between, segments[1]] if count == 2 else [segments[0]]),
            [joiner.sep_id],
        ]
        ids = np.concatenate([np.asarray(part, np.int32) for part in parts])
        assert joined["input_ids"][row].tolist() == [*ids.tolist(), *[joiner.pad_id] * (length - len(ids))]
        assert joined["attention_mask"][row].tolist() == [1] * len(ids) + [0] * (length - len(ids))
        in_second = range(1 + len(segments[0]) + len(between), len(ids)) if count == 2 else range(0)
        assert joined["token_type_ids"][row].tolist() == [int(place in in_second) for place in range(length)]
        one = join(joiner, length, *segments)
        assert one.keys() == joined.keys()
        for name in one:
            assert np.array_equal(one[name], joined[name][row]) and one[name].dtype == joined[name].dtype, name
