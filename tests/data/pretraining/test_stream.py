"""Batches are a function of the examples' numbers alone: not of hosts, rows, workers, neighbours, or where the run began."""

import dataclasses
import multiprocessing
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_jax.data.corpus.format import Corpus
from bert_jax.data.feeder import feed
from bert_jax.data.pretraining.stream import (
    CorpusStream,
    DataConfig,
    evaluation_batches,
    held_out_stream,
    training_stream,
)
from bert_jax.errors import UserError
from bert_jax.objectives.base import default_options, load

BATCH = 8
ALL = [("mlm",), ("mlm", "nsp"), ("mlm", "sop")]


@pytest.fixture(scope="module")
def stream_of(corpus_dir, tokenizer):
    def make(names=("mlm", "nsp"), seed=0, is_shuffled=True, options=None, **changes):
        objectives = load(names, options or default_options(), tokenizer)
        config = DataConfig(corpus=str(corpus_dir), **({"sequence_length": 32} | changes))
        return CorpusStream.build(Corpus.open(corpus_dir), tokenizer, config, objectives, seed, is_shuffled)

    return make


def batches_of(stream, rows, first=0, steps=5, batch_size=BATCH, workers=0, prefetch=16):
    rows = np.asarray(rows)
    return list(feed(lambda step: stream.batch(step * batch_size + rows), first, steps, workers, prefetch))


def assert_equal(one: dict, other: dict, what: str) -> None:
    assert one.keys() == other.keys(), what
    for name in one:
        assert one[name].dtype == other[name].dtype, f"{what}: {name}"
        assert np.array_equal(one[name], other[name]), f"{what}: {name}"


@pytest.mark.parametrize("names", ALL)
def test_batches_do_not_depend_on_hosts_or_the_first_step(names, stream_of):
    stream = stream_of(names)
    whole = batches_of(stream, range(BATCH))
    assert len(whole) == 5 and whole[0]["input_ids"].shape == (BATCH, 32)
    for hosts in ([range(4), range(4, 8)], [[0, 2, 4, 6], [1, 3, 5, 7]], [[row] for row in range(BATCH)]):
        parts = [batches_of(stream, rows) for rows in hosts]
        for step in range(5):
            for rows, part in zip(hosts, parts, strict=True):
                expected = {name: array[list(rows)] for name, array in whole[step].items()}
                assert_equal(part[step], expected, f"rows {list(rows)} of step {step} on {len(hosts)} hosts")
    for number, batch in enumerate(batches_of(stream, range(BATCH), first=3, prefetch=1)):
        assert_equal(batch, whole[3 + number], f"step {3 + number} of a run resumed at 3")
    assert batches_of(stream, range(BATCH), first=5) == [], "a run that is complete has no batches left"


VARIANTS = [
    ("windows", ("mlm",), {}),
    ("whole words", ("mlm",), {"masking": "word"}),
    ("n-grams", ("mlm",), {"masking": "ngram", "count": "stochastic"}),
    ("spans", ("mlm", "sop"), {"masking": "span", "mlm_probability": 0.3}),
    ("independent", ("mlm",), {"count": "independent"}),
    ("independent words", ("mlm", "sop"), {"count": "independent", "masking": "word"}),
    ("pairs", ("mlm", "nsp"), {}),
]


@pytest.mark.parametrize(
    "names, options", [variant[1:] for variant in VARIANTS], ids=[variant[0] for variant in VARIANTS]
)
def test_a_row_is_the_same_in_any_batch(stream_of, names, options):
    all_options = default_options()
    all_options["mlm"] = dataclasses.replace(all_options["mlm"], **options)
    stream = stream_of(names, options=all_options)
    alone = {}

    @settings(max_examples=25, deadline=None)
    @given(st.lists(st.integers(0, 3 * stream.size), min_size=1, max_size=12))
    def check(numbers):
        batch = stream.batch(np.array(numbers))
        for row, number in enumerate(numbers):
            if number not in alone:
                alone[number] = stream.batch(np.array([number]))
            assert_equal(
                {name: array[row : row + 1] for name, array in batch.items()}, alone[number], f"number {number}"
            )

    check()


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_workers_make_the_same_batches_in_the_same_order(stream_of, workers):
    stream = stream_of()
    expected = batches_of(stream, range(BATCH), first=2, steps=9)
    made = batches_of(stream, range(BATCH), first=2, steps=9, workers=workers, prefetch=4)
    assert len(made) == len(expected) == 7
    for number, (one, other) in enumerate(zip(made, expected, strict=True)):
        assert_equal(one, other, f"batch {number} of {workers} workers")


