"""Sources at URLs: the documents, with their ids, are those of the same files on a disk, whatever the network does."""

import bz2
import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from bert_jax.data import remote
from bert_jax.data.sources.documents import read_documents
from bert_jax.errors import UserError
from tests.data.sources.tables import write_arrow, write_parquet
from tests.data.urls import change, requests_of, upload

TEXTS = [f"Document {number}. It has {number % 7} sentences. " * (1 + number % 40) for number in range(300)]
SOURCES = {
    "text:{}/text/**/*.txt": "text/b/2.txt",
    "text:{}/text/one.txt.gz": "text/one.txt.gz",
    "jsonl:{}/lines-*.jsonl.bz2:body": "lines-1.jsonl.bz2",
    "parquet:{}/tables/*.parquet": "tables/1.parquet",
    "arrow:{}/saved": "saved/data-00000-of-00002.arrow",
    "wikipedia-xml:{}/wiki.xml.bz2": "wiki.xml.bz2",
}
PAGE = "<page><title>T{0}</title><ns>0</ns><id>{0}</id><revision><id>1{0}</id><text>{1}</text></revision></page>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    for name in ("text/a/1.txt", "text/b/2.txt", "text/3.txt"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n\n".join(TEXTS))
    (folder / "text" / "one.txt.gz").write_bytes(gzip.compress("\n\n".join(TEXTS).encode()))
    for number in range(2):
        lines = "\n".join(json.dumps({"body": text}) for text in TEXTS)
        (folder / f"lines-{number}.jsonl.bz2").write_bytes(bz2.compress(lines.encode()))
    (folder / "tables").mkdir()
    for number in range(2):
        write_parquet(folder / "tables" / f"{number}.parquet", TEXTS, row_group_size=100)
    write_arrow(folder / "saved", [TEXTS[:200], TEXTS[200:]])
    pages = "".join(PAGE.format(number, text) for number, text in enumerate(TEXTS, 1))
    dump = f"<mediawiki><siteinfo><dbname>tinywiki</dbname></siteinfo>{pages}</mediawiki>"
    (folder / "wiki.xml.bz2").write_bytes(bz2.compress(dump.encode()))
    return folder


@pytest.fixture(params=["memory", "s3"])
def url(request, folder) -> str:
    return upload(folder, f"{request.getfixturevalue(request.param)}/sources")


@pytest.fixture
def small_steps(monkeypatch) -> None:
    """Files are read in many requests, although they are small."""
    monkeypatch.setattr(remote, "_FIRST_STEP", 500)
    monkeypatch.setattr(remote, "_LARGEST_STEP", 2000)


@pytest.mark.parametrize("source", SOURCES)
def test_the_documents_are_those_of_local_files(source, folder, url):
    shares = list[float]()
    documents = [*read_documents(source.format(folder))]
    assert len(documents) >= len(TEXTS) - 1
    assert [*read_documents(source.format(url), progress=shares.append)] == documents
    assert shares == sorted(shares) and shares[-1] == 1.0


@pytest.mark.parametrize("source", SOURCES)
def test_a_network_that_fails_now_and_then_changes_nothing(source, folder, memory, small_steps):
    url = upload(folder, memory)
    with requests_of(url, fail=lambda number: number % 3 > 0) as noted:
        documents = [*read_documents(source.format(url))]
    assert len(noted) > 2 and documents == [*read_documents(source.format(folder))]


@pytest.mark.parametrize("source", SOURCES)
def test_a_network_that_stays_away_is_one_line(source, folder, memory, small_steps):
    """Also from within pyarrow and the decompressors, which wrap other errors."""
    url = upload(folder, memory)
    with requests_of(url, fail=lambda number: number > 0), pytest.raises(UserError) as error:
        for _ in read_documents(source.format(url)):
            pass
    assert str(error.value).startswith(url) and "Connection reset by peer, 4 times; check the network" in str(
        error.value
    )


@pytest.mark.parametrize("source", SOURCES)
def test_a_damaged_file_is_named(source, folder, memory):
    url = upload(folder, memory)
    name = f"{url}/{SOURCES[source]}"
    change(name, lambda content: content[: len(content) // 2] if "text/b" not in name else b"\xff" + content)
    with pytest.raises(UserError, match=f"^{name}: "):
        for _ in read_documents(source.format(url)):
            pass


def test_of_a_table_only_the_field_is_read(memory, tmp_path):
    rng = np.random.default_rng(0)
    columns = {"text": TEXTS[:50], "image": [rng.bytes(200_000) for _ in range(50)]}
    parquet.write_table(pa.table(columns), tmp_path / "wide.parquet", compression="none")
    url = upload(tmp_path, memory)
    with requests_of(url) as noted:
        assert [document.text for document in read_documents(f"parquet:{url}/wide.parquet")] == TEXTS[:50]
    assert sum(stop - start for _, start, stop in noted) < 1_500_000 < (tmp_path / "wide.parquet").stat().st_size // 5


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("text:{}/none/*.txt", "{}/none/\\*.txt: missing"),
        ("text:{}/*.none", "{}/\\*.none: matches no file; use the path of a file or a glob pattern"),
        ("arrow:{}/text", "{}/text: no saved dataset, because it has no state.json"),
        ("parquet:{}/tables/*.parquet:body", "{}/tables/0.parquet: no text field 'body' .*text"),
        ("jsonl:{}/lines-0.jsonl.bz2", "{}/lines-0.jsonl.bz2:1: no field 'text'"),
        ("tfds:{}/tables", "tfds:{}/tables: is read from local folders only; copy the dataset"),
    ],
)
def test_mistakes(source, message, folder, url):
    with pytest.raises(UserError, match=message.format(url)):
        next(iter(read_documents(source.format(url))))
