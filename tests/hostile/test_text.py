"""Hostile text: archives and lines without an end, folders that loop, devices, other encodings, damaged files of every kind."""

import bz2
import csv
import gzip
import io
import itertools
import json
import lzma
import os
import shlex
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_jax.data.datasets.conll import read_sentences, read_words
from bert_jax.data.datasets.glue import TASKS, read_split
from bert_jax.data.datasets.squad import read_questions
from bert_jax.data.datasets.tables import numbered_rows
from bert_jax.data.inputs import read_inputs
from bert_jax.data.sources import compressed
from bert_jax.data.sources.documents import read_documents
from bert_jax.data.sources.python_docs import _python_files
from bert_jax.files import LONGEST_LINE, same_path, whole_file
from tests.data.datasets.test_squad import ROWS, write_questions
from tests.hostile.limits import (
    accepted_or_refused,
    assert_refused,
    damaged_bytes,
    limited,
    mutated_json,
    python,
    refused,
)
from tools.lib.run_files import read_json_lines
from tools.python_docs_task import Row as DocstringRow

COMPRESS = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstandard.compress}
SUFFIXES = sorted(COMPRESS)


def read_texts(path: Path) -> list[dict[str, Any]]:
    with read_inputs(str(path), ("text",)) as inputs:
        return list(inputs)


# What reads a file, by a name that the file may have.
READERS: dict[str, Callable[[Path], Any]] = {
    "source.txt": lambda path: list(read_documents(f"text:{path}")),
    "source.jsonl": lambda path: list(read_documents(f"jsonl:{path}")),
    "table.jsonl": lambda path: list(numbered_rows(path, ("text", "label"))),
    "table.tsv": lambda path: list(numbered_rows(path, ("text", "label"))),
    "table.csv": lambda path: list(numbered_rows(path, ("text", "label"))),
    "sentences.conll": read_sentences,
    "words.conll": lambda path: list(read_words(path)),
    "questions.json": read_questions,
    "inputs.txt": read_texts,
    "inputs.jsonl": read_texts,
    "inputs.csv": read_texts,
    "inputs.conll": read_texts,
    "docstrings.jsonl": lambda path: list(read_json_lines(path, DocstringRow)),
}
ROW = {"text": "an old ship", "label": 1}
DOCSTRING = {"module": "a", "name": "b", "text": "some code here", "code": [[5, 9]]}
LINES = {
    ".txt": "an old ship\n\nanother\n",
    ".conll": "old B-X\nship I-X\n\nsails O\n",
    ".tsv": "text\tlabel\na\t1\nb\t0\n",
}


def content_of(name: str, folder: Path) -> bytes:
    """A valid file for a reader."""
    if name == "questions.json":
        return Path(write_questions(folder / "valid.json", ROWS)).read_bytes()
    if name == "docstrings.jsonl":
        return json.dumps(DOCSTRING).encode()
    suffix = Path(name).suffix
    if suffix == ".csv":
        return b'text,label\n"a, b",1\n"two\nlines",0\n'
    return (LINES.get(suffix) or (json.dumps(ROW) + "\n") * 2).encode()


@pytest.mark.parametrize("name", READERS)
def test_a_valid_file_is_read(name, tmp_path):
    path = tmp_path / name
    path.write_bytes(content_of(name, tmp_path))
    assert READERS[name](path)


# ----------------------------------------------------------------------------------------------------------------------
# Archives
# ----------------------------------------------------------------------------------------------------------------------

READ = """
import sys
from bert_jax.cli import main as cli
from bert_jax.data.sources.documents import read_documents
from bert_jax.errors import UserError
try:
    print(sum(len(document.text) for document in read_documents(sys.argv[1])))
except UserError as error:
    cli.fail(error)
"""
MEGABYTES = 400  # of which the interpreter and its libraries take a third


def repeated(compressor: Any, piece: bytes, times: int) -> bytes:
    return b"".join([*(compressor.compress(piece) for _ in range(times)), compressor.flush()])


