"""Column files: their sentences, the scheme of their tags, and added columns."""

import pytest

from bert_jax.data.datasets.conll import in_scheme, read_sentences, read_words, scheme_of, with_predictions
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
    sentences = read_sentences(tmp_path / "a")
    assert scheme_of(tmp_path / "a", sentences) == "IOB1"
    assert sentences[1].tags == ("I-PER", "I-PER", "B-PER")
    first, second, third = in_scheme(tmp_path / "a", sentences, "IOB2")
    assert first.words == ("EU", "rejects") and first.tags == ("B-ORG", "O")
    assert second.tags == ("B-PER", "I-PER", "B-PER"), "two of a type, one right after the other"
    assert second.entities == (("PER", 0, 2), ("PER", 2, 3)) and third.entities == ()
    assert in_scheme(tmp_path / "a", sentences, "IOBES")[1].tags == ("B-PER", "E-PER", "S-PER")
    assert [sentence.document for sentence in (first, second, third)] == [1, 1, 2]


def test_tabs_windows_and_no_last_line_end(tmp_path):
    (tmp_path / "a").write_bytes('\ufeff"\tO\r\nNew\tB-loc\r\nYork\tI-loc\r\n\t\r\nend\tO'.encode())
    assert [sentence.tags for sentence in read_sentences(tmp_path / "a")] == [("O", "B-loc", "I-loc"), ("O",)]


def test_white_space_of_other_kinds_is_part_of_a_word(tmp_path):
    lines = [" 10\u00a0000 \tB-n ", "a\u3000b O", "x\u2028y\x85z\tO", "\u00a0\t\u3000", "\u00a0 O", ""]
    (tmp_path / "a").write_bytes("\r\n".join(lines).encode())
    first, second = read_sentences(tmp_path / "a")
    assert first.words == ("10\u00a0000", "a\u3000b", "x\u2028y\x85z") and first.tags == ("B-n", "O", "O")
    assert second.words == ("\u00a0",), "a line of white space alone is a blank one, a word of it is none"


@pytest.mark.parametrize(
    "content, message",
    [
        (b"word O\nalone\n", "line 2 has a word but no tag"),
        ("word\u00a0O\n".encode(), "line 1 has a word but no tag, separated by a space or tab"),
        (
            b"\na O\nb I-PER\nc PER\n",
            "line 4: tag 'PER' is not an entity tag such as I-PER; .* data.scheme=plain",
        ),
        (b"a I-PER\nb E-PER\n", "tags with E, I match none of the schemes IO, IOB1, IOB2, IOBES, BILOU, BMES"),
        (
            b"a B-PER\nb I-PER\nc L-PER\n\nd O\ne B-PER\nf O\n",
            "line 6: tag 'B-PER' is not part of a complete entity in BILOU",
        ),
        (b"a DT\nb O\n", "tags such as 'DT' mark no entities, but the labels are IOB2"),
        (
            b"EU NNP B-NP B-ORG\n\nrejects VBZ B-VP\n",
            "line 3 has 3 columns instead of 4",
        ),  # a class VP otherwise
        (b"\n\n", "contains no sentences"),
        (b"\xff O\n", "not UTF-8 in line 1, at byte 0"),
    ],
)
def test_what_is_refused(content, message, tmp_path):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(UserError, match=message):
        in_scheme(tmp_path / "a", read_sentences(tmp_path / "a"), "IOB2")


def test_plain_tags(tmp_path, caplog):
    (tmp_path / "a").write_text("the DT\nship NN\n")
    sentences = read_sentences(tmp_path / "a")
    assert (
        scheme_of(tmp_path / "a", sentences) == "plain" and in_scheme(tmp_path / "a", sentences, "plain") == sentences
    )
    (tmp_path / "a").write_text("Ada PER\nsaw O\n")
    assert scheme_of(tmp_path / "a", read_sentences(tmp_path / "a")) == "plain"
    assert "tags such as O and PER are plain tags, not entities (I-TYPE)" in caplog.text


def test_a_file_without_entities_is_of_any_scheme(tmp_path):
    (tmp_path / "a").write_text("the O\nship O\n")
    (sentence,) = in_scheme(tmp_path / "a", read_sentences(tmp_path / "a"), "IOBES")
    assert sentence.tags == ("O", "O") and sentence.entities == ()


@pytest.mark.real
def test_official_counts(real_data):
    folder = real_data / "ner" / "wnut17"
    names = ("wnut17train.conll", "emerging.dev.conll", "emerging.test.annotated")
    files = [read_sentences(folder / name) for name in names]
    assert list(map(len, files)) == [3394, 1009, 1287]
    assert {scheme_of(folder / name, sentences) for name, sentences in zip(names, files, strict=True)} == {"IOB2"}
    path = real_data / "ner" / "wikigold" / "CONLL-format" / "data" / "wikigold.conll.txt"
    sentences = read_sentences(path)
    found = in_scheme(path, sentences, scheme_of(path, sentences))
    assert (len(found), scheme_of(path, sentences)) == (1696, "IO")
    assert sum(len(sentence.entities) for sentence in found) == 3558


def test_predictions_keep_every_line_in_its_place(tmp_path):
    text = "-DOCSTART- -X- O\n\n\nold B-age\r\nship\tO\n\n\n-DOCSTART- O\nriver NN I-place\n"
    (tmp_path / "a").write_bytes(text.encode())
    sentences = read_sentences(tmp_path / "a")
    assert [sentence.line for sentence in sentences] == [4, 9]
    found = with_predictions(tmp_path / "a", [["O", "B-age"], ["O"]])
    expected = "-DOCSTART- -X- O\n\n\nold B-age O\r\nship\tO\tB-age\n\n\n-DOCSTART- O\nriver NN I-place O\n"
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
    with pytest.raises(UserError, match="contains no sentences"):
        list(read_words(tmp_path / "a"))
    with pytest.raises(UserError, match="contains no sentences"):
        list(with_predictions(tmp_path / "a", (words for words, _ in read_words(tmp_path / "a"))))
