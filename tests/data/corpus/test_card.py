"""What preparation counts, against a count of the documents themselves; the README.md of a corpus; corpora without either."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from bert_jax.data.corpus.card import REASON_TEXTS, corpus_card, documents_by_fate
from bert_jax.data.corpus.cleaning import REASONS, Cleaning
from bert_jax.data.corpus.format import Corpus
from bert_jax.data.corpus.index import read_index
from bert_jax.data.corpus.statistics import LENGTH_BINS, add_counts, count_text, median_length
from bert_jax.data.sources.documents import Document, held_out
from tests.data.corpus.test_corpus import FRACTION, TOKENIZER, contents, make, some_documents, stream_of

GOLDEN = Path(__file__).parent / "card.md"


@pytest.fixture(scope="module")
def documents() -> list[Document]:
    unknown = [Document(f"u{number}", "abc xyz defg") for number in range(9)]  # x, y and z are not in the vocabulary
    return [*some_documents(60), *unknown]


@pytest.fixture(scope="module")
def prepared(documents, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("counted") / "corpus"
    make(
        folder, documents, source="a *source* | with <marks>", cleaning=Cleaning(min_characters=2, drop_duplicates=True)
    )
    return folder


def kept_documents(documents: list[Document], held: bool) -> list[Document]:
    """Those of a split that have tokens, each text once."""
    first = {document.text: document for document in reversed(documents)}
    return [
        document
        for document in documents
        if first[document.text] is document
        and held_out(document.id, FRACTION) == held
        and len(stream_of([document])[0])
    ]


def test_counts_are_those_of_the_documents(documents, prepared):
    index = read_index(prepared)
    statistics = index["statistics"]
    assert statistics["documents_read"] == len(documents) == sum(documents_by_fate(index).values()) - len(documents)
    # An empty document of some_documents is 3 characters long, and always the same.
    assert statistics["dropped"] == {"duplicate": 8 + 60 // 7 - 1} and index["skipped_documents"] == 1
    for split, counts in statistics["splits"].items():
        of_split = kept_documents(documents, split == "validation")
        assert len(of_split) == index["splits"][split]["documents"]
        tokens = [stream_of([document])[0][:-1] for document in of_split]
        lengths = [len(ids) for ids in tokens]
        assert counts["text_bytes"] == sum(len(document.text.encode()) for document in of_split)
        assert counts["words"] == sum(len(document.text.split()) for document in of_split)
        assert counts["unknown_tokens"] == sum(np.count_nonzero(ids == TOKENIZER.unk_id) for ids in tokens)
        assert counts["longest_document"] == max(lengths)
        bins = Counter(max(start for start in LENGTH_BINS if start <= length) for length in lengths)
        assert counts["lengths"] == sorted(bins.items())
        assert 0.7 <= median_length(counts["lengths"]) / np.median(lengths) <= 1.5
    assert (
        sum(counts["unknown_tokens"] for counts in statistics["splits"].values()) == 1
    )  # of one word, in one document


words = st.lists(st.sampled_from(["ab", "é", "שלום", " ", "\n", "  ", "\t", "🙂."]), max_size=30).map("".join)


@settings(max_examples=50, deadline=None)
@given(st.lists(words, max_size=8))
def test_words_are_those_of_ascii_white_space(texts):
    counted = count_text(texts, np.tile([7, 3], len(texts)), 2 * np.arange(len(texts)), unk_id=1)
    assert counted["words"] == sum(len(text.split()) for text in texts)
    assert counted["lengths"] == ([(1, len(texts))] if texts else [])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.integers(1, 1 << 25), min_size=1, max_size=30), min_size=1, max_size=4))
def test_histograms_are_bounded_and_add_up(parts):
    counts = []
    for lengths in parts:
        ends = np.cumsum(np.array(lengths) + 1)
        tokens = np.broadcast_to(np.int32(7), ends[-1])
        counts.append(count_text(["a b"] * len(lengths), tokens, ends - np.array(lengths) - 1, unk_id=1))
    total = add_counts(counts)
    everything = [length for lengths in parts for length in lengths]
    assert sum(count for _, count in total["lengths"]) == len(everything) == total["words"] / 2
    assert total["longest_document"] == max(everything) and len(total["lengths"]) <= len(LENGTH_BINS) < 64
    assert total["lengths"][-1][0] <= max(everything) < 2 * total["lengths"][-1][0]


def test_the_card_is_written_from_the_index(prepared):
    """The same text as tests/data/corpus/card.md, which a person has read; a difference shows what has changed."""
    written = (prepared / "README.md").read_text()
    assert written == corpus_card(read_index(prepared))
    assert written == GOLDEN.read_text(), f"if it should be so: cp {prepared}/README.md {GOLDEN}"


def test_names_in_the_card_are_shown_literally(prepared):
    page = MarkdownIt("commonmark").enable("table").render((prepared / "README.md").read_text())
    assert "documents of a *source* | with &lt;marks&gt;, tokenized" in page and page.count("<table>") == 2


def test_every_reason_has_a_text():
    assert set(REASON_TEXTS) == {*REASONS, "empty"}


def test_the_fingerprint_depends_on_texts_tokenizer_and_settings_only(documents, prepared, tmp_path):
    def fingerprint(name: str, texts: list[Document], **options) -> str:
        make(tmp_path / name, texts, **({"cleaning": Cleaning(min_characters=2, drop_duplicates=True)} | options))
        return read_index(tmp_path / name)["statistics"]["fingerprint"]

    same = fingerprint("same", documents, source="another name")
    assert same == read_index(prepared)["statistics"]["fingerprint"]
    others = [
        fingerprint("text", [*documents[:-30], Document("d", "abc")]),
        fingerprint("held_out", documents, held_out_fraction=0.5),
        fingerprint("cleaning", documents, cleaning=Cleaning()),
    ]
    assert len({same, *others}) == 4


def test_corpora_of_older_versions(prepared, tmp_path):
    """Their index has no statistics; they are opened, and preparing them again does nothing."""
    make(tmp_path / "c", some_documents(30))
    (tmp_path / "c" / "README.md").unlink()
    index = json.loads((tmp_path / "c" / "corpus.json").read_text())
    del index["statistics"]
    (tmp_path / "c" / "corpus.json").write_text(json.dumps(index))
    before = contents(tmp_path / "c")
    assert Corpus.open(tmp_path / "c").num_documents > 0
    summary = make(tmp_path / "c", [])
    assert summary.already and summary.dropped == {} and contents(tmp_path / "c") == before