def test_a_gigabyte_in_a_small_archive_takes_little_memory_and_linear_time(tmp_path):
    line = b"word " * 13_000 + b"\n"
    archive = repeated(zstandard.ZstdCompressor(level=1).compressobj(), line * 16, 1000)
    (tmp_path / "a.txt.zst").write_bytes(archive)
    assert len(archive) < 200_000
    ended = limited(python(READ, f"text:{tmp_path}/a.txt.zst"), megabytes=MEGABYTES, seconds=30)
    assert ended.code == 0 and int(ended.stdout) > 1_000_000_000, ended


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_gigabyte_of_zeros_is_refused_at_once(tmp_path, suffix):
    makers: dict[str, Callable[[], Any]] = {
        ".gz": lambda: zlib.compressobj(1, zlib.DEFLATED, 31),
        ".bz2": lambda: bz2.BZ2Compressor(1),
        ".xz": lambda: lzma.LZMACompressor(preset=0),
        ".zst": lambda: zstandard.ZstdCompressor(level=1).compressobj(),
    }
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(repeated(makers[suffix](), bytes(1 << 20), 1000 if suffix == ".zst" else 100))
    ended = limited(python(READ, f"text:{path}"), megabytes=MEGABYTES, seconds=10)
    assert_refused(ended, f"{path}: contains a NUL byte at byte 0", "unpack it")


def test_kilobytes_of_bzip2_that_hold_300_megabytes_take_little_memory(tmp_path):
    line = b"a" * ((1 << 16) - 1) + b"\n"
    path = tmp_path / "a.txt.bz2"
    path.write_bytes(repeated(bz2.BZ2Compressor(9), line * 16, 300))
    assert path.stat().st_size < 8_000, "a single read"
    ended = limited(python(READ, f"text:{path}"), megabytes=MEGABYTES, seconds=30)
    assert ended.code == 0 and int(ended.stdout) > 300_000_000 and ended.megabytes < 200, ended


def zstd_header(window_log: int) -> bytes:
    """A .zst file of one character that asks for a window."""
    return b"\x28\xb5\x2f\xfd\x00" + bytes([(window_log - 10) << 3]) + (1 << 3 | 1).to_bytes(3, "little") + b"a"


def xz_header(dictionary: int) -> bytes:
    """A .xz file of one character that asks for a dictionary, in the format's code: 40 is 4 GB, 28 is 64 MB."""
    content = bytearray(lzma.compress(b"a", check=lzma.CHECK_CRC32))
    size = 4 * (content[12] + 1)
    content[16] = dictionary
    content[12 + size - 4 : 12 + size] = zlib.crc32(content[12 : 12 + size - 4]).to_bytes(4, "little")
    return bytes(content)


@pytest.mark.parametrize(
    ("suffix", "valid", "hostile"),
    [(".zst", zstd_header(27), zstd_header(31)), (".xz", xz_header(28), xz_header(40))],
)
def test_an_archive_may_not_ask_for_gigabytes(tmp_path, suffix, valid, hostile):
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(valid)
    assert [document.text for document in read_documents(f"text:{path}")] == ["a"]
    path.write_bytes(hostile)
    with refused(str(path), "emory", "compress it again (zstd up to --long=27, xz up to -9)"):
        list(read_documents(f"text:{path}"))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_streams_one_after_another_padding_and_garbage(tmp_path, suffix):
    path, one, two = tmp_path / f"a.txt{suffix}", *map(COMPRESS[suffix], (b"one\n\n", b"two"))
    for content in (one + two, one + bytes(5000) + two + bytes(8)):
        path.write_bytes(content)
        assert [document.text for document in read_documents(f"text:{path}")] == ["one", "two"]
    for content in (one + two + b"garbage", one + two[:-1], b"", b"\0" + one):
        path.write_bytes(content)
        with refused(f"{path}: truncated or damaged", "download or compress it again"):
            list(read_documents(f"text:{path}"))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_damaged_archives(tmp_path_factory, suffix):
    path = tmp_path_factory.mktemp("damaged") / f"a.txt{suffix}"
    lines = "".join(f"line {number}\n\n" for number in range(500))
    whole = COMPRESS[suffix](lines.encode())

    @settings(max_examples=60, deadline=None)
    @given(damaged_bytes(whole))
    def check(content):
        path.write_bytes(content)
        documents = accepted_or_refused(lambda: list(read_documents(f"text:{path}")))
        assert documents is None or suffix == ".zst" or len(documents) == 500, "gzip and xz have checksums"

    check()


