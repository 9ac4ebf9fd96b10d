"""The words of plain texts."""

import unicodedata
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bert_jax.data.words import continues, locate, whole_characters, words_of

# Characters that the rules look at, more often than chance would have them.
texts = st.text(st.one_of(st.characters(), st.sampled_from(" \t\u00a0\n..,-'($aé7\u0301\u200f\u200d中🙂")))


def cut(text: str) -> str:
    return "|".join(word.text for word in words_of(text))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I don't, he said.", "I|don't|,|he|said|."),
        ("“(state-of-the-art)”", "“|(|state-of-the-art|)|”"),
        ("$3.5 or 7%. It's 3.5.", "$|3.5|or|7|%|.|It's|3.5|."),
        ("the U.N. (U.S.A.), e.g. now...", "the|U.N.|(|U.S.A.|)|,|e.g.|now|.|.|."),
        ("U.S... Inc.", "U.S.|.|.|Inc|."),
        ("cafe\u0301! e\u0301. !\u0301a", "cafe\u0301|!|e\u0301|.|!\u0301|a"),
        ("हिन्दी। שָׁלוֹם!\u200f", "हिन्दी|।|שָׁלוֹם|!\u200f"),
        ("... -- :-)", ".|.|.|-|-|:|-|)"),
        ("New\u00a0York\u3000ok\n", "New|York|ok"),
        ("\u0301 \u200b", "\u0301|\u200b"),
        ("👩\u200d👩\u200d👧! 👍🏽. ❤\ufe0f\u200d🔥🔥", "👩\u200d👩\u200d👧|!|👍🏽|.|❤\ufe0f\u200d🔥|🔥"),
        ("🇩🇪🇫🇷, #\ufe0f\u20e3", "🇩🇪|🇫🇷|,|#\ufe0f\u20e3"),
        (" \n", ""),
    ],
)
def test_examples(text, expected):
    assert cut(text) == expected


@given(texts)
@example("U.N.\u0301 .a. \u0301.\u0301")
def test_words_cover_the_text_in_order(text):
    words = words_of(text)
    assert all(word.text and text[word.start : word.end] == word.text for word in words)
    assert all(before.end <= after.start for before, after in pairwise(words))
    assert "".join(word.text for word in words) == "".join(text.split())


@given(texts)
def test_punctuation_is_peeled_off_with_its_marks(text):
    for word in words_of(text):
        assert not text[: word.start][-1:].strip() or unicodedata.category(word.text[0])[0] != "M"
        bases = [
            category[0]
            for place, category in enumerate(map(unicodedata.category, word.text))
            if category != "Cf" and not continues(word.text, place)
        ]
        if len(bases) > 1:
            assert bases[0] not in "PS"
            assert bases[-1] not in "PS" or word.text.count(".") > 1


@given(texts)
def test_words_are_located_where_they_were_cut(text):
    words = words_of(text)
    assert locate([word.text for word in words], text) == words


@pytest.mark.parametrize("words", [["the", "old"], ["ship"], ["the", "", "ship"], ["he", "ship"], ["ship", "the"], []])
def test_words_of_another_text(words):
    assert locate(words, "the  ship") is None
    assert locate(["the", "ship"], " the ship ") == [("the", 1, 4), ("ship", 5, 9)]
    assert locate(["\u00a0", "s", "hip"], "\u00a0 ship") == [("\u00a0", 0, 1), ("s", 2, 3), ("hip", 3, 6)]


CLUSTERS = [  # each is one character for a reader: a rule of Unicode's annex 29, and where it is in the text below
    "e\u0301",  # GB9, Mn
    "a\u0301\u0323",
    "क\u0940",  # GB9a, Mc
    "1\ufe0f\u20e3",  # a variation selector, Mn, and a keycap, Me
    "❤\ufe0f",
    "👍\U0001f3fd",
    "👩\u200d👩\u200d👧",  # GB11
    "🏃\U0001f3fd\u200d♀\ufe0f",
    "🏴\U000e0067\U000e0062\U000e007f",
    "🇩🇪",  # GB12
    "\u1112\u1161\u11ab",  # GB6 to GB8
]


@pytest.mark.parametrize("before", ["", "a", " ", "🇫🇷", "🔥"])
@pytest.mark.parametrize("cluster", CLUSTERS)
def test_spans_are_of_whole_characters(cluster, before):
    text = f"{before}{cluster}b"
    first, after = len(before), len(before) + len(cluster)
    for start in range(first, after):
        for end in range(start + 1, after + 1):
            assert whole_characters(text, start, end) == (first, after)
    assert whole_characters(text, after, after + 1) == (after, after + 1)


def test_what_is_no_part_of_the_character_before():
    for text in ("ab", "a.", "a\u200b", "a\ufeff", "a ", "🔥🔥", "+\u200da"):
        assert whole_characters(text, 0, 1 + text.count("\u200d")) == (0, 1 + text.count("\u200d"))
    assert whole_characters(" \u0301a", 1, 2) == (1, 2), "a mark without a letter begins where it is"
