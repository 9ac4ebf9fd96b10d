"""Byte-level BPE and unigram beside WordPiece: known segmentations, the files of each ecosystem, what goes in comes out, and
the same ids as sentencepiece and transformers give.
"""

import itertools
import json
import pickle
import unicodedata

import numpy as np
import pytest
import sentencepiece
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2
from tokenizers import decoders, models, pre_tokenizers

from bert_jax.data.corpus.format import Corpus
from bert_jax.data.corpus.prepare import prepare
from bert_jax.data.joining import join
from bert_jax.data.sources.documents import Document
from bert_jax.data.tokenizer.tokenizer import KINDS, Tokenizer
from bert_jax.errors import UserError
from tests.data.corpus.spans import read

TEXTS = ["The unbelievable cats sat on the mat, and the cats' Café was éclair-shaped.\nSo it was.", "שלום עולם 🙂"] * 9
TEXTS += [" ".join(map("".join, itertools.product(["ka", "lom", "ter", "ing", "s"], repeat=3)))]
SIZES = {"wordpiece": 150, "bpe": 320, "unigram": 90}
ODD = [
    "Résumé of ``the'' cats",
    "中文 cats 日本",
    "🙂 👩‍👩‍👧 cats",
    "a\x00b\tc \x1f d\u200b\u00ad",
    "ﬁ ½ Å ㍿ Ω",
    "Σίσυφος İ ſ ß",  # noqa: RUF001
    "1,000, 2-3 (a)",
    "  two  blanks ",
    "",
]
FILES = {
    "wordpiece": {"vocab.txt"},
    "bpe": {"vocab.json", "merges.txt"},
    "unigram": {"spiece.model"},
}
HUGGING_FACE_FILES = {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"}


@pytest.fixture(scope="module")
def trained() -> dict[str, Tokenizer]:
    return {kind: Tokenizer.train(TEXTS, SIZES[kind], kind=kind) for kind in KINDS}


def write_bpe(folder) -> None:
    """A RoBERTa in small: `low`, ` low`, `er`."""
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *"lower", "Ġ", "!", "lo", "low", "Ġlow", "er", "<mask>"]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(dict.fromkeys(tokens))}))
    (folder / "merges.txt").write_text("#version: 0.2\nl o\nlo w\nĠ low\ne r\n")


def write_unigram(folder, **changes) -> bytes:
    """An ALBERT in small. Without normalisation of its own."""
    scores = {"▁": -3.0, "c": -6, "a": -6, "t": -6, "s": -4, "▁cat": -4, "▁cats": -9, '"': -5, "▁a": -3.25}
    model = sentencepiece_model_pb2.ModelProto()
    model.trainer_spec.model_type = changes.get("model_type", 1)
    model.normalizer_spec.add_dummy_prefix = True
    for number, piece in enumerate(["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"]):
        model.pieces.add(piece=piece, score=0.0, type=2 if number == 1 else 3)
    for piece, score in scores.items():
        model.pieces.add(piece=piece, score=score)
    (folder / "spiece.model").write_bytes(model.SerializeToString())
    return model.SerializeToString()


def test_byte_level_bpe_by_hand(tmp_path):
    write_bpe(tmp_path)
    small = Tokenizer.load(tmp_path)
    assert (small.cls_id, small.pad_id, small.sep_id, small.unk_id, small.mask_id) == (0, 1, 2, 3, 15)
    assert small.special_ids.tolist() == [0, 1, 2, 3, 15] and small.vocab_size == 16

    def pieces(text: str) -> list[str]:
        return small.tokens(small.encode([text])[0])

    assert pieces("lower low") == ["low", "er", "Ġlow"]
    assert pieces(" lower!  low") == ["Ġlow", "er", "!", "Ġ", "Ġlow"]
    assert small.decode(small.encode(["lower low"])[0]) == "lower low"
    assert [t for t, start in zip(small.tokens(range(16)), small.word_starts, strict=True) if start] == [
        *("<s>", "<pad>", "</s>", "<unk>", "Ġ", "Ġlow", "<mask>"),
    ]
    # The mask takes the blank before it, and stands for " low".
    assert small.tokens(small.encode_with_masks("low <mask> low!<mask>")) == ["low", "<mask>", "Ġlow", "!", "<mask>"]


