"""Preparation in two stages: the same bytes as in one process, whatever the order, the interruptions and the runner before."""

import itertools
import json
import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_jax.data.corpus import distributed, inspection, spool
from bert_jax.data.corpus.cleaning import NO_CLEANING, Cleaning
from bert_jax.data.corpus.prepare import prepare, prepare_distributed
from bert_jax.data.corpus.spool import read_texts, writing_texts
from bert_jax.data.sources.base import BadRecords
from bert_jax.data.sources.documents import Document, Source
from bert_jax.errors import UserError
from tests.data.corpus.test_cleaning import ALL, repeated_documents
from tests.data.corpus.test_corpus import FRACTION, TOKENIZER, contents, fails, some_documents
from tests.data.sources import tables

FILES = 5
OPTIONS = {"held_out_fraction": FRACTION, "shard_megabytes": 0.02}


def write_source(kind: str, folder: Path, documents: Sequence[Document], files: int = FILES) -> Source:
    """Writes texts as a source of several files."""
    folder.mkdir(exist_ok=True)
    step = max(1, -(-len(documents) // files))
    parts = [documents[start : start + step] for start in range(0, max(1, len(documents)), step)]
    texts = [[document.text for document in part] for part in parts]
    if kind == "arrow":
        return Source(f"arrow:{tables.write_arrow(folder / 'saved', texts)}")
    if kind in ("tfrecord", "array_record"):
        every = [text for part in texts for text in part]
        return Source(f"tfds:{tables.write_tfds(folder / 'tiny', {'train': every}, kind, shards=files)}")
    for number, part in enumerate(texts):
        path = folder / f"{number}.{kind}"
        if kind == "parquet":
            tables.write_parquet(path, part)
        elif kind == "jsonl":
            path.write_text("".join(json.dumps({"text": text}) + "\n" for text in part))
        else:
            path.write_text("\n\n".join(text.replace("\x00", "").replace("\x07", "") for text in part))
    return Source(f"{kind}:{folder}/*.{kind}")


def in_one_process(source: Source, output: Path, cleaning: Cleaning = NO_CLEANING, most: int = 0):
    bad = BadRecords(most)
    documents = source.documents(source.files(), bad)
    options = OPTIONS | {"cleaning": cleaning, "source": source.description, "bad": bad}
    return prepare(documents, TOKENIZER, output, **options)


def in_stages(
    source: Source, output: Path, for_each: distributed.ForEach, cleaning: Cleaning = NO_CLEANING, most: int = 0
):
    bad = BadRecords(most)
    return prepare_distributed(source, TOKENIZER, output, for_each, cleaning=cleaning, bad=bad, **OPTIONS)


def in_disorder(function: Callable[[int], None], numbers: Sequence[int]) -> None:
    """Does the work in random order, some of it twice, as runners may."""
    order = [*numbers, *list(numbers)[::3]]
    random.Random(len(order)).shuffle(order)
    for number in order:
        function(number)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    """A part for each file, and many segments of texts."""
    monkeypatch.setattr(inspection, "_PART_BYTES", 1)
    monkeypatch.setattr(inspection, "_ROWS", 7)
    monkeypatch.setattr(spool, "_SEGMENT", 10_000)


@pytest.mark.parametrize("kind", ["text", "jsonl", "parquet", "arrow", "tfrecord", "array_record"])
@pytest.mark.parametrize("cleans", [False, True])
def test_the_bytes_are_those_of_one_process(kind, cleans, rensa, tmp_path):
    cleaning = Cleaning(**ALL, drop_near_duplicates=0.9) if cleans else NO_CLEANING
    source = write_source(kind, tmp_path / "source", repeated_documents())
    one = in_one_process(source, tmp_path / "one", cleaning)
    assert in_stages(source, tmp_path / "stages", in_disorder, cleaning) == one
    assert contents(tmp_path / "stages") == contents(tmp_path / "one")
    assert bool(one.dropped) == cleans and one.shards >= 3
    assert in_stages(source, tmp_path / "stages", in_disorder, cleaning) == one._replace(already=True)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from([0, 1, 30, 3000, 9000]), max_size=30), st.integers(1, 6), st.integers(0, 2**32))
def test_any_documents(tmp_path_factory, sizes, files, seed):
    draw = random.Random(seed)
    documents = [Document("", "".join(draw.choices("abc d.", k=size))) for size in sizes]
    folder = tmp_path_factory.mktemp("any")
    source = write_source("jsonl", folder / "source", documents, files)
    results = []
    for name, make in (
        ("one", in_one_process),
        ("stages", lambda *arguments: in_stages(*arguments[:2], in_disorder, *arguments[2:])),
    ):
        try:
            make(source, folder / name, Cleaning(drop_duplicates=bool(seed % 2)))
            results.append(contents(folder / name))
        except UserError as error:
            results.append(str(error))
    assert results[0] == results[1]


