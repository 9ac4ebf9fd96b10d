"""Sources: every compression, every boundary, every error; Python's documentation; sentences; the held-out split."""

import bz2
import gzip
import json
import lzma
import re

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_jax.data.sources import documents as sources
from bert_jax.data.sources import python_docs, text_files
from bert_jax.data.sources.documents import held_out, python_docstrings, read_documents, split_sentences
from bert_jax.errors import UserError

TEXT = "First title\nA paragraph.\n\n\nשלום עולם 🙂\r\n\nlast without newline"  # noqa: RUF001
DOCUMENTS = ["First title\nA paragraph.", "שלום עולם 🙂", "last without newline"]
COMPRESS = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstandard.compress}


def fails(match: str, spec: str, **kwargs) -> None:
    """Reading `spec` raises a UserError of one line that matches."""
    with pytest.raises(UserError, match=match) as error:
        list(read_documents(spec, **kwargs))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("suffix", COMPRESS)
def test_text_in_every_compression(tmp_path, suffix):
    (tmp_path / f"b.txt{suffix}").write_bytes(COMPRESS[suffix](b"second file\n"))
    (tmp_path / f"a.txt{suffix}").write_bytes(COMPRESS[suffix]("\ufeff".encode() + TEXT.encode()))
    shares: list[float] = []
    documents = list(read_documents(f"text:{tmp_path}/*.txt{suffix}", progress=shares.append))
    assert [document.text for document in documents] == [*DOCUMENTS, "second file"]
    ids = [document.id.replace(f".txt{suffix}", "") for document in documents]
    assert ids == ["a:0", "a:1", "a:2", "b:0"]
    assert shares == sorted(shares) and shares[0] == 0.0 and shares[-1] == 1.0, "how much of all files has been read"


def test_a_file_can_be_a_document(tmp_path):
    (tmp_path / "a.txt").write_text(TEXT, encoding="utf-8", newline="")
    (document,) = read_documents(f"text:{tmp_path}/a.txt", document="file")
    assert document == ("a.txt:0", "\n".join(DOCUMENTS))


@pytest.mark.parametrize("suffix", COMPRESS)
def test_jsonl(tmp_path, suffix):
    lines = [json.dumps({"text": text, "body": text.upper(), "n": 1}) for text in DOCUMENTS]
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(COMPRESS[suffix]("\n".join([lines[0], "", *lines[1:]]).encode()))
    assert list(read_documents(f"jsonl:{path}")) == [
        (f"{path.name}:{number}", text) for number, text in zip((1, 3, 4), DOCUMENTS, strict=True)
    ]
    assert [document.text for document in read_documents(f"jsonl:{path}:body")] == [text.upper() for text in DOCUMENTS]


def test_ids_do_not_depend_on_where_the_folder_lies(tmp_path):
    for root in ("one", "two"):
        (tmp_path / root / "sub").mkdir(parents=True)
        (tmp_path / root / "sub" / "a.txt").write_text("text")
    ids = [[d.id for d in read_documents(f"text:{tmp_path}/{root}/**/*.txt")] for root in ("one", "two")]
    assert ids == [["sub/a.txt:0"], ["sub/a.txt:0"]]


def test_half_a_surrogate_pair_in_json_is_replaced(tmp_path):
    (tmp_path / "a.jsonl").write_text(r'{"text": "a \ud83d b"}')
    assert [d.text for d in read_documents(f"jsonl:{tmp_path}/a.jsonl")] == ["a ? b"]


@settings(deadline=None)
@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0\r\n")), max_size=8), st.integers(8, 40))
def test_long_lines_are_cut_without_losing_text(tmp_path_factory, lines, limit):
    path = tmp_path_factory.mktemp("long") / "a.txt"
    path.write_bytes("\n".join(lines).encode())
    pieces = list(text_files._lines(path, limit, lambda done: None))
    assert all(len(piece.encode()) <= 2 * limit for piece in pieces)
    written = "".join("".join(lines).removeprefix("\ufeff").split())
    assert "".join("".join(pieces).split()) == written


def test_one_enormous_line_keeps_its_words_and_stays_one_document(tmp_path):
    words = [f"word{number}" for number in range(200_000)]
    (tmp_path / "a.txt").write_text(" ".join(words) + "\n\nnext\n")
    long, last = read_documents(f"text:{tmp_path}/a.txt")
    assert long.text.split() == words and last.text == "next"
    assert max(map(len, long.text.split("\n"))) <= 2 * text_files.LINE_BYTES


