"""Packed documents: each token once an epoch, whole documents in rows that are nearly full, and the same losses as apart."""

import dataclasses
import itertools
import json
import pickle
import shutil
from collections import Counter
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_jax import run
from bert_jax.data.best_fit import groups_of_rows, num_rows, slots
from bert_jax.data.corpus.arrays import lengths_file
from bert_jax.data.corpus.format import Corpus
from bert_jax.data.corpus.index import INDEX_FILE, PACKED_LENGTHS, read_index
from bert_jax.data.pretraining.documents import PackedDocuments
from bert_jax.data.pretraining.order import OrderOfBlocks
from bert_jax.data.pretraining.stream import CorpusStream, DataConfig
from bert_jax.data.pretraining.windows import FullWindows
from bert_jax.errors import UserError
from bert_jax.model.build import Model
from bert_jax.model.config import EncoderConfig
from bert_jax.model.heads import MaskedLMHead
from bert_jax.objectives import rtd
from bert_jax.objectives.base import default_options, load
from bert_jax.objectives.losses import Losses, build_model
from bert_jax.tasks.common.packing import filled_rows
from bert_jax.train.loop import Stopped
from tests.data.pretraining.corpora import SEPARATOR, corpus_of
from tests.running import rows

SEED = 3
ENCODER = EncoderConfig(hidden_size=32, num_layers=2, num_heads=2, intermediate_size=48, max_positions=64, pooler=False)
SIZES = st.lists(st.lists(st.integers(1, 90), min_size=1, max_size=12), min_size=1, max_size=4)


@pytest.fixture(scope="module")
def corpus(corpus_dir):
    return Corpus.open(corpus_dir)


def corpus_of_documents(sizes: list[list[int]]) -> Corpus:
    """Shards of documents of these sizes; every token is another one, and a document's are consecutive."""
    first, shards = 1000, []
    for of_shard in sizes:
        tokens = []
        for size in of_shard:
            tokens += [*range(first, first + size), SEPARATOR]
            first += size + 1
        shards.append(np.array(tokens))
    return corpus_of(*shards)


def without_packed_rows(corpus: Corpus) -> Corpus:
    """The corpus as older versions prepared it."""
    index = read_index(corpus.directory)
    for shard in index["splits"]["train"]["shards"]:
        del shard["packed_rows"]
    return Corpus(corpus.directory, index, "train")


def whole_epoch(source, epoch: int, is_shuffled: bool = True):
    order = source.order(SEED, is_shuffled)
    epochs, indices = order.epochs_and_indices(np.arange(epoch * source.size, (epoch + 1) * source.size))
    assert (epochs == epoch).all() and sorted(indices) == list(range(source.size))
    return source.rows(epochs, indices)


def pieces_of(rows, tokenizer) -> list[np.ndarray]:
    """The text of each segment, after checking its frame and the layout."""
    pieces = []
    for ids, segments, positions, mask in zip(
        *(rows[name] for name in ("input_ids", "segment_ids", "position_ids", "attention_mask")), strict=True
    ):
        assert ((segments > 0) == (mask > 0)).all() and (ids[mask == 0] == tokenizer.pad_id).all()
        assert (np.diff(mask) <= 0).all() and mask[0], "padding is on the right"
        for number in range(1, segments.max() + 1):
            own = np.flatnonzero(segments == number)
            assert (np.diff(own) == 1).all() and (positions[own] == np.arange(len(own))).all()
            assert ids[own[0]] == tokenizer.cls_id and ids[own[-1]] == tokenizer.sep_id
            pieces.append(ids[own[1:-1]])
    return pieces


@pytest.mark.parametrize("length", PACKED_LENGTHS)
def test_numbers_of_rows_are_stored_for_common_lengths(corpus, tokenizer, length):
    """They are those that are counted where they are not stored, as in older corpora."""
    stored = corpus.packed_rows(length)
    counted = PackedDocuments(without_packed_rows(corpus), tokenizer, length, SEED)
    assert stored.tolist() == counted.rows_of_shards.tolist()
    assert PackedDocuments(corpus, tokenizer, length, SEED).size == counted.size


def test_numbers_of_rows_are_not_stored_with_an_overlap(corpus, tokenizer):
    assert corpus.packed_rows(100) is None
    packed = PackedDocuments(corpus, tokenizer, 128, SEED, overlap=20)
    assert packed.size > corpus.packed_rows(128).sum()


