"""Column files in both schemes, and tags that are of neither."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert_jax.data.conll import as_bio, entities, read_sentences, read_words, with_predictions
from bert_jax.errors import UserError

CONLL_2003 = """-DOCSTART- -X- O O

EU NNP I-NP I-ORG
rejects VBZ I-VP O

Peter NNP I-NP I-PER
Blackburn NNP I-NP I-PER
Lyon NNP I-NP B-PER

-DOCSTART- -X- O O

the DT O O
"""


def test_first_scheme_of_conll(tmp_path):
    (tmp_path / "a").write_text(CONLL_2003)
    first, second, third = read_sentences(tmp_path / "a")
    assert first.words == ("EU", "rejects") and first.tags == ("B-ORG", "O")
    assert second.tags == ("B-PER", "I-PER", "B-PER"), "two of a type, one right after the other"
    assert [sentence.document for sentence in (first, second, third)] == [1, 1, 2]


def test_tabs_windows_and_no_last_line_end(tmp_path):
    (tmp_path / "a").write_bytes('\ufeff"\tO\r\nNew\tB-loc\r\nYork\tI-loc\r\n\t\r\nend\tO'.encode())
    assert [sentence.tags for sentence in read_sentences(tmp_path / "a")] == [("O", "B-loc", "I-loc"), ("O",)]


def test_white_space_of_other_kinds_is_part_of_a_word(tmp_path):
    lines = [" 10\u00a0000 \t CD\tB-n ", "a\u3000b O", "x\u2028y\x85z\tO", "\u00a0\t\u3000", "\u00a0 O", ""]
    (tmp_path / "a").write_bytes("\r\n".join(lines).encode())
    first, second = read_sentences(tmp_path / "a")
    assert first.words == ("10\u00a0000", "a\u3000b", "x\u2028y\x85z") and first.tags == ("B-n", "O", "O")
    assert second.words == ("\u00a0",), "a line of white space alone is a blank one, a word of it is none"


@pytest.mark.parametrize(
    "content, message",
    [
        (b"word O\nalone\n", "line 2 has a word and no tag"),
        (b"word O\nword PER\n", "line 2: tag 'PER' is none of O, B-TYPE, I-TYPE"),
        ("word\u00a0O\n".encode(), "line 1 has a word and no tag behind a blank or a tab"),
        (b"word S-PER\n", "line 1: tag 'S-PER' is none of"),
        (b"word B-\n", "line 1: tag 'B-' is none of"),
        (b"\n\n", "holds no sentences"),
        (b"\xff O\n", "not UTF-8 in line 1, at byte 0"),
    ],
)
def test_what_is_refused(content, message, tmp_path):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_sentences(tmp_path / "a")


@given(st.lists(st.sampled_from(["O", "B-x", "I-x", "B-y", "I-y"])))
def test_every_entity_begins_once(tags):
    found = as_bio(tags)
    assert as_bio(found) == found
    assert sum(tag[0] == "B" for tag in found) == len(entities(tags))
    rebuilt = ["O"] * len(tags)
    for kind, first, after in entities(tags):
        rebuilt[first:after] = [f"B-{kind}"] + [f"I-{kind}"] * (after - first - 1)
    assert rebuilt == found


@pytest.mark.real
def test_official_counts(real_data):
    folder = real_data / "ner" / "wnut17"
    names = ("wnut17train.conll", "emerging.dev.conll", "emerging.test.annotated")
    assert [len(read_sentences(folder / name)) for name in names] == [3394, 1009, 1287]


def test_predictions_keep_every_line_in_its_place(tmp_path):
    text = "-DOCSTART- -X- O\n\n\nold NN B-age\r\nship\tO\n\n\n-DOCSTART- O\nriver I-place\n"
    (tmp_path / "a").write_bytes(text.encode())
    sentences = read_sentences(tmp_path / "a")
    assert [(sentence.line, sentence.mended) for sentence in sentences] == [(4, 0), (9, 1)]
    found = with_predictions(tmp_path / "a", [["O", "B-age"], ["O"]])
    expected = "-DOCSTART- -X- O\n\n\nold NN B-age O\r\nship\tO\tB-age\n\n\n-DOCSTART- O\nriver I-place O\n"
    assert "".join(found) == expected


def test_words_without_tags(tmp_path):
    (tmp_path / "a").write_bytes(b"-DOCSTART-\n\nold\nship \r\n\n \nriver NN\n-DOCSTART- O\nend")
    assert list(read_words(tmp_path / "a")) == [(["old", "ship"], 1), (["river"], 1), (["end"], 2)]
    tags = [["O", "B-age"], ["O"], ["O"]]
    expected = "-DOCSTART-\n\nold O\nship B-age\r\n\n \nriver NN O\n-DOCSTART- O\nend O"
    assert "".join(with_predictions(tmp_path / "a", tags)) == expected
    for wrong in (tags[:2], [*tags, ["O"]]):
        with pytest.raises(UserError, match="has changed since it was read"):
            list(with_predictions(tmp_path / "a", wrong))


@pytest.mark.parametrize("content", ["", "\n \n", "-DOCSTART-\n\n"])
def test_no_words(content, tmp_path):
    (tmp_path / "a").write_text(content)
    with pytest.raises(UserError, match="holds no sentences"):
        list(read_words(tmp_path / "a"))
    with pytest.raises(UserError, match="holds no sentences"):
        list(with_predictions(tmp_path / "a", (words for words, _ in read_words(tmp_path / "a"))))