def test_unigram_by_hand(tmp_path):
    spiece = write_unigram(tmp_path)
    small = Tokenizer.load(tmp_path)
    assert (small.pad_id, small.unk_id, small.cls_id, small.sep_id, small.mask_id) == (0, 1, 2, 3, 4)

    def pieces(text: str) -> list[str]:
        return small.tokens(small.encode([text])[0])

    assert pieces("Cats cát") == ["▁cat", "s", "▁cat"]  # -8 for two pieces, -9 for one
    assert pieces("``cat'' a") == ["▁", '"', "c", "a", "t", '"', "▁a"]
    assert pieces("a 中文") == ["▁a", "▁", "<unk>"]
    # Special tokens in a text are text.
    assert pieces("<pad> [MASK]") == ["▁", "<unk>", "a", "<unk>", "▁", "<unk>", "a", "s", "<unk>"]
    assert small.decode(small.encode(["Cats cát"])[0]) == "cats cat"
    starts = [token for token, start in zip(small.tokens(range(14)), small.word_starts, strict=True) if start]
    assert starts == ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]", "▁", "▁cat", "▁cats", "▁a"]
    assert small.tokens(small.encode_with_masks("cats [MASK] a")) == ["▁cat", "s", "[MASK]", "▁a"]
    small.save(tmp_path / "saved")
    assert (tmp_path / "saved" / "spiece.model").read_bytes() == spiece
    (tmp_path / "spiece.model").rename(tmp_path / "30k-clean.model")  # as in the folders of ALBERT's authors
    assert Tokenizer.load(tmp_path).fingerprint == small.fingerprint

    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false, "keep_accents": true}')
    cased = Tokenizer.load(tmp_path)
    assert cased.tokens(cased.encode(["cát Cat"])[0]) == ["▁", "c", "<unk>", "t", "▁", "<unk>", "a", "t"]
    assert cased.fingerprint != small.fingerprint


@pytest.mark.parametrize("kind", KINDS)
def test_files(trained, tmp_path, kind):
    tokenizer = trained[kind]
    tokenizer.save(tmp_path / "a")
    assert {path.name for path in (tmp_path / "a").iterdir()} == FILES[kind] | HUGGING_FACE_FILES
    loaded = Tokenizer.load(tmp_path / "a")
    loaded.save(tmp_path / "b")
    (tmp_path / "a" / "tokenizer.json").unlink()  # the ecosystem's own files are enough ...
    own = Tokenizer.load(tmp_path / "a")
    for name in FILES[kind] | {"tokenizer_config.json", "special_tokens_map.json"}:
        (tmp_path / "b" / name).unlink()  # ... and so is tokenizer.json
    alone = Tokenizer.load(tmp_path / "b")
    for other in (loaded, own, alone, pickle.loads(pickle.dumps(tokenizer))):
        assert other.fingerprint == tokenizer.fingerprint
        assert other.special_ids.tolist() == tokenizer.special_ids.tolist()
        assert other.separators_between == tokenizer.separators_between
        assert np.array_equal(other.word_starts, tokenizer.word_starts)
        assert all(map(np.array_equal, other.encode(TEXTS + ODD), tokenizer.encode(TEXTS + ODD)))


@pytest.mark.parametrize("kind", KINDS)
def test_half_a_surrogate_pair_is_refused_in_one_line(trained, kind):
    tokenizer, text = trained[kind], "so " * 50 + "it \ud83d was [MASK]"
    calls = [
        lambda: tokenizer.encode(["a cat", text]),
        lambda: tokenizer.encode_with_offsets(["a cat", text]),
        lambda: tokenizer.encode_with_masks(text),
        lambda: Tokenizer.train([*TEXTS, text], 400, kind=kind),
    ]
    for call in calls:
        with pytest.raises(UserError, match=r"'\\ud83d' is an unpaired surrogate; replace") as error:
            call()
        assert "\n" not in str(error.value) and len(str(error.value)) < 150 and str(error.value).isascii()
    assert tokenizer.encode(["a cat"])[0].size, "it goes on"
    with pytest.raises(TypeError):
        tokenizer.encode_with_offsets([None])


