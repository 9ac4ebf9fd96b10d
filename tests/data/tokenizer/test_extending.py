"""Words added to a vocabulary: a text's new ids, with each new token taken apart again, are its old ids."""

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, models, pre_tokenizers

from bert_jax.data.tokenizer.files import Parts
from bert_jax.data.tokenizer.tokenizer import KINDS, Tokenizer
from bert_jax.errors import UserError

TEXTS = ["the old river and a quiet ship isn't it? a card, and the vine (so it is)"] * 5
WORDS = ["covid", "covids", "rivercard", "stürmer"]
TEXT = "A covid, Covids (covid) covidiot\nrivercard; rivercards"
# What words, names and numbers are made of, and what stands between them.
ALPHABETS = {
    "wordpiece": st.sampled_from(
        [*"covidxsCOVIDü9y", "covid", "rivercard", "covids", *" \n\t.,;:!?()'\"-/&_", "中", "é"]
    ),
    "bpe": st.one_of(st.sampled_from([*"covid ,\n", "covid", " covid", "rivercard"]), st.characters(codec="utf-8")),
    "unigram": st.one_of(st.sampled_from([*"covid ,\n", "covid", " covid", "rivercard"]), st.characters(codec="utf-8")),
}


@pytest.fixture(scope="module")
def trained() -> dict[str, Tokenizer]:
    return {kind: Tokenizer.train(TEXTS, 300 if kind == "bpe" else 70, kind=kind) for kind in KINDS}


@pytest.fixture(scope="module")
def words(trained) -> dict[str, list[tuple[int, ...]]]:
    """The pieces of WORDS that each tokenizer knows and splits."""
    pieces = {kind: [trained[kind].encode_words([f" {word}"])[0] for word in WORDS] for kind in KINDS}
    return {
        kind: [one for (one,) in of_words if len(one) > 1 and trained[kind].unk_id not in one]
        for kind, of_words in pieces.items()
    }


@pytest.fixture(scope="module")
def longer(trained, words) -> dict[str, Tokenizer]:
    return {kind: trained[kind].extended(words[kind]) for kind in KINDS}


def taken_apart(ids: np.ndarray, first: int, words: list[tuple[int, ...]]) -> list[int]:
    return [piece for number in ids.tolist() for piece in (words[number - first] if number >= first else [number])]


@pytest.mark.parametrize("kind", KINDS)
def test_old_ids_stay_and_words_are_one_token(trained, words, longer, kind):
    old, new = trained[kind], longer[kind]
    assert len(words[kind]) >= 3 and new.vocab_size == old.vocab_size + len(words[kind])
    assert new.tokens(range(old.vocab_size)) == old.tokens(range(old.vocab_size))
    assert new.fingerprint != old.fingerprint and new.special_ids.tolist() == old.special_ids.tolist()
    for number, pieces in enumerate(words[kind], old.vocab_size):
        assert new.encode([old.decode(pieces)])[0].tolist() == [number]
        assert new.decode([number]) == old.decode(pieces)
    assert new.word_starts[old.vocab_size :].all() and (new.word_starts[: old.vocab_size] == old.word_starts).all()


@pytest.mark.parametrize(("kind", "inside"), [("wordpiece", False), ("bpe", False), ("unigram", True)])
def test_only_unigram_uses_new_tokens_within_words(trained, words, longer, kind, inside):
    first = trained[kind].vocab_size
    (covidiot,) = longer[kind].encode([" covidiot"])
    assert (covidiot.max() >= first) == inside
    (ids,) = longer[kind].encode([TEXT])
    assert taken_apart(ids, first, words[kind]) == trained[kind].encode([TEXT])[0].tolist()
    assert (ids >= first).any()


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_else_changes(trained, words, longer, kind):
    old, new = trained[kind], longer[kind]

    @settings(max_examples=150, deadline=None)
    @given(st.lists(ALPHABETS[kind], max_size=40).map("".join))
    def check(text: str):
        (before,), (after,) = old.encode([text]), new.encode([text])
        assert taken_apart(after, old.vocab_size, words[kind]) == before.tolist()

    check()