# ----------------------------------------------------------------------------------------------------------------------
# Lines and fields
# ----------------------------------------------------------------------------------------------------------------------

READ_ALL = """
import sys
from pathlib import Path
from bert_jax.errors import UserError
from tests.hostile.test_text import READERS
for name in READERS:
    try:
        print(READERS[name](Path(sys.argv[1]) / name))
    except UserError as error:
        print(f"{name}: refused: {error}")
"""


def test_half_a_gigabyte_without_an_end_of_line(tmp_path):
    for name in READERS:
        with (tmp_path / name).open("wb") as file:
            file.truncate(500 << 20)
    ended = limited(python(READ_ALL, tmp_path), megabytes=900, seconds=60)
    lines = ended.stdout.splitlines()
    assert ended.code == 0 and len(lines) == len(READERS), ended
    for name, line in zip(READERS, lines, strict=True):
        assert line.startswith(f"{name}: refused: {tmp_path / name}: "), line
        assert "NUL" in line if name == "source.txt" else "longer than" in line or "larger than" in line, line
    assert ended.megabytes < 600


def test_a_quote_that_is_never_closed(tmp_path):
    line = "x" * 9_999 + "\n"
    (tmp_path / "a.csv").write_text(f'text,label\na,1\n"{line * (LONGEST_LINE // len(line) + 2)}')
    with refused("a.csv: line 3 is not CSV (a row of more than 33,554,432 characters); fix it"):
        list(numbered_rows(tmp_path / "a.csv", ("text", "label")))
    assert csv.field_size_limit() == LONGEST_LINE


def test_a_long_line_of_a_source_may_be_as_long_as_a_book(tmp_path):
    path = tmp_path / "a.jsonl"
    text = "word " * 2_000_000
    path.write_text(json.dumps({"text": text}) + "\n")
    assert [document.text for document in read_documents(f"jsonl:{path}")] == [text]


READ_STDIN = """
from bert_jax.cli import main as cli
from bert_jax.data.inputs import read_inputs
from bert_jax.errors import UserError
try:
    with read_inputs("-", ("text",)) as inputs:
        print(sum(len(values["text"]) for values in inputs))
except UserError as error:
    cli.fail(error)
"""


def test_standard_input_is_read_as_files_are():
    ended = limited(python(READ_STDIN), megabytes=MEGABYTES, seconds=10, stdin='\ufeffold\n\n{"text": "ship"}\n')
    assert ended.stdout == "7\n", ended
    ended = limited(python(READ_STDIN), megabytes=MEGABYTES, seconds=10, stdin="x\n" + "x" * (LONGEST_LINE + 1))
    assert_refused(ended, "standard input: line 2 is longer than 33,554,432 bytes; split it")
    ended = limited(python(READ_STDIN), megabytes=MEGABYTES, seconds=10, stdin="a\0b\0")
    assert_refused(ended, "standard input: contains a NUL byte in line 1, at byte 1")
    closed = f"{shlex.join(python(READ_STDIN))} <&-"
    assert_refused(limited(["sh", "-c", closed], megabytes=MEGABYTES, seconds=10), "standard input: contains no text")


def test_a_document_of_millions_of_short_lines_takes_little_memory(tmp_path):
    (tmp_path / "a.txt").write_text("xy\n" * 3_000_000)
    ended = limited(python(READ, f"text:{tmp_path}/a.txt"), megabytes=200, seconds=30)
    assert ended.stdout == f"{3 * 3_000_000 - 1}\n", ended