def test_a_stored_number_of_rows_that_is_wrong(corpus_dir, tokenizer, tmp_path):
    folder = Path(shutil.copytree(corpus_dir, tmp_path / "corpus"))
    index = json.loads((folder / INDEX_FILE).read_text())
    index["splits"]["train"]["shards"][0]["packed_rows"]["128"] += 1
    (folder / INDEX_FILE).write_text(json.dumps(index))
    packed = PackedDocuments(Corpus.open(folder), tokenizer, 128, SEED)
    with pytest.raises(UserError, match=r"shard 0 has other documents than corpus\.json says"):
        packed.rows(np.array([0]), np.array([0]))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 40), max_size=60))
def test_groups_are_those_of_best_fit_decreasing(sizes):
    counts = np.bincount(sizes, minlength=41) if sizes else np.zeros(41, int)
    groups = groups_of_rows(counts, 40)
    rows, spans = slots(groups)
    assert num_rows(groups) == len(filled_rows(np.array(sizes, int), 40))
    assert Counter(spans.tolist()) == Counter(sizes)
    assert (np.diff(rows) >= 0).all() and np.array_equal(np.unique(rows), np.arange(num_rows(groups)))
    assert not len(rows) or np.bincount(rows, spans).max() <= 40


@settings(max_examples=60, deadline=None)
@given(sizes=SIZES, length=st.integers(8, 70), epoch=st.integers(0, 3))
def test_each_token_comes_once_an_epoch(sizes, length, epoch, tokenizer):
    corpus = corpus_of_documents(sizes)
    source = PackedDocuments(corpus, tokenizer, length, SEED)
    pieces = pieces_of(whole_epoch(source, epoch), tokenizer)
    tokens = np.concatenate(pieces)
    text = np.concatenate(
        [corpus.tokens(np.array([s]), np.array([0]), int(n))[0] for s, n in enumerate(corpus.shard_tokens)]
    )
    assert np.array_equal(np.sort(tokens), np.sort(text[text != SEPARATOR]))
    assert all((np.diff(piece) == 1).all() for piece in pieces), "a piece is of one document"
    ends = np.flatnonzero(text == SEPARATOR)
    places = {token: place for place, token in enumerate(text.tolist())}
    documents = Counter(np.searchsorted(ends, [places[piece[0]] for piece in pieces]).tolist())
    expected = [-(-size // (length - 2)) for of_shard in sizes for size in of_shard]
    assert [documents[number] for number in range(len(expected))] == expected, "no document is cut that need not be"


@settings(max_examples=40, deadline=None)
@given(sizes=SIZES, overlap=st.integers(0, 10), epoch=st.integers(0, 2))
def test_pieces_of_a_document_overlap(sizes, overlap, epoch, tokenizer):
    source = PackedDocuments(corpus_of_documents(sizes), tokenizer, 16, SEED, overlap)
    pieces = sorted(pieces_of(whole_epoch(source, epoch), tokenizer), key=lambda piece: (piece[0], piece[-1]))
    for before, after in itertools.pairwise(pieces):
        is_next_document = after[0] == before[-1] + 2  # the numbers of tokens leave one out
        assert is_next_document or before[-1] + 1 - after[0] == overlap
    assert sum(map(len, pieces)) >= sum(map(sum, sizes))


def test_a_row_does_not_depend_on_its_batch(corpus, tokenizer):
    source = PackedDocuments(corpus, tokenizer, 48, SEED)
    copy = pickle.loads(pickle.dumps(source))
    order = source.order(SEED, True)
    numbers = np.arange(0, 3 * source.size, 7)
    whole = source.rows(*order.epochs_and_indices(numbers))
    for picked in ([5], [9, 2, 9], list(range(len(numbers)))[::-1]):
        part = copy.rows(*order.epochs_and_indices(numbers[picked]))
        for name, array in part.items():
            assert np.array_equal(array, whole[name][picked]), name


def test_epochs_differ(corpus, tokenizer):
    source = PackedDocuments(corpus, tokenizer, 48, SEED)
    epochs = [whole_epoch(source, epoch) for epoch in range(3)]
    starts = [{tuple(piece[:8]) for piece in pieces_of(rows, tokenizer)} for rows in epochs]
    assert len(starts[0] ^ starts[1]) > 20 and len(starts[1] ^ starts[2]) > 20, "long documents are cut at other places"
    neighbours = [{tuple(row[:24]) for row in rows["input_ids"]} for rows in epochs]
    assert neighbours[0] != neighbours[1] != neighbours[2]
    first, again = (whole_epoch(source, 0, is_shuffled=False) for _ in range(2))
    assert np.array_equal(first["input_ids"], again["input_ids"])


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=12),
    together=st.integers(1, 5),
    seed=st.integers(0, 9),
    epoch=st.integers(0, 3),
)
def test_an_order_of_blocks_is_a_permutation_by_blocks(sizes, together, seed, epoch):
    order = OrderOfBlocks(np.array(sizes), together, seed, is_shuffled=True)
    numbers = np.arange(epoch * order.size, (epoch + 1) * order.size)
    epochs, indices = order.epochs_and_indices(numbers)
    assert (epochs == epoch).all() and sorted(indices) == list(range(sum(sizes)))
    blocks = np.repeat(np.arange(len(sizes)), sizes)[indices]
    opened = [set(blocks[:at]) & set(blocks[at:]) for at in range(order.size)]
    assert max(map(len, opened)) <= together, "blocks of which examples are still to come"
    one_by_one = [order.epochs_and_indices(np.array([number])) for number in numbers[:5]]
    assert [int(index[0]) for _, index in one_by_one] == indices[:5].tolist()