@pytest.mark.parametrize("kind", KINDS)
def test_training(trained, kind):
    tokenizer, size = trained[kind], SIZES[kind]
    assert tokenizer.vocab_size == size
    again = Tokenizer.train(iter(TEXTS), size, kind=kind)
    assert again.fingerprint == tokenizer.fingerprint
    assert Tokenizer.train(TEXTS, 100_000, kind=kind).vocab_size < 1000  # there are no more pieces
    cased = Tokenizer.train(TEXTS, size, cased=True, kind=kind)
    assert cased.decode(cased.encode(["The Café"])[0]) == "The Café"
    assert tokenizer.decode(tokenizer.encode(["The Café"])[0]) == ("The Café" if kind == "bpe" else "the cafe")
    with pytest.raises(UserError, match="vocab_size=20: too small for the alphabet of this source; use at least"):
        Tokenizer.train(TEXTS, 20, kind=kind)
    with pytest.raises(UserError, match="tokenizer: no words to train on"):
        Tokenizer.train(["", " \n "], 300, kind=kind)


def test_unknown_kind():
    with pytest.raises(UserError, match="kind='bytes' is not one of wordpiece, bpe, unigram"):
        Tokenizer.train(TEXTS, 300, kind="bytes")


def test_the_first_ids_of_a_trained_bpe_are_those_of_roberta(trained):
    assert trained["bpe"].tokens(range(4)) == ["<s>", "<pad>", "</s>", "<unk>"]
    assert not any("Ċ" in token and len(token) > 1 for token in trained["bpe"].tokens(range(320)))


# ---------------------------------------------------------------------------------------------------------------------
# Pairs
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind, separators", [("wordpiece", 1), ("bpe", 2), ("unigram", 1)])
def test_pairs_have_the_separators_of_their_kind(trained, kind, separators):
    tokenizer = trained[kind]
    assert tokenizer.separators_between == separators
    assert [tokenizer.num_special_tokens(segments) for segments in (1, 2)] == [2, 2 + separators]
    a, b = np.array([40, 41], np.int32), np.array([42], np.int32)
    cls, sep, pad = tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id
    pair = join(tokenizer, 10, a, b)
    ids = [cls, 40, 41, *[sep] * separators, 42, sep]
    assert pair["input_ids"].tolist() == ids + [pad] * (10 - len(ids))
    assert pair["attention_mask"].sum() == len(ids)
    assert pair["token_type_ids"].tolist() == [0] * (len(ids) - 2) + [1, 1] + [0] * (10 - len(ids))
    assert join(tokenizer, 4, a)["input_ids"].tolist() == [cls, 40, 41, sep]


def test_sentences_of_a_corpus_keep_the_blank_between_them(trained, tmp_path):
    text = "The cats sat. So it was.\nThe mat was unbelievable."
    prepare([Document("a", text)], trained["bpe"], tmp_path / "c", source="x", held_out_fraction=0.0)
    corpus = Corpus.open(tmp_path / "c")
    tokens = read(corpus, 0, 0, int(corpus.shard_tokens[0])).tokens
    assert trained["bpe"].decode(tokens) == text.replace("\n", "") + "</s>"
    assert Tokenizer.load(tmp_path / "c" / "tokenizer").fingerprint == corpus.tokenizer_fingerprint


# ---------------------------------------------------------------------------------------------------------------------
# Properties
# ---------------------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.text())
@example("a\x1cb \x85 \u2028 \u3000中文 á̂ <s></s><mask>[SEP] 🙂\n\n  x ")
def test_bytes_come_back(trained, text):
    tokenizer = trained["bpe"]
    (ids,) = tokenizer.encode([text])
    assert tokenizer.decode(ids) == text
    assert not np.isin(ids, tokenizer.special_ids).any()


@settings(deadline=None)
@given(st.sampled_from(KINDS), st.text(), st.data())
def test_special_tokens_in_a_text_are_text(trained, kind, text, data):
    tokenizer = trained[kind]
    special = tokenizer.tokens([data.draw(st.sampled_from(tokenizer.special_ids.tolist()))])[0]
    (ids,) = tokenizer.encode([f"{text}{special} {text}"])
    assert not np.isin(ids, np.setdiff1d(tokenizer.special_ids, [tokenizer.unk_id])).any()


def albert_text(text: str) -> str:
    """google-research/albert tokenization.py, preprocess_text."""
    decomposed = unicodedata.normalize("NFKD", text.replace("``", '"').replace("''", '"'))
    return "".join(character for character in decomposed if not unicodedata.combining(character)).lower()