BAD_JSON = [
    "[" * 200_000,
    '{"a":' * 200_000,
    "9" * 5000,
    '{"text": 1e999}',
    '{"text": NaN}',
    "null",
    '"',
    "{}x",
    r'"\ud8',
]


@pytest.mark.parametrize("name", [name for name in READERS if ".json" in name])
@pytest.mark.parametrize("line", BAD_JSON, ids=[line[:10] for line in BAD_JSON])
def test_json_that_is_none(tmp_path, name, line):
    path = tmp_path / name
    path.write_text(line + "\n")
    with refused(str(path)):
        READERS[name](path)


def test_json_of_a_source_may_escape_halves_of_pairs_among_other_escapes(tmp_path):
    (tmp_path / "a.jsonl").write_text(r'{"text": "\\ud83d \ud83d\ude00 \ud83d \ude00\n", "\udc00": 1}')
    assert [d.text for d in read_documents(f"jsonl:{tmp_path}/a.jsonl")] == ["\\ud83d 😀 ? ?\n"]


# ----------------------------------------------------------------------------------------------------------------------
# What is no text, and no file
# ----------------------------------------------------------------------------------------------------------------------

NOT_TEXT = {
    "UTF-16": "text\tlabel\na\t1\n".encode("utf-16-le"),
    "UTF-16 with a mark": "text\tlabel\na\t1\n".encode("utf-16"),
    "UTF-32": "text\tlabel\na\t1\n".encode("utf-32-be"),
    "zip": b"PK\x03\x04\x14\x00\x00\x00\x08\x00abc\n",
    "gzip": gzip.compress(b"text"),
    "zeros": bytes(100),
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("kind", NOT_TEXT)
def test_other_encodings_and_archives_are_not_text(tmp_path, name, kind):
    path = tmp_path / name
    path.write_bytes(NOT_TEXT[kind])
    with refused(str(path)) if "json" in name else refused(f"{path}: ", "at byte", "convert"):
        READERS[name](path)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("kind", ["/dev/zero", "/dev/stdin", "/proc/self/pagemap", "FIFO", "folder", "loop", "none"])
def test_only_regular_files_are_read(tmp_path, name, kind):
    path = tmp_path / name
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path)
    elif kind != "none":
        path.symlink_to(kind)
    with refused(str(path)):
        READERS[name](path)


@pytest.mark.timeout(60)
def test_devices_by_their_own_names(tmp_path):
    for path in ("/dev/zero", "/proc/self/pagemap", "/sys/kernel/profiling"):
        with refused(f"{path}: not a regular file; check the path"):
            list(numbered_rows(path, ("text",)))
        with refused(f"{path}", "regular files"):
            list(read_documents(f"text:{path}"))
    (tmp_path / "train").mkdir()
    with refused("~nobody-of-this-name/*.txt: matches no file"):
        list(read_documents("text:~nobody-of-this-name/*.txt"))
    with refused("CoLA", "no such file"):
        read_split(tmp_path / "train", TASKS["CoLA"], "train")
    with refused("x" * 100, "check its path"):
        list(numbered_rows("x" * 5000 + ".tsv", ("text",)))


