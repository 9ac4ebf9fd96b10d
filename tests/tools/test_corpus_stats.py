"""The page about a corpus: its figures are those of the documents, it is safe, and it is made of older corpora as well."""

import json
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from bert_jax.data.corpus.format import Corpus
from bert_jax.data.corpus.index import read_index
from bert_jax.data.corpus.statistics import LENGTH_BINS
from bert_jax.data.sources.documents import Document
from tests.data.corpus.test_corpus import make, some_documents, stream_of
from tests.running import ROOT, assert_one_line, run
from tests.tools.test_report import drawings
from tools.corpus_stats import corpus_page
from tools.lib import corpus_scan


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("stats") / "corpus"
    make(folder, some_documents(60), source="<script>alert(1)</script>")
    return folder


def command(*flags: str) -> list[str]:
    return [sys.executable, str(ROOT / "tools" / "corpus_stats.py"), *flags]


@pytest.mark.parametrize("part", [100, 1 << 20])
def test_the_scan_counts_what_is_in_the_documents(prepared, monkeypatch, part):
    monkeypatch.setattr(corpus_scan, "_READ_TOKENS", part)
    statistics = read_index(prepared)["statistics"]
    for split, counts in statistics["splits"].items():
        corpus, shards = Corpus.open(prepared, split), []
        scanned = corpus_scan.scan(corpus, partial(shards.append, 1))
        assert len(shards) == len(corpus.shard_tokens)
        bins = [(start, count) for start, count in zip(LENGTH_BINS, scanned.documents.tolist(), strict=True) if count]
        assert bins == counts["lengths"]
        assert scanned.tokens.sum() == scanned.token_counts.sum() == corpus.num_tokens - corpus.num_documents
        expected = corpus.token_counts()
        expected[corpus.special_ids["sep"]] = 0
        assert np.array_equal(scanned.token_counts, expected)
        starts = np.array(LENGTH_BINS)
        assert (scanned.tokens >= scanned.documents * starts).all()
        assert (scanned.tokens[:-1] < scanned.documents[:-1] * starts[1:])[scanned.documents[:-1] > 0].all()


def test_the_page(prepared):
    page = corpus_page(prepared)
    assert len(drawings(page)) == 4
    assert "<script" not in page and "&lt;script&gt;alert(1)" in page and "src=" not in page
    index = read_index(prepared)
    documents = sum(split["documents"] for split in index["splits"].values())
    assert f"<b>{documents:,}</b><span>documents</span>" in page
    words = sum(counts["words"] for counts in index["statistics"]["splits"].values())
    tokens = len(stream_of(some_documents(60))[0]) - documents
    assert f"<b>{tokens / words:.2f}</b><span>tokens per word</span>" in page
    assert "<td>without tokens</td><td>8</td>" in page
    assert corpus_page(prepared) == page  # the same every time


def test_an_older_corpus_and_one_without_a_training_split(prepared, tmp_path):
    make(tmp_path / "c", [Document("d", "abc de"), Document("e", "fgh")], held_out_fraction=1.0)
    index = json.loads((tmp_path / "c" / "corpus.json").read_text())
    del index["statistics"]
    (tmp_path / "c" / "corpus.json").write_text(json.dumps(index))
    page = corpus_page(tmp_path / "c")
    assert (
        len(drawings(page)) == 3 and "An older version prepared this corpus" in page and "tokens per word" not in page
    )


def test_the_command(prepared, tmp_path):
    page = tmp_path / "page.html"
    assert run(command(f"--corpus={prepared}", f"--output={page}")).stdout == f"{page}\n"
    assert page.read_text() == corpus_page(prepared)
    refused = run(command(f"--corpus={tmp_path}"), code=2)
    assert_one_line(refused.stderr, f"--corpus={tmp_path}: no finished corpus; use a folder made by")
