"""Mixtures of corpora: shares, each example of each corpus once, and the same whoever asks."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert_jax.data.corpus.prepare import prepare
from bert_jax.data.pretraining.mixture import ROUND, Mixture, parse_mixture, taken
from bert_jax.data.pretraining.stream import CorpusStream, DataConfig, training_stream
from bert_jax.errors import UserError
from bert_jax.objectives import base as objectives_lib


@dataclasses.dataclass(frozen=True)
class Numbers:
    """A stream whose examples are their own numbers."""

    name: str
    size: int

    def batch(self, numbers):
        return {"number": numbers, "of": np.full(len(numbers), ord(self.name))}

    def describe(self, numbers):
        return ",".join(map(str, numbers))


@given(
    shares=st.lists(st.integers(1, 300), min_size=1, max_size=3),
    rounds=st.integers(1, 4),
)
def test_each_example_once_and_shares_to_the_number(shares, rounds):
    entries = [f"{share / ROUND}:{number}" for number, share in enumerate(shares)]
    counts = list(parse_mixture("corpus", entries).values())
    assert counts[1:] == shares and sum(counts) == ROUND
    streams = [Numbers(chr(ord("a") + number), 10) for number in range(len(counts))]
    mixture = Mixture(streams, counts)
    batch = mixture.batch(np.arange(rounds * ROUND))
    for stream, count in zip(streams, counts, strict=True):
        own = batch["number"][batch["of"] == ord(stream.name)]
        assert sorted(own) == list(range(rounds * count))
    for number, count in enumerate(counts):  # any part of a round has its share, to one example
        own = np.cumsum(batch["of"] == ord("a") + number)
        assert np.abs(own - np.arange(1, len(own) + 1) * count / ROUND).max() <= len(counts)
    part = np.arange(ROUND // 2, ROUND // 2 + 40)
    for name, array in mixture.batch(part).items():
        np.testing.assert_array_equal(array, batch[name][part])


@given(st.lists(st.integers(1, 300), min_size=1, max_size=3), st.lists(st.integers(0, 2500), min_size=1, max_size=3))
def test_each_phase_goes_on_where_a_corpus_was(shares, lengths):
    """Whatever the mixture of each phase: no example of a corpus is read twice, and none is left out."""
    names = "abcd"
    read: dict[str, list[int]] = {name: [] for name in names}
    before, first = dict.fromkeys(names, 0), 0
    for phase, length in enumerate(lengths):
        counts = parse_mixture("a", [f"{share / ROUND}:{names[1 + n]}" for n, share in enumerate(shares[phase:])])
        streams, of_each = [Numbers(name, 10) for name in counts], list(counts.values())
        mixture = Mixture(streams, of_each, first, [before[name] for name in counts])
        for rows, stream, own in mixture.parts(np.arange(first, first + length)):
            assert len(rows) == len(own)
            read[stream.name] += list(own)
        for name, number in zip(counts, taken(length, of_each), strict=True):
            before[name] += number
        first += length
    assert all(sorted(numbers) == list(range(before[name])) for name, numbers in read.items())


def test_the_size_is_an_epoch_of_every_stream():
    assert Mixture([Numbers("a", 1000), Numbers("b", 1000)], [900, 100]).size == 10_000


def test_corpora_are_mixed_as_they_are_alone(documents, tokenizer, corpus_dir, tmp_path):
    prepare(documents[:80], tokenizer, tmp_path / "more", source="tests", held_out_fraction=0.15, shard_megabytes=0.03)
    objectives = objectives_lib.load(("mlm",), objectives_lib.default_options(), tokenizer)
    config = DataConfig(corpus=str(corpus_dir), sequence_length=32)
    mixed = training_stream(
        dataclasses.replace(config, mixture=(f"0.25:{tmp_path / 'more'}",)), tokenizer, objectives, 3
    )
    first, second = (
        training_stream(dataclasses.replace(config, corpus=str(folder)), tokenizer, objectives, 3)
        for folder in (corpus_dir, tmp_path / "more")
    )
    assert isinstance(mixed, Mixture) and isinstance(first, CorpusStream)
    rows = {row.tobytes() for row in mixed.batch(np.arange(ROUND))["input_ids"]}
    for stream, count in ((first, 750), (second, 250)):
        assert rows >= {row.tobytes() for row in stream.batch(np.arange(count))["input_ids"]}
    assert "of more: epoch " in mixed.describe(np.arange(100)) and "of corpus: epoch " in mixed.describe(np.arange(100))


@pytest.mark.parametrize("entry", ["corpora/x", "0.3", "0:x", "1:x", "0.0001:x", "nan:x", "inf:x", "0.3:", "0.3:mine"])
def test_entries_that_are_no_share_of_a_folder(entry):
    with pytest.raises(UserError, match=r"is not SHARE:FOLDER; write '0\.3:FOLDER'"):
        parse_mixture("mine", (entry,))


@pytest.mark.parametrize("entries", [["0.4995:a", "0.4995:b"], [f"0.0416:{n}" for n in range(24)], ["0.5:a", "0.6:b"]])
def test_shares_that_leave_nothing_to_the_corpus(entries):
    with pytest.raises(UserError, match=r"leave nothing to data\.corpus"):
        parse_mixture("mine", entries)