def test_isolated_windows_number_their_documents(corpus, tokenizer):
    epochs, indices = np.zeros(9, int), np.arange(9)
    plain = FullWindows(corpus, tokenizer, 64, SEED).rows(epochs, indices)
    isolated = FullWindows(corpus, tokenizer, 64, SEED, isolates_documents=True).rows(epochs, indices)
    assert all(np.array_equal(plain[name], isolated[name]) for name in plain)
    assert isolated["segment_ids"].max() > 1
    for ids, segments, positions in zip(
        isolated["input_ids"], isolated["segment_ids"], isolated["position_ids"], strict=True
    ):
        ends = np.flatnonzero(ids == tokenizer.sep_id)
        assert segments[ends].tolist() == list(range(1, len(ends) + 1))
        for number, end in enumerate(ends, 1):
            own = np.flatnonzero(segments == number)
            assert own[-1] == end and (positions[own] == np.arange(len(own))).all()


@pytest.mark.parametrize("name", ["mlm", "rtd", "distillation"])
def test_the_losses_are_those_of_documents_apart(name, corpus, tokenizer, random_params, monkeypatch):
    """The same masks in packed rows, and with one piece a row."""
    monkeypatch.setattr(rtd, "_noise", lambda size, key, position: jnp.zeros(size))  # which depends on the row
    options = default_options()
    options["rtd"] = dataclasses.replace(options["rtd"], generator_size=0.5)
    options["distillation"] = dataclasses.replace(
        options["distillation"], folder="teacher", hidden_mse_weight=1.0, hidden_layers=("2:2",)
    )
    objectives = load((name,), options, tokenizer)
    config = DataConfig(sequence_length=64, packing="documents")
    stream = CorpusStream.build(corpus, tokenizer, config, objectives, seed=0)
    shared = np.flatnonzero(stream.batch(np.arange(stream.size))["segment_ids"].max(axis=1) > 1)
    batch = stream.batch(shared[:3])
    apart = unpacked(batch)
    assert len(apart["input_ids"]) >= 6
    model = build_model(dataclasses.replace(ENCODER, vocab_size=tokenizer.vocab_size), objectives)
    teacher = Model.build(model.config, {"mlm": MaskedLMHead})
    losses = Losses(model, objectives, {"distillation": {"teacher": teacher}} if name == "distillation" else {})
    frozen = {"distillation": {"teacher": random_params(teacher, seed=1)}} if name == "distillation" else {}
    params = random_params(model)
    packed_metrics, expected = (
        losses.compute(params, frozen, each, losses.normalizers(each))[1] for each in (batch, apart)
    )
    assert packed_metrics.keys() == expected.keys()
    for metric, value in packed_metrics.items():
        np.testing.assert_allclose(value, expected[metric], rtol=1e-5, atol=1e-5, err_msg=metric)


