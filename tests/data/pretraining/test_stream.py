"""Batches are a function of the step alone: not of hosts, rows, threads, or where the run began."""

import dataclasses

import numpy as np
import pytest

from bert_jax.data.corpus.format import Corpus
from bert_jax.data.pretraining.stream import (
    DataConfig,
    ExampleStream,
    describe_batch,
    evaluation_batches,
    training_batches,
)
from bert_jax.errors import UserError
from bert_jax.objectives.base import default_options, load

BATCH = 8


@pytest.fixture(scope="module")
def stream_of(corpus_dir, tokenizer):
    def make(names=("mlm", "nsp"), seed=0, **changes):
        objectives = load(names, default_options(), tokenizer)
        config = DataConfig(corpus=str(corpus_dir), sequence_length=32, **changes)
        return ExampleStream.build(Corpus.open(corpus_dir), tokenizer, config, objectives, seed)

    return make


def batches_of(stream, rows, first=0, steps=5, batch_size=BATCH, **options):
    return list(training_batches(stream, batch_size, np.asarray(rows), first, steps, **options))


def assert_equal(one: dict, other: dict, what: str) -> None:
    assert one.keys() == other.keys(), what
    for name in one:
        assert one[name].dtype == other[name].dtype, f"{what}: {name}"
        assert np.array_equal(one[name], other[name]), f"{what}: {name}"


@pytest.mark.parametrize("names", [("mlm",), ("mlm", "nsp"), ("mlm", "sop")])
def test_batches_do_not_depend_on_hosts_threads_or_the_first_step(names, stream_of):
    stream = stream_of(names)
    whole = batches_of(stream, range(BATCH))
    assert len(whole) == 5 and whole[0]["input_ids"].shape == (BATCH, 32)
    for hosts in ([range(4), range(4, 8)], [[0, 2, 4, 6], [1, 3, 5, 7]], [[row] for row in range(BATCH)]):
        parts = [batches_of(stream, rows) for rows in hosts]
        for step in range(5):
            for rows, part in zip(hosts, parts, strict=True):
                expected = {name: array[list(rows)] for name, array in whole[step].items()}
                assert_equal(part[step], expected, f"rows {list(rows)} of step {step} on {len(hosts)} hosts")
    for number, batch in enumerate(batches_of(stream, range(BATCH), first=3, num_threads=1, prefetch=1)):
        assert_equal(batch, whole[3 + number], f"step {3 + number} of a run resumed at 3")
    assert batches_of(stream, range(BATCH), first=5) == [], "a run that is complete has no batches left"


def test_an_epoch_holds_each_example_once_and_the_next_ones_go_on(stream_of, monkeypatch):
    stream = stream_of(("mlm",))
    asked = []
    monkeypatch.setattr(
        ExampleStream, "example", lambda self, *place: asked.append(place) or {"input_ids": np.zeros(1)}
    )
    steps = 2 * stream.epoch_size // BATCH
    batches_of(stream, range(BATCH), steps=steps, num_threads=1)
    counts = []
    for epoch in (0, 1):
        indices = sorted(index for e, index in asked if e == epoch)
        assert len(set(indices)) == len(indices), f"epoch {epoch} repeats examples"
        assert set(indices) <= set(range(stream.epoch_size)), f"epoch {epoch} has examples that are not there"
        counts.append(len(indices))
    assert counts == [stream.epoch_size, steps * BATCH - stream.epoch_size] and sum(counts) == len(asked)
    orders = [[index for e, index in asked if e == epoch] for epoch in (0, 1)]
    assert orders[0][: counts[1]] != orders[1], "both epochs have the same order"


def test_seeds_differ_and_repeat(stream_of):
    first, again, other = (batches_of(stream_of(seed=seed), range(BATCH), steps=1)[0] for seed in (0, 0, 1))
    assert_equal(first, again, "the same seed")
    assert not np.array_equal(first["input_ids"], other["input_ids"])


def test_static_masking_repeats_examples_and_dynamic_does_not(stream_of):
    static, dynamic = stream_of(masking="static"), stream_of(masking="dynamic")
    for index in (0, 7):
        assert_equal(static.example(0, index), static.example(3, index), "static")
        assert_equal(static.example(0, index), dynamic.example(0, index), "the first epoch")
        assert not np.array_equal(dynamic.example(0, index)["input_ids"], dynamic.example(1, index)["input_ids"])