@pytest.mark.parametrize("kind", ["jsonl", "arrow", "array_record"])
def test_workers_in_other_folders(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = write_source(kind, Path("source"), some_documents(20))
    assert f":{tmp_path}" not in source.spec

    def for_each(function: Callable[[int], None], numbers: Sequence[int]) -> None:
        with monkeypatch.context() as elsewhere:
            elsewhere.chdir("/")
            in_disorder(function, numbers)

    in_stages(source, Path("stages"), for_each)
    in_one_process(source, Path("one"))
    assert contents(Path("stages")) == contents(Path("one"))


def test_files_are_grouped(tmp_path, monkeypatch):
    monkeypatch.setattr(inspection, "_PART_BYTES", 1 << 26)
    source = write_source("jsonl", tmp_path / "source", some_documents(60), files=20)
    counts = list[int]()

    def for_each(function: Callable[[int], None], numbers: Sequence[int]) -> None:
        counts.append(len(numbers))
        in_disorder(function, numbers)

    in_stages(source, tmp_path / "stages", for_each)
    assert counts[0] == 1, "small files are one part"
    in_one_process(source, tmp_path / "one")
    assert contents(tmp_path / "stages") == contents(tmp_path / "one")


class Interrupted(Exception):
    pass


def stopping_after(calls: int) -> distributed.ForEach:
    """Works until so many calls are done."""
    left = itertools.count(calls, -1)

    def for_each(function: Callable[[int], None], numbers: Sequence[int]) -> None:
        for number in reversed(numbers):
            if not next(left):
                raise Interrupted
            function(number)

    return for_each


@pytest.mark.parametrize("calls", [0, 2, FILES, FILES + 3])
def test_interrupted_and_resumed(calls, tmp_path, monkeypatch):
    source = write_source("jsonl", tmp_path / "source", some_documents(60))
    with pytest.raises(Interrupted):
        in_stages(source, tmp_path / "stages", stopping_after(calls))
    work = tmp_path / "stages" / "unfinished"
    written = {path: path.stat().st_mtime_ns for path in [*work.glob("*.array_record"), *work.glob("inspected/*.rows")]}
    assert len(written) == calls
    (work / "inspected" / "draft1.2").write_bytes(b"of a process that was killed")

    def check_and_work(function: Callable[[int], None], numbers: Sequence[int]) -> None:
        in_disorder(function, numbers)
        assert all(path.stat().st_mtime_ns == time for path, time in written.items()), "done again"

    in_stages(source, tmp_path / "stages", check_and_work)
    in_one_process(source, tmp_path / "one")
    assert contents(tmp_path / "stages") == contents(tmp_path / "one")


@pytest.mark.parametrize("begun", ["here", "in stages"])
def test_begun_by_one_runner_and_finished_by_the_other(begun, tmp_path):
    source, output = write_source("jsonl", tmp_path / "source", some_documents(60)), tmp_path / "mixed"
    if begun == "here":
        last = tmp_path / "source" / f"{FILES - 1}.jsonl"
        whole = last.read_bytes()
        last.write_bytes(b"{")
        with pytest.raises(UserError, match="invalid JSON"):
            in_one_process(source, output)
        last.write_bytes(whole)
    else:
        with pytest.raises(Interrupted):
            in_stages(source, output, stopping_after(FILES + 3))
    written = {path.stat().st_mtime_ns for path in output.glob("unfinished/*.array_record")}
    assert len(written) >= 3
    if begun == "here":
        in_stages(source, output, in_disorder)
    else:
        in_one_process(source, output)
    assert written <= {path.stat().st_mtime_ns for path in output.glob("*array_record*")}, "written again"
    in_one_process(source, tmp_path / "one")
    assert contents(output) == contents(tmp_path / "one")


def test_a_file_that_changes_is_inspected_again(tmp_path):
    source = write_source("jsonl", tmp_path / "source", some_documents(60))
    with pytest.raises(Interrupted):
        in_stages(source, tmp_path / "stages", stopping_after(FILES + 3))
    path = tmp_path / "source" / "1.jsonl"
    status = path.stat()
    path.write_text(path.read_text().replace("a", "b"))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert path.stat().st_size == status.st_size
    in_stages(source, tmp_path / "stages", in_disorder)
    in_one_process(source, tmp_path / "one")
    assert contents(tmp_path / "stages") == contents(tmp_path / "one")


# ----------------------------------------------------------------------------------------------------------------------
# Errors
# ----------------------------------------------------------------------------------------------------------------------


def damage(path: Path, *lines: int) -> None:
    """Makes lines of a JSON lines file invalid in different ways."""
    content = path.read_bytes().splitlines(keepends=True)
    for number, bad in zip(
        lines, itertools.cycle([b'{"text":\n', b'{"body": "x"}\n', b'{"text": "\xff"}\n']), strict=False
    ):
        content[number] = bad
    path.write_bytes(b"".join(content))


def test_records_that_cannot_be_read(tmp_path):
    source = write_source("jsonl", tmp_path / "source", some_documents(60))
    damage(tmp_path / "source" / "1.jsonl", 2, 3, 4)
    damage(tmp_path / "source" / "3.jsonl", 0)
    outputs = [tmp_path / "one", tmp_path / "stages"]
    makes = [in_one_process, lambda *arguments: in_stages(*arguments[:2], in_disorder, *arguments[2:])]
    for most in range(4):  # each time in the folder of the attempt before
        messages = list[str]()
        for output, make in zip(outputs, makes, strict=True):
            with pytest.raises(UserError) as error:
                make(source, output, NO_CLEANING, most)
            messages.append(str(error.value))
        assert messages[0] == messages[1]
        assert f"{tmp_path}/source/{'3.jsonl:1' if most == 3 else '1.jsonl'}:" in messages[0]
        assert ("skipped before" in messages[0]) == bool(most)
    one, stages = (make(source, output, NO_CLEANING, 4) for output, make in zip(outputs, makes, strict=True))
    assert one == stages and one.bad_records == {"invalid_json": 2, "no_field": 1, "not_text": 1}
    assert one.documents + one.skipped == 60 - 4
    assert contents(outputs[0]) == contents(outputs[1])
    card = (tmp_path / "one" / "README.md").read_text()
    assert "4 records could not be read: 2 invalid JSON, 1 without the field of the text, 1 not UTF-8 text." in card


def test_the_first_error_of_the_source_is_reported(tmp_path):
    """Whatever worker comes upon another one before."""
    source = write_source("parquet", tmp_path / "source", some_documents(60))
    for number in (1, 3):
        path = tmp_path / "source" / f"{number}.parquet"
        path.write_bytes(path.read_bytes()[:-5])
    messages = list[str]()
    for make in (
        lambda: in_one_process(source, tmp_path / "a"),
        lambda: in_stages(source, tmp_path / "b", in_disorder),
    ):
        with pytest.raises(UserError) as error:
            make()
        messages.append(str(error.value))
    assert messages[0] == messages[1] and messages[0].startswith(f"{tmp_path}/source/1.parquet: truncated, damaged")


def test_workers_that_do_not_see_the_folder(tmp_path):
    source = write_source("jsonl", tmp_path / "source", some_documents(20))
    fails(
        r"inspected/00000.json: is missing, although a worker has written it: put --output on a disk that all",
        lambda: in_stages(source, tmp_path / "c", lambda function, numbers: None),
    )
    calls = itertools.count()
    fails(
        r"unfinished: shard 0 is missing, although a worker has written it: put --output on a disk that all",
        lambda: in_stages(
            source,
            tmp_path / "c",
            lambda function, numbers: in_disorder(function, numbers) if not next(calls) else None,
        ),
    )


def test_damaged_texts(tmp_path):
    source = write_source("jsonl", tmp_path / "source", some_documents(20))
    calls = itertools.count()

    def for_each(function: Callable[[int], None], numbers: Sequence[int]) -> None:
        if next(calls):
            path = next((tmp_path / "c").rglob("00000-train.texts"))
            content = path.read_bytes()
            path.write_bytes(content[:20] + bytes([content[20] ^ 255]) + content[21:])
        in_disorder(function, numbers)

    problem = r"00000-train.texts: missing or damaged \(.*\); remove .*/inspected and start"
    fails(problem, lambda: in_stages(source, tmp_path / "c", for_each))


# ----------------------------------------------------------------------------------------------------------------------
# Texts on disk
# ----------------------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(max_size=12), max_size=40), st.integers(1, 60), st.data())
def test_any_range_of_texts(tmp_path_factory, texts, segment, data):
    path = tmp_path_factory.mktemp("spool") / "texts"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spool, "_SEGMENT", segment)
        with writing_texts(path) as writer:
            for text in texts:
                writer.add(text, len(text.encode()))
    ends = sorted(data.draw(st.lists(st.integers(0, len(texts)), max_size=8)))
    runs = list(itertools.pairwise(ends))[::2]
    assert list(read_texts(path, runs)) == [text for start, stop in runs for text in texts[start:stop]]
    assert list(read_texts(path, [(0, len(texts))])) == texts


def test_texts_are_there_when_they_are_whole(tmp_path):
    with pytest.raises(Interrupted), writing_texts(tmp_path / "texts") as writer:
        writer.add("a", 1)
        raise Interrupted
    assert not list(tmp_path.iterdir())