@pytest.mark.parametrize("kind", KINDS)
def test_files_hold_new_tokens(words, trained, longer, tmp_path, kind):
    longer[kind].save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    assert loaded.fingerprint == longer[kind].fingerprint
    np.testing.assert_array_equal(loaded.encode([TEXT])[0], longer[kind].encode([TEXT])[0])
    assert not (tmp_path / "merges.txt").exists(), "it cannot express tokens without merges"
    if kind == "unigram":
        (tmp_path / "tokenizer.json").unlink()  # the original's file has them, too
        np.testing.assert_array_equal(Tokenizer.load(tmp_path).encode([TEXT])[0], longer[kind].encode([TEXT])[0])
    more = loaded.extended(loaded.encode_words([" quietriver"])[0])  # once more
    assert more.vocab_size == loaded.vocab_size + 1
    np.testing.assert_array_equal(more.encode([TEXT])[0], loaded.encode([TEXT])[0])
    assert more.encode([" quietriver"])[0].tolist() == [loaded.vocab_size]


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_that_are_there_are_refused(trained, words, longer, kind):
    with pytest.raises(UserError, match=r"tokens that are there already: .*covid; leave them out"):
        longer[kind].extended(words[kind][:1])
    with pytest.raises(UserError, match="there already"):
        trained[kind].extended(words[kind][:1] * 2)


def test_added_tokens_of_a_byte_level_model_keep_their_ids(trained):
    """As in ModernBERT, whose special tokens follow those of the model."""
    engine = tokenizers.Tokenizer.from_str(trained["bpe"]._engine.to_str())
    engine.add_tokens(["   "])
    engine.add_special_tokens(["[CLS]", "[SEP]"])
    old = Tokenizer(Parts(engine, trained["bpe"]._specials | {"cls": "[CLS]", "sep": "[SEP]"}))
    new = old.extended(old.encode_words([" covid"])[0])
    assert (new.cls_id, new.sep_id) == (old.cls_id, old.sep_id) == (old.vocab_size - 2, old.vocab_size - 1)
    text = "a covid   [SEP] [CLS]"
    assert (
        taken_apart(new.encode([text])[0], old.vocab_size, old.encode_words([" covid"])[0])
        == old.encode([text])[0].tolist()
    )
    assert old.vocab_size in new.encode([text])[0]


def test_other_rules_are_refused(trained):
    parts = {kind: trained[kind]._parts for kind in KINDS}
    engine = tokenizers.Tokenizer.from_str(parts["wordpiece"].engine.to_str())
    engine.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(
        UserError, match=r"WordPiece with BertNormalizer and Whitespace\) cannot be extended, only BERT's"
    ):
        Tokenizer(Parts(engine, parts["wordpiece"].specials)).extended([])
    engine = tokenizers.Tokenizer.from_str(parts["unigram"].engine.to_str())
    engine.add_tokens(["<new>"])
    with pytest.raises(UserError, match="unigram tokenizer with added tokens cannot be extended"):
        Tokenizer(Parts(engine, parts["unigram"].specials)).extended([])
    engine = tokenizers.Tokenizer.from_str(parts["bpe"].engine.to_str())
    vocabulary = engine.get_vocab() | {"river": engine.get_vocab_size()}  # which no merge makes
    engine.model = models.BPE(vocabulary, [])
    engine.add_special_tokens([AddedToken(token) for token in parts["bpe"].specials.values()])
    with pytest.raises(UserError, match=r"it never makes its token .* of that word"):
        Tokenizer(Parts(engine, parts["bpe"].specials)).extended([])


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_makes_the_same_ids(transformers, longer, tmp_path, kind):
    longer[kind].save(tmp_path)
    reference = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in (TEXT, "COVID covid's the_covid stürmer STÜRMER (rivercard)\n\n covids", "covid"):
        assert reference(text, add_special_tokens=False)["input_ids"] == longer[kind].encode([text])[0].tolist()