class Reporting:
    """A stream whose batches say what its process is."""

    size = 100

    def batch(self, numbers):
        import jax  # the objectives import it, and so does the process that unpickles them

        if numbers[0] == 3:
            raise UserError("the disk is gone; find it")
        return {
            "is_worker": np.array([multiprocessing.parent_process() is not None]),
            "has_devices": np.array([jax._src.xla_bridge.backends_are_initialized()]),
            "has_tensorflow": np.array(["tensorflow" in sys.modules or "tensorflow_datasets" in sys.modules]),
        }

    def describe(self, numbers):
        return ""


def test_workers_have_no_devices_and_their_errors_arrive():
    batches = feed(lambda step: Reporting().batch(np.array([step])), 0, 9, workers=1, prefetch=1)
    first = next(batches)
    assert first["is_worker"].all() and not first["has_devices"].any() and not first["has_tensorflow"].any()
    with pytest.raises(UserError, match=r"^the disk is gone; find it$"):
        list(batches)
    batches.close()
    with pytest.raises(UserError, match=r"^the disk is gone; find it$"):
        list(feed(lambda step: Reporting().batch(np.array([step])), 0, 9, workers=0, prefetch=1))


def test_an_epoch_holds_each_example_once_and_the_next_ones_go_on(stream_of):
    stream = stream_of(("mlm",))
    numbers = np.arange(stream.size)
    orders = []
    for epoch in range(3):
        epochs, indices = stream.epochs_and_indices(epoch * stream.size + numbers)
        assert (epochs == epoch).all() and sorted(indices) == numbers.tolist(), "an index is missing or comes twice"
        orders.append(indices)
    for one, other in (
        (orders[0], orders[1]),
        (orders[1], orders[2]),
        (orders[0], stream_of(seed=1).epochs_and_indices(numbers)[1]),
    ):
        assert np.mean(one == other[: len(one)]) < 0.05, "two epochs or seeds have the same order"
    text = {
        row.tobytes()
        for number in numbers
        for row in stream.reader.rows(np.array([0]), np.array([number]))["input_ids"]
    }
    assert len(text) > 0.95 * stream.size, "different examples hold the same text"


def test_seeds_differ_and_repeat(stream_of):
    first, again, other = (batches_of(stream_of(seed=seed), range(BATCH), steps=1)[0] for seed in (0, 0, 1))
    assert_equal(first, again, "the same seed")
    assert not np.array_equal(first["input_ids"], other["input_ids"])


def test_static_masking_repeats_examples_and_dynamic_does_not(stream_of):
    static, dynamic = stream_of(masking="static"), stream_of(masking="dynamic")
    indices, zeros = np.array([0, 7]), np.zeros(2, int)
    assert_equal(static.examples(zeros, indices), static.examples(zeros + 3, indices), "static")
    assert_equal(static.examples(zeros, indices), dynamic.examples(zeros, indices), "the first epoch")
    ids = [dynamic.examples(zeros + epoch, indices)["input_ids"] for epoch in (0, 1)]
    assert (ids[0] != ids[1]).any(axis=1).all()