@settings(deadline=None)
@given(st.text("abcdehiltunsCTÉéñ \u0301`',.-שלם中🙂ﬁＡ½\t\u200b"))
def test_the_same_ids_as_sentencepiece(trained, text):
    tokenizer = trained["unigram"]
    reference = sentencepiece.SentencePieceProcessor(model_proto=tokenizer._parts.spiece)
    assert tokenizer.encode([text])[0].tolist() == reference.encode(albert_text(text))


# ---------------------------------------------------------------------------------------------------------------------
# Folders of others
# ---------------------------------------------------------------------------------------------------------------------


def modern_folder(folder, specials=("[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"), template: bool = True):
    """Byte-level BPE with BERT's special tokens after the vocabulary and text tokens of its own, as ModernBERT has."""
    engine = tokenizers.Tokenizer(models.BPE({"l": 0, "o": 1, "w": 2, "Ġ": 3, "lo": 4}, [("l", "o")]))
    engine.pre_tokenizer, engine.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    engine.add_tokens([tokenizers.AddedToken("  ", normalized=False)])
    engine.add_special_tokens(list(specials))
    if template:
        ids = [(token, engine.token_to_id(token)) for token in specials[1:3]]
        single, pair = ("{1}:0 $A:0 {2}:0".format(*specials), "{1}:0 $A:0 {2}:0 $B:1 {2}:1".format(*specials))
        engine.post_processor = tokenizers.processors.TemplateProcessing(single=single, pair=pair, special_tokens=ids)
    engine.enable_truncation(3)
    engine.save(str(folder / "tokenizer.json"))


def test_a_tokenizer_json_of_another_family(tmp_path):
    modern_folder(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"model_input_names": ["input_ids"], "mask_token": "[MASK]"}')
    modern = Tokenizer.load(tmp_path)
    assert (modern.unk_id, modern.cls_id, modern.sep_id, modern.pad_id, modern.mask_id) == (6, 7, 8, 9, 10)
    assert modern.separators_between == 1 and modern.vocab_size == 11
    assert modern.tokens(modern.encode(["low  low"])[0]) == ["lo", "w", "  ", "lo", "w"]
    modern.save(tmp_path / "saved")
    assert Tokenizer.load(tmp_path / "saved").fingerprint == modern.fingerprint
    config = json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast" and config["model_input_names"] == ["input_ids"]


def test_roles_are_found_by_use_and_by_name(tmp_path):
    modern_folder(tmp_path, ("<unk>", "<begin>", "<end>", "<|padding|>", "<|mask|>"))
    found = Tokenizer.load(tmp_path)
    assert (found.unk_id, found.cls_id, found.sep_id, found.pad_id, found.mask_id) == (6, 7, 8, 9, 10)
    modern_folder(tmp_path, template=False)
    Tokenizer.load(tmp_path).save(tmp_path / "framed")
    framed = tokenizers.Tokenizer.from_file(str(tmp_path / "framed" / "tokenizer.json"))
    assert framed.encode("lo", "w").tokens == ["[CLS]", "lo", "[SEP]", "w", "[SEP]"]
    modern_folder(tmp_path, ("<unk>", "<begin>", "<end>", "<|padding|>"))
    with pytest.raises(UserError, match=r"lacks the special token \[MASK\].*set mask_token in tokenizer_config"):
        Tokenizer.load(tmp_path)
    (tmp_path / "special_tokens_map.json").write_text('{"mask_token": {"content": "<hole>"}}')
    with pytest.raises(UserError, match=r"lacks the special token <hole>; add it to the vocabulary or train another$"):
        Tokenizer.load(tmp_path)


def test_bert_settings(tmp_path):
    (tmp_path / "vocab.txt").write_text(
        "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n中\n##文\n文\ncafe\ncafé\n", encoding="utf-8"
    )

    def pieces(**config) -> list[str]:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
        tokenizer = Tokenizer.load(tmp_path)
        tokenizer.save(tmp_path / "saved")
        (tmp_path / "saved" / "tokenizer.json").unlink()
        assert Tokenizer.load(tmp_path / "saved").fingerprint == tokenizer.fingerprint
        return tokenizer.tokens(tokenizer.encode(["中文 Café"])[0])

    assert pieces() == ["中", "文", "cafe"]
    assert pieces(tokenize_chinese_chars=False) == ["中", "##文", "cafe"]
    assert pieces(strip_accents=False) == ["中", "文", "café"]
    assert pieces(do_lower_case=False) == ["中", "文", "[UNK]"]