# ----------------------------------------------------------------------------------------------------------------------
# Patterns
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.timeout(60)
def test_a_pattern_through_links_that_loop_finds_each_file_once(tmp_path, monkeypatch):
    (tmp_path / "b" / "c").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    for path in ("a.txt", "b/b.txt", "b/c/c.txt", "b/c/[x].txt", "elsewhere/d.txt", "b/.hidden.txt"):
        (tmp_path / path).write_text(path)
    for number in range(3):  # of one loop glob.glob ends at the 41st file, of several never
        (tmp_path / "b" / "c" / f"up{number}").symlink_to(tmp_path / "b")
    (tmp_path / "b" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "z.txt").symlink_to(tmp_path / "a.txt")
    os.mkfifo(tmp_path / "pipe.txt")
    monkeypatch.chdir(tmp_path)
    inside = ["b/b.txt", "b/c/[x].txt", "b/c/c.txt"]
    for pattern, expected in {
        "**/*.txt": ["a.txt", *inside, "elsewhere/d.txt"],
        "b/**/*.txt": [*inside, "elsewhere/d.txt"],
        "b/**": [*inside, "elsewhere/d.txt"],
        "**/c/**/*.txt": [*inside, "elsewhere/d.txt"],
        "**/**/c/*.txt": inside[1:],
        "*.txt": ["a.txt"],
    }.items():
        for start in ("", f"{tmp_path}/"):
            texts = [document.text for document in read_documents(f"text:{start}{pattern}")]
            assert sorted(texts) == sorted(expected), pattern
            assert len(set(texts)) == len(texts)


@pytest.mark.timeout(60)
def test_a_pattern_that_matches_only_what_cannot_be_read(tmp_path):
    os.mkfifo(tmp_path / "a.txt")
    (tmp_path / "b.txt").mkdir()
    with refused(f"{tmp_path}/*.txt: matches only folders, devices or pipes; use the path of regular files"):
        list(read_documents(f"text:{tmp_path}/*.txt"))


def test_folders_nested_deeply(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("shallow")
    try:
        for _ in range(1500):
            os.mkdir("d")  # noqa: PTH102 - a path longer than a system takes
            os.chdir("d")
        assert [document.text for document in read_documents(f"text:{tmp_path}/**/*.txt")] == ["shallow"]
    finally:
        subprocess.run(["rm", "-rf", tmp_path / "d"], check=True)  # pytest and shutil cannot


def test_packages_that_link_to_themselves_are_read_once(tmp_path):
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "module.py").touch()
    (tmp_path / "package" / "again").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "pipe.py")
    assert list(_python_files(tmp_path)) == [tmp_path / "package" / "module.py"]


# ----------------------------------------------------------------------------------------------------------------------
# Fuzz
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", READERS)
def test_damaged_files(tmp_path_factory, name):
    folder = tmp_path_factory.mktemp("damaged")
    path = folder / name

    @settings(max_examples=60, deadline=None)
    @given(damaged_bytes(content_of(name, folder)))
    def check(content):
        path.write_bytes(content)
        accepted_or_refused(lambda: READERS[name](path))

    check()


@pytest.mark.parametrize("name", [name for name in READERS if ".json" in name])
def test_mutated_json(tmp_path_factory, name):
    folder = tmp_path_factory.mktemp("mutated")
    path = folder / name
    value = json.loads(content_of(name, folder).splitlines()[0])

    @settings(max_examples=80, deadline=None)
    @given(mutated_json(value))
    def check(content):
        path.write_text(content)
        accepted_or_refused(lambda: READERS[name](path))

    check()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.sampled_from([b"\0", b"\0\0", b"a", b"\n", b"\xff", *(c(b"x\n") for c in COMPRESS.values())]), max_size=8
    )
)
def test_streams_of_any_pieces(pieces):
    for suffix in SUFFIXES:
        stream = compressed._Stream(io.BytesIO(b"".join(pieces)), compressed._DECOMPRESSORS[suffix])
        try:
            content = b"".join(itertools.takewhile(bool, iter(lambda stream=stream: stream.read(3), None)))
            assert set(content) <= set(b"x\n")
        except compressed.DAMAGES:
            pass


def test_a_link_that_leads_to_itself(tmp_path):
    link = tmp_path / "link"
    link.symlink_to(link)
    with refused("link"), whole_file(link) as file:
        file.write("text")
    with refused("link"):
        same_path(str(link), "elsewhere")
    with refused("link"), read_inputs(str(link), ("text",)) as inputs:
        list(inputs)
    assert link.is_symlink()