def test_objectives_are_told_the_progress_of_the_phase(stream_of, corpus_dir, tokenizer):
    """By the numbers of examples alone: masks of a changing rate do not depend on batches, and the note stays on the host."""
    options = default_options()
    options["mlm"] = dataclasses.replace(options["mlm"], mlm_probability=0.5, mlm_probability_end=0.25)
    objectives, config = load(("mlm",), options, tokenizer), DataConfig(corpus=str(corpus_dir), sequence_length=32)
    phase = range(1000, 1400)
    before = {str(corpus_dir): 1000}
    stream = training_stream(config, tokenizer, objectives, 0, phase, before)
    assert stream.progress(np.array([1000, 1100, 1399, 1400, 1500])).tolist() == [0.0, 0.25, 399 / 400, 1.0, 1.0]
    whole = stream.batch(np.array(phase))
    counts = whole["mlm_weights"].sum(axis=1)
    assert (np.abs(counts - (16 - 8 * np.arange(400) / 400)) <= 0.5).all()
    assert "progress" not in whole and whole["mlm_positions"].shape == (400, 16)
    part = stream.batch(np.array([1017, 1390, 1200]))
    assert_equal(part, {name: array[[17, 390, 200]] for name, array in whole.items()}, "three of the phase")
    constant = training_stream(config, tokenizer, objectives, seed=0)
    assert set(constant.batch(np.array(phase))["mlm_weights"].sum(axis=1)) == {16.0}, (
        "without a phase there is no progress"
    )


def test_objectives_choose_how_held_out_examples_are_corrupted(corpus_dir, tokenizer):
    """Runs that mask in different ways are evaluated on the same examples, if they say so."""
    config, batches = DataConfig(corpus=str(corpus_dir), sequence_length=32), list[dict]()
    for changes in ({}, {"masking": "span", "mlm_probability": 0.4, "standard_evaluation": True}):
        options = default_options()
        options["mlm"] = dataclasses.replace(options["mlm"], **changes)
        batches.append(held_out_stream(config, tokenizer, load(("mlm",), options, tokenizer)).batch(np.arange(6)))
    assert_equal(*batches, "standard masks")
    options["mlm"] = dataclasses.replace(options["mlm"], standard_evaluation=False)
    other = held_out_stream(config, tokenizer, load(("mlm",), options, tokenizer)).batch(np.arange(6))
    assert other["mlm_positions"].shape == (6, 13), "40% of 32 tokens"


@pytest.mark.parametrize("names", ALL)
def test_all_examples_have_the_same_shapes(stream_of, names):
    stream = stream_of(names)
    shapes = {
        tuple((name, array.shape, str(array.dtype)) for name, array in stream.batch(np.arange(n, n + 4)).items())
        for n in range(0, 200, 4)
    }
    assert len(shapes) == 1, f"batches of different shapes: {shapes}"
    assert all(shape[0] == 4 and dtype in ("int32", "float32") for _, shape, dtype in next(iter(shapes)))


@pytest.mark.parametrize("limit, batch_size", [(10**6, 32), (10, 4), (8, 8), (3, 8)])
def test_evaluation_covers_each_example_once(stream_of, limit, batch_size):
    stream = stream_of(masking="static", is_shuffled=False)
    total = min(limit, stream.size)
    rows = np.arange(batch_size)
    batches = list(evaluation_batches(stream, batch_size, rows, limit))
    assert all(len(batch["input_ids"]) == batch_size for batch in batches), "a batch of another shape"
    kept = np.concatenate([batch["input_ids"][batch["example_weights"] > 0] for batch in batches])
    assert np.array_equal(kept, stream.examples(np.zeros(total, int), np.arange(total))["input_ids"])
    filled = [batch[name][batch["example_weights"] == 0] for batch in batches for name in batch if "weights" in name]
    assert not any(array.any() for array in filled), "what only fills the last batch weighs something"
    half = list(evaluation_batches(stream, batch_size, rows[::2], limit))
    assert np.array_equal(half[-1]["input_ids"], batches[-1]["input_ids"][::2]), "a host sees other rows"


