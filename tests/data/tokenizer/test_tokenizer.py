"""Tokenizer: BERT's rules, the same ids as its engine, repeatable training, saving and loading, errors."""

import json
import pickle

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bert_jax.data.tokenizer.files import WORDPIECE_SPECIALS
from bert_jax.data.tokenizer.tokenizer import Tokenizer
from bert_jax.errors import UserError

TEXTS = ["The unbelievable cats sat on the mat, and the cats' Café was éclair-shaped.", "שלום עולם", "كيف حالك؟ 🙂"] * 9
VOCABULARY = [
    "[UNK]",
    "[SEP]",
    "the",
    "cat",
    "##s",
    "un",
    "##believ",
    "##able",
    "[",
    "]",
    "[CLS]",
    "sep",
    ",",
    "[PAD]",
    "[MASK]",
]


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    return Tokenizer.train(TEXTS, 200)


@pytest.fixture
def small(tmp_path) -> Tokenizer:
    """A tokenizer read from a vocab.txt whose special tokens are in unusual places."""
    (tmp_path / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    return Tokenizer.load(tmp_path)


def test_ids_come_from_the_vocabulary(small):
    assert (small.unk_id, small.sep_id, small.cls_id, small.pad_id, small.mask_id) == (0, 1, 10, 13, 14)
    assert small.special_ids.tolist() == [0, 1, 10, 13, 14] and small.vocab_size == 15
    assert [VOCABULARY[i] for i in np.flatnonzero(~small.word_starts)] == ["##s", "##believ", "##able"]
    assert small.tokens([10, 3, 4]) == ["[CLS]", "cat", "##s"]
    with pytest.raises(IndexError, match="id 15 lies outside the vocabulary of 15 tokens"):
        small.tokens([15])


def test_fingerprints_of_corpora_made_before_stay(small):
    """It changes only if ids do; else prepared corpora would no longer go with their tokenizers."""
    assert small.fingerprint == "ec56d187c2fbc556"


def test_encode_and_decode(small):
    one, two, empty = small.encode(["The unbelievable  cats,\tthe dog", "cats [SEP] [MASK]", ""])
    assert one.dtype == np.int32 and one.tolist() == [2, 5, 6, 7, 3, 4, 12, 2, 0]
    assert small.decode(one) == "the unbelievable cats, the [UNK]"
    assert two.tolist() == [3, 4, 8, 11, 9, 8, 0, 9]  # special tokens in a text are text
    assert empty.dtype == np.int32 and empty.shape == (0,)
    assert small.encode([]) == []


def test_encode_with_masks(small):
    masked = small.encode_with_masks("[MASK] cats [SEP][MASK]")
    assert masked.dtype == np.int32 and masked.tolist() == [14, 3, 4, 8, 11, 9, 14]
    assert small.encode_with_masks("cats").tolist() == [3, 4]


def test_longest_word(small):
    known, unknown = small.encode(["cat" + "s" * 197, "cat" + "s" * 198])
    assert known.tolist() == [3] + [4] * 197 and unknown.tolist() == [0]


@settings(deadline=None)
@given(st.lists(st.text(), max_size=5))
@example(["a\x1cb \x85 \u2028 \u3000中文 á̂ [SEP]", "İ ſ ß Σίσυφος ﬁ"])  # noqa: RUF001
def test_looking_words_up_equals_encoding_the_whole_text(trained, texts):
    whole = [encoding.ids for encoding in trained._engine.encode_batch(texts, add_special_tokens=False)]
    assert [ids.tolist() for ids in trained.encode(texts)] == whole


def test_the_cache_is_bounded(trained, monkeypatch):
    monkeypatch.setattr("bert_jax.data.tokenizer.tokenizer.CACHED_WORDS", 10)
    tokenizer = pickle.loads(pickle.dumps(trained))
    texts = [" ".join(f"word{number}" for number in range(start, start + 8)) for start in range(0, 80, 8)]
    encoded = [tokenizer.encode([text])[0] for text in texts]
    assert len(tokenizer._cache) <= 10
    assert all(map(np.array_equal, encoded, trained.encode(texts)))


def test_training_is_repeatable_and_keeps_to_its_size(trained):
    assert trained.vocab_size <= 200
    assert trained.tokens(range(5)) == list(WORDPIECE_SPECIALS.values())
    again = [Tokenizer.train(iter(TEXTS), 200).fingerprint for _ in range(3)]
    assert again == [trained.fingerprint] * 3
    assert Tokenizer.train(TEXTS, trained.vocab_size - 1).fingerprint != trained.fingerprint


def test_training_lower_cases_unless_cased(trained):
    cased = Tokenizer.train(TEXTS, 200, cased=True)
    assert trained.decode(trained.encode(["The Café"])[0]) == "the cafe"
    assert cased.decode(cased.encode(["The Café"])[0]) == "The Café"


def test_right_to_left_text_and_emoji_survive(trained):
    for text in ("שלום עולם", "🙂"):
        assert trained.decode(trained.encode([text])[0]) == text


def test_save_and_load(trained, tmp_path):
    trained.save(tmp_path / "a")
    loaded = Tokenizer.load(tmp_path / "a")
    assert loaded.fingerprint == trained.fingerprint == pickle.loads(pickle.dumps(loaded)).fingerprint
    assert np.array_equal(loaded.word_starts, trained.word_starts)
    assert all(map(np.array_equal, loaded.encode(TEXTS), trained.encode(TEXTS)))
    config = json.loads((tmp_path / "a" / "tokenizer_config.json").read_text())
    assert config["do_lower_case"] is True and config["mask_token"] == "[MASK]"
    (tmp_path / "a" / "tokenizer.json").unlink()  # vocab.txt alone is enough
    assert Tokenizer.load(tmp_path / "a").fingerprint == trained.fingerprint


def test_vocabulary_alone_is_lower_cased_unless_the_configuration_says_otherwise(small, tmp_path):
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false, "pad_token": {"content": "[PAD]"}}')
    cased = Tokenizer.load(tmp_path)
    assert (small.encode(["The"])[0].tolist(), cased.encode(["The the"])[0].tolist()) == ([2], [0, 2])
    assert cased.fingerprint != small.fingerprint