def test_all_examples_have_the_same_shapes(stream_of):
    stream = stream_of()
    shapes = {tuple((name, np.shape(a)) for name, a in stream.example(1, i).items()) for i in range(100)}
    assert len(shapes) == 1, f"examples of different shapes cannot be stacked: {shapes}"


@pytest.mark.parametrize("limit, batch_size", [(10**6, 32), (10, 4), (8, 8), (3, 8)])
def test_evaluation_covers_each_example_once(stream_of, limit, batch_size):
    stream = stream_of(masking="static")
    total = min(limit, stream.epoch_size)
    rows = np.arange(batch_size)
    batches = list(evaluation_batches(stream, batch_size, rows, limit))
    assert all(len(batch["input_ids"]) == batch_size for batch in batches), "a batch of another shape"
    kept = np.concatenate([batch["input_ids"][batch["example_weights"] > 0] for batch in batches])
    assert np.array_equal(kept, np.stack([stream.example(0, index)["input_ids"] for index in range(total)]))
    filled = [batch[name][batch["example_weights"] == 0] for batch in batches for name in batch if "weights" in name]
    assert not any(array.any() for array in filled), "what only fills the last batch weighs something"
    half = list(evaluation_batches(stream, batch_size, rows[::2], limit))
    assert np.array_equal(half[-1]["input_ids"], batches[-1]["input_ids"][::2]), "a host sees other rows"


def test_description_names_the_examples_of_a_batch(stream_of):
    stream = stream_of()
    step = stream.epoch_size // BATCH  # the border between epochs, unless the batch size divides the epoch
    text = describe_batch(stream, step, BATCH)
    numbers = [int(word) for part in text.split("; ") for word in part.split(": ")[1].split(", ")]
    found = [stream.example(int(part.split(":")[0].split()[1]), 0) for part in text.split("; ")]
    assert len(numbers) == BATCH and len(found) == (1 if stream.epoch_size % BATCH == 0 else 2), text
    epochs = [int(part.split(":")[0].split()[1]) for part in text.split("; ") for _ in part.split(": ")[1].split(", ")]
    described = {stream.example(*place)["input_ids"].tobytes() for place in zip(epochs, numbers, strict=True)}
    batch = batches_of(stream, range(BATCH), first=step, steps=step + 1)[0]
    assert described == {row.tobytes() for row in batch["input_ids"]}, f"the batch holds other examples than {text}"


def test_description_of_a_large_batch_is_short(stream_of):
    stream, size = stream_of(), 4096
    text = describe_batch(stream, 1, size)
    assert text.endswith(f" and {size - 12} more") and len(text) < 120
    shown = [
        (int(part.split(":")[0].split()[1]), int(index))
        for part in text.removesuffix(f" and {size - 12} more").split("; ")
        for index in part.split(": ")[1].split(", ")
    ]
    batch = batches_of(stream, range(12), first=1, steps=2, batch_size=size)[0]
    expected = sorted(row.tobytes() for row in batch["input_ids"])
    assert sorted(stream.example(*place)["input_ids"].tobytes() for place in shown) == expected


def test_streams_that_cannot_be(corpus_dir, tokenizer, documents, stream_of):
    with pytest.raises(UserError, match=r"data\.masking='sometimes' is not one of dynamic, static"):
        stream_of(masking="sometimes")
    config = DataConfig(corpus=str(corpus_dir), sequence_length=7)
    with pytest.raises(UserError, match=r"data.sequence_length=7 leaves no room"):
        ExampleStream.build(Corpus.open(corpus_dir), tokenizer, config, {}, 0)
    other = type(tokenizer).train((document.text for document in documents), 120)
    with pytest.raises(UserError, match=r"made with another tokenizer \(fingerprint"):
        ExampleStream.build(Corpus.open(corpus_dir), other, dataclasses.replace(config, sequence_length=32), {}, 0)
    for masking in ("dynamic", "static"):
        assert stream_of(masking=masking).is_static == (masking == "static")
