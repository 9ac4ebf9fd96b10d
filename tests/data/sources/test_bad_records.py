"""Records that cannot be read: an error that names them, or, where the user allows it, skipped and counted."""

import logging
import sys
from pathlib import Path

import pytest

from bert_jax.data.sources import base
from bert_jax.data.sources.base import BadRecords
from bert_jax.data.sources.documents import read_documents
from bert_jax.errors import UserError
from tests.data.sources import tables
from tests.running import ROOT, assert_one_line, run

TEXTS = [f"a text with the number {number}" for number in range(100, 130)]
BAD = (3, 4, 20)


def jsonl(folder: Path) -> tuple[str, list[str], dict[str, int]]:
    lines = [b'{"text": "%s"}' % text.encode() for text in TEXTS]
    for number, bad in zip(BAD, [b"{", b"[]", b'{"text": "\xc3"}'], strict=True):
        lines[number] = bad
    (folder / "a.jsonl").write_bytes(b"\n".join(lines))
    places = [f"a.jsonl:{number + 1}: " for number in BAD[:2]]
    return f"jsonl:{folder}/a.jsonl", [*places, "at byte "], {"invalid_json": 1, "no_field": 1, "not_text": 1}


def text(folder: Path) -> tuple[str, list[str], dict[str, int]]:
    documents = [text.encode() for text in TEXTS]
    for number, bad in zip(BAD, [b"\xff", b"before\n\xfe\nafter\n\xfe", b"x\0"], strict=True):
        documents[number] = bad
    (folder / "a.txt").write_bytes(b"\n\n".join(documents))
    return f"text:{folder}/a.txt", ["a.txt: not UTF-8 at byte ", "a.txt: not UTF-8", "NUL byte"], {"not_text": 3}


def in_binary(path: Path) -> None:
    """Makes some texts of a file of Arrow's or Parquet's invalid; values are stored as they are."""
    content = path.read_bytes()
    for number in BAD:
        content = content.replace(TEXTS[number].encode(), b"\xff" + TEXTS[number].encode()[1:])
    path.write_bytes(content)


def parquet(folder: Path) -> tuple[str, list[str], dict[str, int]]:
    path = folder / "a.parquet"
    plain = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    in_binary(tables.write_parquet(path, TEXTS, row_group_size=7, **plain))
    return f"parquet:{path}", [f"{path}: row {number + 1}: 'text' is not UTF-8" for number in BAD], {"not_text": 3}


def arrow(folder: Path) -> tuple[str, list[str], dict[str, int]]:
    path = tables.write_arrow(folder / "saved", [TEXTS]) / "data-00000-of-00001.arrow"
    in_binary(path)
    return f"arrow:{folder}/saved", [f"{path}: row {number + 1}: 'text'" for number in BAD], {"not_text": 3}


def tfds(folder: Path, file_format: str) -> tuple[str, list[str], dict[str, int]]:
    dataset = tables.write_tfds(folder / "tiny", {"train": TEXTS}, file_format, shards=2)
    places = []
    for number in BAD:
        shard, place = divmod(number, len(TEXTS) // 2)
        path = dataset / f"tiny-train.{file_format}-0000{shard}-of-00002"
        content = bytearray(path.read_bytes())
        content[content.index(TEXTS[number].encode())] ^= 1
        path.write_bytes(content)
        places.append(f"{path}: record {place}: ")
    return f"tfds:{dataset}", places, {"damaged": 3}


@pytest.fixture(params=["jsonl", "text", "parquet", "arrow", "tfrecord", "array_record"])
def faulty(request, tmp_path) -> tuple[str, list[str], dict[str, int]]:
    """A source, the places of the bad records as messages name them, and their numbers by kind."""
    make = {"jsonl": jsonl, "text": text, "parquet": parquet, "arrow": arrow}.get(request.param)
    return make(tmp_path) if make else tfds(tmp_path, request.param)


def test_bad_records(faulty):
    spec, places, counts = faulty
    for most, place in enumerate(places):
        with pytest.raises(UserError) as error:
            list(read_documents(spec, bad=BadRecords(most) if most else None))
        assert place in str(error.value) and "\n" not in str(error.value)
        assert (f"({most} skipped before" in str(error.value)) == bool(most)
    bad = BadRecords(len(places))
    documents = list(read_documents(spec, bad=bad))
    assert [document.text for document in documents] == [text for n, text in enumerate(TEXTS) if n not in BAD]
    assert bad.counts == counts and len(bad.messages) == len(places)
    assert all(place in message for place, (_, message) in zip(places, bad.messages, strict=True))


@pytest.mark.parametrize("faulty", ["text", "parquet"], indirect=True)
def test_ids_do_not_depend_on_them(faulty, tmp_path):
    """So a document stays in its split when another one is repaired."""
    kind = faulty[0].partition(":")[0]
    ids = [document.id for document in read_documents(faulty[0], bad=BadRecords(3))]
    if kind == "text":
        (tmp_path / "a.txt").write_text("\n\n".join(TEXTS))
    else:
        tables.write_parquet(tmp_path / "a.parquet", TEXTS)
    assert ids == [document.id for n, document in enumerate(read_documents(faulty[0])) if n not in BAD]


def test_the_log_names_the_first_ones(caplog, monkeypatch):
    monkeypatch.setattr(base, "_LOGGED", 2)
    bad = BadRecords(5)
    with caplog.at_level(logging.WARNING, logger=base.__name__):
        for number in range(5):
            bad.skip("damaged", f"record {number}")
    messages = [record.getMessage() for record in caplog.records]
    assert messages == ["skipped: record 0", "skipped: record 1; others are only counted"]


def test_training_a_tokenizer(tmp_path):
    spec, places, _ = jsonl(tmp_path)
    command = [sys.executable, str(ROOT / "tools" / "train_tokenizer.py"), f"--source={spec}", "--vocab_size=60"]
    command += [f"--output={tmp_path}/tokenizer"]
    assert places[2] in run([*command, "--skip_bad_records=2"], code=2).stderr.splitlines()[-1]
    done = run([*command, "--skip_bad_records=3"])
    assert "records that could not be read: 1 invalid_json, 1 no_field, 1 not_text" in done.stdout


@pytest.mark.parametrize("workers", [1, 2])
def test_the_command(workers, tokenizer, tmp_path):
    spec, places, _ = jsonl(tmp_path)
    tokenizer.save(tmp_path / "tokenizer")
    command = [sys.executable, str(ROOT / "tools" / "prepare_corpus.py"), f"--source={spec}", "--held_out=0"]
    command += [f"--tokenizer={tmp_path}/tokenizer", f"--output={tmp_path}/corpus", f"--workers={workers}"]
    assert_one_line(run(command, code=2).stderr.splitlines(keepends=True)[-1], places[0])
    refused = run([*command, "--skip_bad_records=2"], code=2).stderr.splitlines()[-1]
    assert places[2] in refused and "(2 skipped before, as --skip_bad_records allows)" in refused
    done = run([*command, "--skip_bad_records=3"])
    assert "27 documents (0 empty ones skipped)" in done.stdout
    assert "records that could not be read: 1 invalid_json, 1 no_field, 1 not_text" in done.stdout
    assert f"skipped: {tmp_path}/a.jsonl:4: invalid JSON" in done.stderr
    again = run(command)
    assert "already finished" in again.stdout and "records that could not be read: 1 inv" in again.stdout