def test_an_overlong_document_continues_as_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "DOCUMENT_CHARACTERS", 10)
    (tmp_path / "a.txt").write_text("12345\n67890\nabc\n")
    assert list(read_documents(f"text:{tmp_path}/a.txt")) == [("a.txt:0", "12345\n67890"), ("a.txt:1", "abc")]


def test_errors_name_the_thing_and_the_remedy(tmp_path):
    fails(r"source 'web:x': unknown kind 'web'; use one of text:GLOB, jsonl:GLOB\[:FIELD\], ", "web:x")
    fails("document 'page': unknown boundary; use", "text:x", document="page")
    fails("source 'python-docs:x': takes no argument; use 'python-docs'", "python-docs:x")
    fails(rf"{re.escape(str(tmp_path))}/\*\.txt: matches no file; use", f"text:{tmp_path}/*.txt")
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n" + b"x" * 100_000 + b" caf\xe9 \n")
    fails(f"{path}: not UTF-8 at byte 100005; convert", f"text:{path}")
    path.write_text('{"text": "fine"}\n{"text": \n')
    fails(f"{path}:2: invalid JSON .*; put one JSON object on each line", f"jsonl:{path}")
    path.write_text('{"body": 1}\n')
    fails(rf"{path}:1: no field 'text' \(fields: body\); set it with jsonl:GLOB:FIELD", f"jsonl:{path}")
    fails(f"{path}:1: 'body' is not a text; set another field", f"jsonl:{path}:body")
    path.write_text("[1]\n")
    fails(f"{path}:1: not a JSON object; write one on each line", f"jsonl:{path}")


def test_null_is_an_empty_document_as_in_tables(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": null}\n{"text": "b"}\n')
    assert [document.text for document in read_documents(f"jsonl:{tmp_path}/a.jsonl")] == ["", "b"]


def test_a_path_is_no_pattern_if_there_is_such_a_file(tmp_path):
    for name in ("[x]", "x"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a*.txt").write_text(f"in {name}")
        (tmp_path / name / "ab.txt").write_text(f"another in {name}")
    assert list(read_documents(f"text:{tmp_path}/[x]/a*.txt")) == [("a*.txt:0", "in [x]")]
    names = [document.id for document in read_documents(f"text:{tmp_path}/[x]/?b.txt")]
    assert names == ["x/ab.txt:0"]


@pytest.mark.parametrize("suffix", [suffix for suffix in COMPRESS if suffix])
@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"not compressed at all"])
def test_a_truncated_or_damaged_file_is_an_error(tmp_path, suffix, damage):
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(damage(COMPRESS[suffix]("\n".join(map(str, range(50_000))).encode())))
    fails(f"{path}: truncated or damaged .*; download or compress it again", f"text:{path}")


def test_zstd_frames_one_after_another(tmp_path):
    path = tmp_path / "a.txt.zst"
    path.write_bytes(zstandard.compress(b"one ") + zstandard.compress(b"line\n\n") + zstandard.compress(b"two"))
    assert [document.text for document in read_documents(f"text:{path}")] == ["one line", "two"]


MODULE = '''
"""Tools for tests of this package.

Heading of a section
====================
This paragraph runs over
two lines and names :func:`os.walk` and ``code``.

>>> print("not prose at all here")

    x = code + [1, 2] * other(3) - more[4]
"""
class Thing:
    """A thing that holds other things.

    Parameters
    ----------
    size : int, optional
        The number of things that it holds.
    """
    def method(self):
        """Hold one thing more."""
    def same(self):
        """Hold one thing more."""
    async def other(self):
        """Args:
          name (str): the name of the thing, which
            may be a long one.
        """
'''


def test_python_docstrings(tmp_path, monkeypatch):
    for path, text in {
        "pkg/__init__.py": MODULE,
        "pkg/tests/x.py": MODULE,
        "bad.py": '"""a b c d"""(',
        "n.py": "x=1",
    }.items():
        (tmp_path / path).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / path).write_text(text)
    monkeypatch.setattr(python_docs.sysconfig, "get_path", lambda name: str(tmp_path))
    assert list(python_docstrings()) == [
        (
            "pkg",
            "",
            "Tools for tests of this package.\nThis paragraph runs over two lines and names os.walk and code.",
            ((78, 85), (90, 94)),
        ),
        ("pkg", "Thing", "A thing that holds other things.\nThe number of things that it holds.", ()),
        ("pkg", "Thing.method", "Hold one thing more.", ()),
        ("pkg", "Thing.other", "name (str): the name of the thing, which may be a long one.", ()),
    ]
    monkeypatch.setattr(sources, "python_topics", lambda: iter([python_docs.Docstring("topic", "", "text")]))
    assert [document.id for document in read_documents("python-docs")] == ["pkg", "topic"]


