"""Mixtures of corpora: shares, each example of each corpus once, and the same whoever asks."""

import dataclasses
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert_jax.data.corpus.prepare import prepare
from bert_jax.data.pretraining.mixture import ROUND, Mixture, counts_by_size, parse_mixture, taken
from bert_jax.data.pretraining.stream import CorpusStream, DataConfig, counts_of, training_stream
from bert_jax.errors import UserError
from bert_jax.objectives import base as objectives_lib
from bert_jax.tasks import base as tasks


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


@given(st.lists(st.integers(1, 10**12), min_size=1, max_size=8), st.floats(0.2, 50))
def test_shares_follow_sizes(sizes, temperature):
    named = {str(number): size for number, size in enumerate(sizes)}
    counts = counts_by_size(named, temperature)
    assert sum(counts.values()) == ROUND and min(counts.values()) >= 1 and list(counts) == list(named)
    weights = np.array(sizes, float) ** (1 / temperature)
    exact = weights / weights.sum() * ROUND
    # Each is right to one example but for those that rounding would leave out, which take theirs from the others.
    left_out = (exact < 1).sum()
    assert (np.abs(np.array([*counts.values()]) - exact) <= 1 + left_out).all()


def test_temperatures():
    sizes = {"large": 9_000_000, "small": 1_000_000}
    assert counts_by_size(sizes, 1.0) == {"large": 900, "small": 100}
    assert counts_by_size(sizes, 2.0) == {"large": 750, "small": 250}
    assert counts_by_size(sizes, 1e6) == {"large": 500, "small": 500}


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


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        *((entry, r"is not SHARE:FOLDER; write '0\.3:FOLDER'") for entry in ("corpora/x", "0.3", "0.3:", "x:y")),
        *(
            (f"{share}:x", r"the share is not from 0\.001 to below 1; write '0\.3:FOLDER'")
            for share in ("0", "1", "0.0001", "nan", "inf", "-0.3", "1.5")
        ),
        *((f"0.3:{folder}", f"{folder} is there twice") for folder in ("mine", "./mine", "mine/", "mine/../mine")),
    ],
)
def test_entries_that_are_no_share_of_a_folder(entry, message):
    with pytest.raises(UserError, match=message):
        parse_mixture("mine", (entry,))


@pytest.mark.parametrize("entries", [["0.4995:a", "0.4995:b"], [f"0.0416:{n}" for n in range(24)], ["0.5:a", "0.6:b"]])
def test_shares_that_leave_nothing_to_the_corpus(entries):
    with pytest.raises(UserError, match=r"leave nothing to data\.corpus"):
        parse_mixture("mine", entries)


def test_a_run_on_a_mixture_by_size(documents, tokenizer, corpus_dir, tiny_config, tmp_path):
    """What it reads of each corpus is said: a temperature of 1 reads all of both equally often."""
    prepare(documents[:80], tokenizer, tmp_path / "more", source="tests", held_out_fraction=0.15, shard_megabytes=0.03)
    options = {"data.corpus": str(corpus_dir), "data.mixture": (str(tmp_path / "more"),), "train.num_steps": 200}
    of = {
        temperature: tasks.create(
            tiny_config(objectives=("mlm",), **options, **{"data.mixture_temperature": temperature}), tmp_path / "run"
        ).training
        for temperature in (1.0, 1e6)
    }
    first, second = of[1.0].sources
    assert [first.name, second.name] == ["corpus", "more"]
    assert first.epochs == pytest.approx(second.epochs, rel=0.03)
    assert first.tokens + second.tokens == 200 * 8 * 32
    assert re.fullmatch(
        r"to train on corpus: [\d,]+ tokens of \d+ documents, [\d.]+ epochs, [\d.]+% of the run; more: .*% of the run",
        of[1.0].summary,
    )
    first, second = of[1e6].sources
    assert first.tokens == second.tokens and first.epochs < second.epochs


@pytest.mark.parametrize(
    "mixture, message",
    [
        (("0.3:corpora/x",), "'0.3:corpora/x' has a share, but with data.mixture_temperature"),
        (("corpora/x", "corpora/x"), "corpora/x is there twice"),
    ],
)
def test_mixtures_by_size_of_another_form(mixture, message):
    with pytest.raises(UserError, match=message):
        counts_of(DataConfig(corpus="corpora/y", mixture=mixture, mixture_temperature=1.0))