def described(text: str) -> list[tuple[int, int]]:
    """Epochs and indices in a description."""
    parts = [part.removeprefix("epoch ").split(": ") for part in text.split("; ")]
    return [(int(epoch), int(index)) for epoch, indices in parts for index in indices.split(", ")]


def test_description_names_the_examples_of_a_batch(stream_of):
    stream = stream_of()
    numbers = np.arange(stream.size - 3, stream.size + 5)  # across the border between epochs
    places = described(stream.describe(numbers))
    assert {epoch for epoch, _ in places} == {0, 1} and len(places) == 8
    assert sorted(places) == sorted(zip(*(array.tolist() for array in stream.epochs_and_indices(numbers)), strict=True))
    rows = stream.examples(*np.array(places).T)["input_ids"]
    assert sorted(row.tobytes() for row in rows) == sorted(row.tobytes() for row in stream.batch(numbers)["input_ids"])


def test_description_of_a_large_batch_is_short(stream_of):
    stream, size = stream_of(), 4096
    numbers = np.arange(size, 2 * size)
    text = stream.describe(numbers)
    assert text.endswith(f" and {size - 12} more") and len(text) < 120
    shown = described(text.removesuffix(f" and {size - 12} more"))
    assert sorted(shown) == sorted(
        zip(*(array.tolist() for array in stream.epochs_and_indices(numbers[:12])), strict=True)
    )


def test_streams_that_cannot_be(corpus_dir, tokenizer, documents, stream_of):
    with pytest.raises(UserError, match=r"data\.masking='sometimes' is not one of dynamic, static"):
        stream_of(masking="sometimes")
    with pytest.raises(UserError, match=r"data.sequence_length=7 leaves no space"):
        stream_of(sequence_length=7)
    other = type(tokenizer).train((document.text for document in documents), 120)
    with pytest.raises(UserError, match=r"made with another tokenizer \(fingerprint"):
        CorpusStream.build(Corpus.open(corpus_dir), other, DataConfig(), {}, 0)


# ---------------------------------------------------------------------------------------------------------------------
# Another stream: a mixture is one class against the protocol
# ---------------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Two streams, of which every example of the second one is followed by `share` of the first one."""

    first: CorpusStream
    second: CorpusStream
    share: int

    @property
    def size(self):
        return self.first.size + self.second.size

    def _parts(self, numbers):
        rounds, place = np.divmod(numbers, self.share + 1)
        is_second = place == 0
        yield ~is_second, self.first, rounds * self.share + place - 1
        yield is_second, self.second, rounds

    def batch(self, numbers):
        parts = [(rows, stream.batch(own[rows])) for rows, stream, own in self._parts(numbers)]
        batch = {name: np.empty((len(numbers), *array.shape[1:]), array.dtype) for name, array in parts[0][1].items()}
        for rows, part in parts:
            for name, array in part.items():
                batch[name][rows] = array
        return batch

    def describe(self, numbers):
        parts = [stream.describe(own[rows]) for rows, stream, own in self._parts(numbers) if rows.any()]
        return "; ".join(f"of stream {number}: {part}" for number, part in enumerate(parts, 1))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_mixture_is_a_stream(stream_of, workers):
    first, second = stream_of(seed=0), stream_of(seed=1)
    mixture = Mixture(first, second, share=3)
    whole = batches_of(mixture, range(BATCH), workers=workers)
    halves = [batches_of(mixture, rows, first=2) for rows in (range(4), range(4, 8))]
    for step in range(2, 5):
        expected = {name: np.concatenate([half[step - 2][name] for half in halves]) for name in whole[0]}
        assert_equal(whole[step], expected, f"step {step}")
    ids = np.concatenate([batch["input_ids"] for batch in whole])
    assert np.array_equal(ids[::4], second.batch(np.arange(10))["input_ids"])
    assert np.array_equal(np.delete(ids, slice(0, None, 4), axis=0), first.batch(np.arange(30))["input_ids"])
    assert mixture.describe(np.arange(8)).startswith("of stream 1: epoch 0: ")