def test_what_docstrings_mark_as_code(tmp_path, monkeypatch):
    (tmp_path / "a.py").write_text(
        '''"""Links to `the manual <https://a.b>`_ and :ref:`a chapter` and ``quoted'' words are not code at all.

        If `x` is given, *not* code, then :func:`~os.path.join` and ``a b`` and :py:class:`None`
        are, across ``the end of`` a line or in ``None``s.
        """'''
    )
    monkeypatch.setattr(python_docs.sysconfig, "get_path", lambda name: str(tmp_path))
    (docstring,) = python_docstrings()
    marked = [docstring.text[start:end] for start, end in docstring.code]
    assert marked == ["x", "os.path.join", "a b", "None", "the end of", "None"]
    assert "`" not in docstring.text and docstring.text.isascii()


def test_half_a_surrogate_pair_in_a_docstring_is_replaced(tmp_path, monkeypatch):
    (tmp_path / "a.py").write_text(r'''"""A text with half of \ud83d a pair in it."""''')
    monkeypatch.setattr(python_docs.sysconfig, "get_path", lambda name: str(tmp_path))
    assert [docstring.text for docstring in python_docstrings()] == ["A text with half of ? a pair in it."]


def test_python_topics_are_prose():
    topics = {topic.module: topic.text for topic in python_docs.python_topics()}
    assert "\n" in topics["pydoc_data.topics.while"] and "::=" not in topics["pydoc_data.topics.while"]


@settings(deadline=None)
@given(st.lists(st.text(), unique=True, max_size=50), st.floats(0, 1), st.floats(0, 1))
def test_held_out_is_a_function_of_the_id_and_grows_with_the_fraction(ids, one, other):
    low, high = sorted((one, other))
    assert {i for i in ids if held_out(i, low)} <= {i for i in ids if held_out(i, high)}
    assert not any(held_out(i, 0.0) for i in ids) and all(held_out(i, 1.0) for i in ids)


def test_held_out_share():
    assert 800 < sum(held_out(f"module.{number}", 0.1) for number in range(10_000)) < 1200
    assert held_out("scipy.stats._qmc", 0.5) is held_out("scipy.stats._qmc", 0.5)


@pytest.mark.parametrize(
    "sentences",
    [
        ["One sentence."],
        ["Is it?", "Yes!", "So it is."],
        ['He said "No."', "Then he left."],
        ["Dr. Smith met J. R. Jones, e.g. at 3.5 p.m. on Sunday.", "It rained."],
        ["See Fig. 3 and No. 7, said Mrs. Li.", "Why?"],
        ["It costs 3.50 dollars.", "(Not more.)", "1984 was a year."],
        ["今日は晴れ。", "明日は雨。"],
        ["كيف حالك؟", "أنا بخير."],
        ["no end"],
    ],
)
def test_split_sentences(sentences):
    gap = "" if "。" in sentences[0] else "  "
    assert split_sentences(gap.join(sentences)) == sentences


@settings(deadline=None)
@given(st.text())
def test_splitting_loses_nothing_but_white_space(paragraph):
    sentences = split_sentences(paragraph)
    assert "".join("".join(sentences).split()) == "".join(paragraph.split())
    assert all(sentence and sentence == sentence.strip() for sentence in sentences)


@pytest.mark.real
@pytest.mark.parametrize("name", ["wikipedia.txt.xz", "books.txt.xz"])
def test_real_texts(real_data, name):
    path = real_data / "text" / name
    if not path.exists():
        pytest.skip(f"{path} is not there")
    stream = read_documents(f"text:{path}")
    documents = [next(stream) for _ in range(5)]
    assert [document.id for document in documents] == [f"{name}:{number}" for number in range(5)]
    assert min(len(document.text) for document in documents) > 5_000
    sentences = [s for line in documents[1].text.split("\n") for s in split_sentences(line)]
    assert 40 < sum(map(len, sentences)) / len(sentences) < 250