def unpacked(batch):
    """The batch with each segment in a row of its own."""
    length = batch["input_ids"].shape[1]
    rows = []
    for row in range(len(batch["input_ids"])):
        segments = batch["segment_ids"][row]
        for number in range(1, segments.max() + 1):
            own = np.flatnonzero(segments == number)
            apart = {
                name: np.pad(batch[name][row, own], (0, length - len(own))) for name in ("input_ids", "attention_mask")
            }
            apart["token_type_ids"] = np.zeros(length, np.int32)
            apart["example_weights"] = np.float32(1)
            positions = batch["mlm_positions"][row]
            is_own = (batch["mlm_weights"][row] > 0) & np.isin(positions, own)
            apart["mlm_positions"] = np.where(is_own, positions - own[0], 0).astype(np.int32)
            apart["mlm_labels"] = np.where(is_own, batch["mlm_labels"][row], 0)
            apart["mlm_weights"] = is_own.astype(np.float32)
            rows.append(apart)
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"packing": "documents", "document_overlap": 30}, "document_overlap=30 must be from 0 to 29"),
        ({"packing": "documents"}, "an objective makes pairs"),
        ({"isolate_documents": True}, "an objective makes pairs"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message, corpus, tokenizer):
    names = ("mlm", "nsp") if "pairs" in message else ("mlm",)
    objectives = load(names, default_options(), tokenizer)
    config = DataConfig(sequence_length=32, **changes)
    with pytest.raises(UserError, match=message):
        CorpusStream.build(corpus, tokenizer, config, objectives, seed=0)


@pytest.mark.parametrize(
    "changes, message",
    [({"packing": "best"}, "packing='best' is not one of"), ({"document_overlap": 3}, "is for packing='documents'")],
)
def test_invalid_options(changes, message):
    with pytest.raises(ValueError, match=message):
        DataConfig(**changes)


def test_damaged_or_missing_lengths(corpus_dir, tmp_path, tokenizer):
    shutil.copytree(corpus_dir, tmp_path / "corpus")
    path = tmp_path / "corpus" / lengths_file("train")
    stored = np.load(path)
    for content, message in (
        (stored[:-1], r"damaged \(not [\d,]+ values of type int32\)"),
        (stored.astype(np.int64), r"damaged \(not"),
        (None, "has no lengths of documents"),
    ):
        path.unlink()
        if content is not None:
            np.save(path, content)
        with pytest.raises(UserError, match=message):
            PackedDocuments(Corpus.open(tmp_path / "corpus"), tokenizer, 32, SEED)
    path.write_bytes(b"no array")
    with pytest.raises(UserError, match="damaged"):
        PackedDocuments(Corpus.open(tmp_path / "corpus"), tokenizer, 32, SEED)


def test_lengths_are_those_of_the_documents(corpus):
    lengths = [corpus.document_lengths(shard) for shard in range(len(corpus.shard_tokens))]
    assert sum(map(len, lengths)) == corpus.num_documents
    for shard, of_shard in enumerate(lengths):
        tokens = corpus.tokens(np.array([shard]), np.array([0]), int(corpus.shard_tokens[shard]))[0]
        ends = np.flatnonzero(tokens == corpus.special_ids["sep"])
        assert np.array_equal(np.diff(ends, prepend=-1) - 1, of_shard)


@pytest.mark.parametrize(
    "options", [{"data.packing": "documents", "data.document_overlap": 4}, {"data.isolate_documents": True}]
)
def test_a_run_on_packed_rows(options, tiny_config, tmp_path, monkeypatch):
    """Trained and evaluated on eight devices, stopped and resumed, it is the run that was not."""
    settings = {"train.num_steps": 6, "train.eval_every": 3, "checkpoint.every": 3, "parallel.fsdp": 2} | options
    values = tiny_config(objectives=("mlm",), **settings)
    run.run_training(values, tmp_path / "whole")
    stopping = iter([False, False, False, False, True])
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(run.hosts, "stop_signal", lambda: type("Stop", (), {"requested": lambda self: next(stopping)})())
        run.run_training(values, tmp_path / "stopped")
    run.run_training(values, tmp_path / "stopped")
    assert rows(tmp_path / "stopped") == rows(tmp_path / "whole")