def test_errors_name_the_thing_and_the_remedy(tmp_path):
    def fails(match: str, action=lambda: Tokenizer.load(tmp_path)) -> None:
        with pytest.raises(UserError, match=match) as error:
            action()
        assert "\n" not in str(error.value)

    fails(f"{tmp_path}/no: no such tokenizer folder; make it", lambda: Tokenizer.load(tmp_path / "no"))
    fails(
        f"{tmp_path}: no tokenizer.json, vocab.txt, vocab.json with merges.txt, or spiece.model; use a tokenizer folder"
    )
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\nword\n")
    fails(rf"{tmp_path}: tokenizer lacks the special token \[MASK\]; add it")
    (tmp_path / "tokenizer.json").write_text("{")
    fails(f"{tmp_path}/tokenizer.json: damaged, or not what is expected .*; copy or train it again")
    fails("vocab_size=20: too small for the alphabet of this source; use at least", lambda: Tokenizer.train(TEXTS, 20))
    fails("tokenizer: no words to train on", lambda: Tokenizer.train(["", " "], 20))


@pytest.mark.parametrize("words, tokens", [("paris", ["paris"]), ("paris\nParis", ["Paris"])])
def test_a_vocabulary_with_capitals_is_of_texts_with_capitals(tmp_path, words, tokens):
    (tmp_path / "vocab.txt").write_text(f"[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n{words}\n")
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.tokens(tokenizer.encode(["Paris"])[0]) == tokens
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    assert Tokenizer.load(tmp_path).tokens(Tokenizer.load(tmp_path).encode(["Paris"])[0]) == ["paris"]


@pytest.mark.real
def test_bert_base_uncased(real_data, tmp_path):
    path = real_data / "vocab" / "bert-base-uncased-vocab.txt"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    (tmp_path / "vocab.txt").symlink_to(path)
    tokenizer = Tokenizer.load(tmp_path)
    assert (tokenizer.vocab_size, tokenizer.pad_id, tokenizer.cls_id, tokenizer.mask_id) == (30_522, 0, 101, 103)
    # Ids published with the model.
    assert tokenizer.encode(["Hello, world!"])[0].tolist() == [7592, 1010, 2088, 999]
    assert tokenizer.tokens(tokenizer.encode(["unaffable"])[0]) == ["una", "##ffa", "##ble"]
    assert (
        tokenizer.decode(tokenizer.encode_with_masks("Paris is the [MASK] of France."))
        == "paris is the [MASK] of france."
    )
