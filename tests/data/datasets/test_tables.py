"""Rows from JSON lines and TSV, and what is wrong with those that cannot be read."""

import pytest

from bert_jax.data.datasets.tables import numbered_rows
from bert_jax.errors import UserError


def read_table(path, fields):
    return [{name: row[name] for name in fields} for _, row in numbered_rows(path, fields)]


def write(tmp_path, name: str, content: str | bytes):
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize(
    "name, content",
    [
        ("a.tsv", 'text\tlabel\textra\nhe said "no\t1\tx\n\nplain\t0\ty\n'),
        ("a.tsv", '\ufefftext\tlabel\r\nhe said "no\t1\r\nplain\t0\r\n'),
        ("a.csv", 'text,label,extra\n"he said ""no",1,x\n\nplain,0,y\n'),
        ("a.jsonl", '{"text": "he said \\"no", "label": 1, "extra": []}\n\n{"label": "0", "text": "plain"}'),
    ],
    ids=["tsv", "tsv of Windows", "csv", "jsonl"],
)
def test_fields_are_read_as_text(tmp_path, name, content):
    rows = read_table(write(tmp_path, name, content), ("text", "label"))
    assert rows == [{"text": 'he said "no', "label": "1"}, {"text": "plain", "label": "0"}]


def test_unusual_line_separators_are_text(tmp_path):
    rows = read_table(write(tmp_path, "a.tsv", "text\nbefore\u2028after\x85end\n"), ("text",))
    assert rows == [{"text": "before\u2028after\x85end"}]


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.txt", "text\n", "unknown format; convert it to one of .jsonl, .tsv, .csv"),
        ("a.tsv", "", "contains no rows"),
        ("a.tsv", "text\n", "contains no rows"),
        ("a.jsonl", "", "contains no rows"),
        ("a.tsv", "text\tlabel\na\n", "line 2 has 1 columns, the header 2"),
        ("a.tsv", "text\tlabels\na\tb\n", "line 2 has no field 'label', only text, labels"),
        ("a.jsonl", '{"text": "a", "label": 1}\n{"text": "a"}\n', "line 2 has no field 'label', only text"),
        ("a.jsonl", '{"text": "a"\n', "line 1 is not JSON"),
        (
            "a.jsonl",
            '{"text": "\\ud83d\\ude00", "label": 1}\n{"text": "a", "label": "\\uD83D"}',
            "line 2 is not JSON .contains the escape of an unpaired surrogate",
        ),
        ("a.jsonl", '\n{"text": null, "label": 1}\n', "line 2: field 'text' is null"),
        ("a.csv", 'text,label\n"a",b\n"c,d\n', "line 3 is not CSV"),
        ("a.csv", 'text,label\n"two\nlines",b\nc\n', "line 4 has 1 columns, the header 2"),
        ("a.jsonl", '{"text": {"a": 1}, "label": 1}\n', "line 1: field 'text' is an object, not text"),
        (
            "a.jsonl",
            '{"text": "a", "label": NaN}\n',
            "line 1 is not JSON .* NaN and Infinity are not JSON.; fix or remove it",
        ),
        (
            "a.jsonl",
            '{"text": "a", "label": [true, false]}\n',
            "line 1: field 'label' is a list that contains True; use texts",
        ),
        ("a.jsonl", '{"text": "a", "label": [1.0, 0.0]}\n', "line 1: field 'label' is a list that contains 1.0"),
        (
            "a.jsonl",
            '{"text": "a", "label": [["a", "b"]]}\n',
            r"line 1: field 'label' is a list that contains \['a', 'b'\]",
        ),
        ("a.jsonl", '{"text": "a", "label": [null]}\n', "line 1: field 'label' is a list that contains None"),
        ("a.jsonl", "[1]\n", "line 1 is not a JSON object"),
        ("a.tsv", b"text\tlabel\ra\tb\r", "its lines end with CR alone"),
        ("a.tsv", "text\ttext\tlabel\na\tb\tc\n", "duplicate columns in text, text, label"),
        ("a.tsv", b"text\n\xff\n", "not UTF-8 in line 2, at byte 5"),
    ],
)
def test_tables_that_cannot_be_read(tmp_path, name, content, message):
    path = write(tmp_path, name, content)
    with pytest.raises(UserError, match=message) as error:
        read_table(path, ("text", "label"))
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_field_may_be_of_any_length(tmp_path):
    long = "ship " * 100_000  # the module csv stops at 131,072 characters
    rows = read_table(write(tmp_path, "a.csv", f'text,label\n"{long}",b\nc,{long}\n'), ("text", "label"))
    assert rows == [{"text": long, "label": "b"}, {"text": "c", "label": long}]
    path = write(tmp_path, "a.csv", f'text,label\na,b\n"{long}\n\n,b\nc,d\n')
    with pytest.raises(UserError, match=r"line 3 is not CSV"):  # where the quote is that is never closed
        read_table(path, ("text", "label"))


def test_equal_numbers_are_the_same_text(tmp_path):
    content = "".join(f'{{"label": {value}}}\n' for value in ("1", "1.0", '"1"', "-2.0", "0.5", "true", "[1, 2]"))
    values = [row["label"] for row in read_table(write(tmp_path, "a.jsonl", content), ("label",))]
    assert values == ["1", "1", "1", "-2", "0.5", "True", ["1", "2"]]


def test_rows_are_read_one_by_one(tmp_path):
    path = write(tmp_path, "a.csv", b"text\nold\n\xff\n")
    rows = numbered_rows(path, ("text",))
    assert next(rows) == (2, {"text": "old"})
    with pytest.raises(UserError, match="not UTF-8 in line 3, at byte 9"):
        next(rows)


def test_a_missing_table(tmp_path):
    with pytest.raises(UserError, match="missing; check the path"):
        read_table(tmp_path / "none.tsv", ("text",))