def test_damaged_files(tmp_path):
    def fails(match: str) -> None:
        with pytest.raises(UserError, match=match) as error:
            Tokenizer.load(tmp_path)
        assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)

    write_unigram(tmp_path, model_type=2)
    fails("spiece.model is not a unigram model; add a tokenizer.json to the folder")
    (tmp_path / "spiece.model").write_bytes(b"not a model")
    fails("spiece.model is damaged .*; copy or train it again")
    write_bpe(tmp_path)
    (tmp_path / "merges.txt").write_text("#version: 0.2\nl o w\n")
    fails("merges.txt: line 2 is not a pair of tokens: 'l o w'; copy or train it again")
    (tmp_path / "tokenizer_config.json").write_text("{")
    fails("tokenizer_config.json: damaged, or not what is expected .*; copy or train it again")


# ---------------------------------------------------------------------------------------------------------------------
# transformers, and released vocabularies
# ---------------------------------------------------------------------------------------------------------------------


def assert_as_transformers(transformers, tokenizer: Tokenizer, folder, texts: list[str]) -> None:
    tokenizer.save(folder)
    theirs = transformers.AutoTokenizer.from_pretrained(str(folder))
    assert [theirs(text, add_special_tokens=False)["input_ids"] for text in texts] == [
        ids.tolist() for ids in tokenizer.encode(texts)
    ]
    a, b = tokenizer.encode(["the cats", "sat"])
    pair = join(tokenizer, len(a) + len(b) + tokenizer.num_special_tokens(2), a, b)
    encoded = theirs("the cats", "sat")
    assert encoded["input_ids"] == pair["input_ids"].tolist()
    if "token_type_ids" in encoded:
        assert encoded["token_type_ids"] == pair["token_type_ids"].tolist()
    masked = f"the {theirs.mask_token} sat"
    assert theirs(masked, add_special_tokens=False)["input_ids"] == tokenizer.encode_with_masks(masked).tolist()
    ids = (theirs.pad_token_id, theirs.unk_token_id, theirs.cls_token_id, theirs.sep_token_id, theirs.mask_token_id)
    assert ids == (tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cased", [False, True])
def test_transformers_gives_the_same_ids(transformers, tmp_path, kind, cased):
    tokenizer = Tokenizer.train(TEXTS, 320, cased, kind)
    assert_as_transformers(transformers, tokenizer, tmp_path, TEXTS[:2] + ODD)


def test_transformers_reads_other_families(transformers, tmp_path):
    modern_folder(tmp_path)
    assert_as_transformers(transformers, Tokenizer.load(tmp_path), tmp_path / "saved", ["low  low", "wool"])


RELEASED = {
    "bert-base-cased": ({"vocab.txt": "bert-base-cased-vocab.txt"}, [8667, 1362]),
    "roberta-base": ({"vocab.json": "roberta-base-vocab.json", "merges.txt": "roberta-base-merges.txt"}, [31414, 232]),
    "albert-base": ({"spiece.model": "albert-spiece.model"}, [10975, 126]),
}


def released(name: str, real_data, folder) -> Tokenizer:
    """A released tokenizer, whose files are linked to from the folder."""
    for link, file in RELEASED[name][0].items():
        if not (path := real_data / "vocab" / file).exists():
            pytest.skip(f"{path} is not there")
        (folder / link).symlink_to(path)
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": name != "bert-base-cased"}))
    return Tokenizer.load(folder)


@pytest.mark.real
@pytest.mark.parametrize("name", RELEASED)
def test_released_vocabularies(real_data, tmp_path, name):
    hello_world = RELEASED[name][1]
    tokenizer = released(name, real_data, tmp_path)
    assert tokenizer.encode(["Hello world"])[0].tolist() == hello_world
    if name == "albert-base":
        reference = sentencepiece.SentencePieceProcessor(str(tmp_path / "spiece.model"))
        assert [ids.tolist() for ids in tokenizer.encode(ODD)] == [reference.encode(albert_text(text)) for text in ODD]


@pytest.mark.real
@pytest.mark.parametrize("name", RELEASED)
def test_transformers_reads_released_vocabularies_as_we_do(transformers, real_data, tmp_path, name):
    assert_as_transformers(transformers, released(name, real_data, tmp_path), tmp_path / "saved", ODD)
