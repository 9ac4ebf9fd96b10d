"""Tokens added to a vocabulary: their ids, wherever they are named, and that they are tokens where they occur in a text."""

import json
import pickle

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, normalizers, pre_tokenizers, processors

from bert_jax.data.tokenizer.tokenizer import KINDS, Tokenizer
from bert_jax.errors import UserError

TEXTS = ["the virus and the url of the crisis, see what the e1 is vocal on"] * 3
MODEL_TYPES = {"wordpiece": "bert", "bpe": "roberta", "unigram": "albert"}
WHERE = ("added_tokens.json", "added_tokens_decoder", "tokenizer.json")
NEW = ["covid", "[URL]", "[E1]"]  # the last of them is special
TEXT = "see COVID and [URL], the covids[E1] of covid."


@pytest.fixture(scope="module")
def trained() -> dict[str, Tokenizer]:
    return {kind: Tokenizer.train(TEXTS, 300, kind=kind) for kind in KINDS}


def write(folder, tokenizer: Tokenizer, kind: str, where: str) -> int:
    """The files of a tokenizer with NEW added; returns the id of the first of them."""
    tokenizer.save(folder)
    first, engine = tokenizer.vocab_size, folder / "tokenizer.json"
    config = json.loads((folder / "tokenizer_config.json").read_text())
    names = json.loads((folder / "special_tokens_map.json").read_text())
    config["additional_special_tokens"] = names["additional_special_tokens"] = NEW[2:]
    if where == "tokenizer.json":
        full = tokenizers.Tokenizer.from_file(str(engine))
        full.add_tokens(NEW[:2])
        full.add_special_tokens(NEW[2:])
        full.save(str(engine))
    else:
        engine.unlink()
    if where == "added_tokens.json":
        del config["additional_special_tokens"]
        ids = {NEW[2]: first + 2, NEW[1]: first + 1, NEW[0]: first}
        (folder / "added_tokens.json").write_text(json.dumps(ids))
    if where == "added_tokens_decoder":
        flags = {"single_word": False, "lstrip": False, "rstrip": False}
        config["added_tokens_decoder"] = {
            str(first + number): {"content": token, "normalized": number < 2, "special": number == 2} | flags
            for number, token in enumerate(NEW)
        }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "special_tokens_map.json").write_text(json.dumps(names))
    (folder / "config.json").write_text(json.dumps({"model_type": MODEL_TYPES[kind]}))
    return first


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("kind", KINDS)
def test_added_tokens_have_their_ids_and_are_tokens_in_a_text(trained, tmp_path, kind, where):
    plain = trained[kind]
    first = write(tmp_path, plain, kind, where)
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.vocab_size == first + 3 and tokenizer.tokens(range(first, first + 3)) == NEW
    covid, url, e1 = range(first, first + 3)
    (ids,) = tokenizer.encode([TEXT])
    # Byte-level BPE does not lower-case, and so has no "COVID".
    upper = [] if kind == "bpe" else [covid]
    assert ids[ids >= first].tolist() == [*upper, url, covid, e1, covid]
    before, after = tokenizer.encode(["see and ", " and "])
    assert tokenizer.encode(["see and [URL] and "])[0].tolist() == [*before, url, *after], (
        "what is around it is as it was"
    )
    assert [ids.tolist() for ids in tokenizer.encode(TEXTS)] == [ids.tolist() for ids in plain.encode(TEXTS)]
    assert tokenizer.special_ids.tolist() == plain.special_ids.tolist(), "the roles alone can not be masked"
    assert tokenizer.word_starts[first:].all()

    text = "[URL] the [E1]covid"
    ((ids, offsets),) = tokenizer.encode_with_offsets([text])
    assert ids.tolist() == tokenizer.encode([text])[0].tolist()
    spans = {text[start:end] for number, (start, end) in zip(ids, offsets, strict=True) if number >= first}
    assert spans == {"[URL]", "[E1]", "covid"}
    mask = plain.tokens([plain.mask_id])[0]
    ids = tokenizer.encode_with_masks(f"[E1] {mask} covid")
    assert ids[np.isin(ids, [covid, url, e1, tokenizer.mask_id])].tolist() == [e1, tokenizer.mask_id, covid]
    assert tokenizer.fingerprint != plain.fingerprint


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_folder_holds_them(trained, tmp_path, kind, where):
    first = write(tmp_path / "theirs", trained[kind], kind, where)
    tokenizer = Tokenizer.load(tmp_path / "theirs")
    tokenizer.save(tmp_path / "ours")
    copies = [pickle.loads(pickle.dumps(tokenizer)), Tokenizer.load(tmp_path / "ours")]
    (tmp_path / "ours" / "tokenizer.json").unlink()  # the files of the kind and the settings say the same
    copies.append(Tokenizer.load(tmp_path / "ours"))
    for copy in copies:
        assert copy.fingerprint == tokenizer.fingerprint and copy.vocab_size == first + 3
        assert copy.encode([TEXT])[0].tolist() == tokenizer.encode([TEXT])[0].tolist()
        assert copy.tokens(range(first + 3)) == tokenizer.tokens(range(first + 3))
    if kind == "wordpiece":
        lines = (tmp_path / "ours" / "vocab.txt").read_text().splitlines()
        assert lines == trained[kind].tokens(range(first)), "added tokens are not pieces"


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("kind", KINDS)
def test_transformers_gives_the_same_ids(transformers, trained, tmp_path, kind, where):
    write(tmp_path / "theirs", trained[kind], kind, where)
    tokenizer = Tokenizer.load(tmp_path / "theirs")
    tokenizer.save(tmp_path / "ours")
    texts = [TEXT, *TEXTS, "[url] covid's  [E1] covid", "[E1]", "x[URL]y [URL] z"]
    # Where added_tokens.json and special_tokens_map.json name a special token, transformers 5 finds it in capitals or not,
    # and transformers 4 only as it is written.
    texts += [] if where == "added_tokens.json" else ["[e1] covid"]
    expected = [ids.tolist() for ids in tokenizer.encode(texts)]
    for folder in ("theirs", "ours"):
        theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path / folder))
        assert [theirs(text, add_special_tokens=False)["input_ids"] for text in texts] == expected, folder
    flags = {token.content: token.special for token in theirs.added_tokens_decoder.values()}
    assert flags["[E1]"] and not flags["covid"] and not flags["[URL]"], "in what is written, they are what they were"


def test_special_tokens_without_an_id_come_after_the_vocabulary(trained, tmp_path):
    """As in transformers: the ids that follow, in the order in which they are named."""
    trained["wordpiece"].save(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    size = trained["wordpiece"].vocab_size

    def ids(**changes) -> list[int]:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | changes))
        tokenizer = Tokenizer.load(tmp_path)
        return [number for number in tokenizer.encode(["[E1] the [E2] the"])[0] if number >= size]

    assert ids() == []
    assert ids(additional_special_tokens=["[E1]", "[E2]"]) == [size, size + 1]
    assert ids(extra_special_tokens={"e": "[E2]"}) == [size]
    assert ids(bos_token="[E1]", e_token={"content": "[E2]", "lstrip": True}) == [size, size + 1]


def test_roles_stay_text_whatever_their_flags(tmp_path):
    vocabulary = {
        "[PAD]": 0,
        "[UNK]": 1,
        "[CLS]": 2,
        "[SEP]": 3,
        "[MASK]": 4,
        "[": 5,
        "]": 6,
        "sep": 7,
        "mask": 8,
        "a": 9,
    }
    engine = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    engine.normalizer, engine.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    engine.add_tokens(["[SEP]", "[MASK]"])  # not as special ones
    engine.add_special_tokens(["[CLS]", "[E1]"])
    engine.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    engine.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.encode(["a [SEP] [E1] [MASK]"])[0].tolist() == [9, 5, 7, 6, 10, 5, 8, 6]
    assert tokenizer.encode_with_masks("a [SEP] [MASK]").tolist() == [9, 5, 7, 6, 4]


@settings(deadline=None, max_examples=200)
@given(
    st.lists(
        st.sampled_from(["covid", "COVID", "[URL]", "[E1]", "中文", "see", "the", " ", "  ", "s", ".", "\t", "\u00a0"])
    ),
    st.sampled_from([["covid", "[URL]"], ["中文"], ["see the"], ["see\u00a0the"], []]),
)
def test_words_looked_up_equal_whole_texts(trained, parts, plain):
    engine = tokenizers.Tokenizer.from_str(trained["wordpiece"]._engine.to_str())
    engine.add_tokens(plain)
    engine.add_special_tokens(["[E1]"])
    tokenizer = Tokenizer(trained["wordpiece"]._parts.__class__(engine, trained["wordpiece"]._specials))
    text = "".join(parts)
    ((whole, _),) = tokenizer.encode_with_offsets([text])
    assert tokenizer.encode([text])[0].tolist() == whole.tolist()
    assert (tokenizer._cache is None) == any(" " in token or "\u00a0" in token or "中" in token for token in plain)


def test_ids_that_contradict_the_vocabulary_are_refused(trained, tmp_path):
    write(tmp_path, trained["wordpiece"], "wordpiece", "added_tokens.json")
    size = trained["wordpiece"].vocab_size

    def fails(added: dict, match: str) -> None:
        (tmp_path / "added_tokens.json").write_text(json.dumps(added))
        with pytest.raises(UserError, match=match) as error:
            Tokenizer.load(tmp_path)
        assert "\n" not in str(error.value)

    fails(
        {"covid": size + 7},
        rf"added_tokens.json gives the token 'covid' the id {size + 7}, but .* implies {size}: added",
    )
    fails({"covid": str(size)}, r"added_tokens.json: invalid contents \(Expected `int`, got `str`")
    fails({"": size}, f"gives the id {size} to an empty token")
    fails(["covid"], "added_tokens.json: damaged, or not what is expected")
    fails({"covid": 3}, rf"gives the token 'covid' the id 3, but the vocabulary implies {size}")
    fails({"the": size}, rf"gives the token 'the' the id {size}, but the vocabulary implies \d+")
    (tmp_path / "added_tokens.json").unlink()
    trained["wordpiece"].save(tmp_path)
    spec = json.loads((tmp_path / "tokenizer.json").read_text())
    spec["added_tokens"].append(spec["added_tokens"][-1] | {"id": size + 3, "content": "covid"})
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    with pytest.raises(UserError, match=rf"tokenizer.json gives the token 'covid' the id {size + 3}, but"):
        Tokenizer.load(tmp_path)


# ---------------------------------------------------------------------------------------------------------------------
# Settings that decide how a vocabulary is read
# ---------------------------------------------------------------------------------------------------------------------

BERT_WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "abc", "a", "##b", "##c", "ABC", "the"]


def write_words(folder, words=BERT_WORDS, config=None, engine_lowercases=None) -> None:
    """A vocab.txt, tokenizer_config.json and, with `engine_lowercases`, a tokenizer.json that does or does not lower-case."""
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in words), encoding="utf-8")
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    if engine_lowercases is not None:
        vocabulary = {word: number for number, word in enumerate(words)}
        engine = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
        engine.normalizer = normalizers.BertNormalizer(lowercase=engine_lowercases)
        engine.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        engine.add_special_tokens(words[:5])
        engine.save(str(folder / "tokenizer.json"))


@pytest.mark.parametrize("names, lowercases", [(0, True), (1, True), (300, True), (1500, False)])
def test_capitals_are_decided_by_the_whole_vocabulary(tmp_path, names, lowercases):
    words = [*BERT_WORDS[:5], "##s", "paris", "中", *(f"[unused{number}]" for number in range(50))]
    words += [f"w{''.join(chr(97 + int(digit)) for digit in str(number))}" for number in range(8500)]
    words += [f"Name{number}" for number in range(names)]  # put in place of unused tokens
    write_words(tmp_path, words)
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.tokens(tokenizer.encode(["Paris"])[0]) == (["paris"] if lowercases else ["[UNK]"])


@pytest.mark.real
def test_the_uncased_vocabulary_with_a_name_in_it_stays_uncased(real_data, tmp_path):
    source = real_data / "vocab" / "bert-base-uncased-vocab.txt"
    if not source.exists():
        pytest.skip(f"{source} is not there")
    (tmp_path / "vocab.txt").write_text(source.read_text().replace("[unused7]", "Hyderabad"))
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.tokens(tokenizer.encode(["Paris IS the capital"])[0]) == ["paris", "is", "the", "capital"]


@pytest.mark.parametrize(
    "config, model, named",
    [
        ({"tokenizer_class": "BertJapaneseTokenizer"}, {}, "BertJapaneseTokenizer, named in tokenizer_config.json"),
        ({}, {"tokenizer_class": "BertJapaneseTokenizer"}, "BertJapaneseTokenizer, named in config.json"),
        ({"word_tokenizer_type": "mecab"}, {}, "word_tokenizer_type='mecab' in tokenizer_config.json"),
        ({"subword_tokenizer_type": "character"}, {}, "subword_tokenizer_type='character' in tokenizer_config.json"),
        ({"tokenizer_class": "BertweetTokenizer"}, {}, "BertweetTokenizer"),
        ({"tokenizer_class": "RoFormerTokenizerFast"}, {}, "RoFormerTokenizer.*add a tokenizer.json to the folder"),
    ],
)
def test_classes_with_other_rules_are_refused_by_name(tmp_path, config, model, named):
    write_words(tmp_path, config=config)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"} | model))
    with pytest.raises(UserError, match=named) as error:
        Tokenizer.load(tmp_path)
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)
    if "RoFormer" in named:  # whose tokenizer.json says all
        write_words(tmp_path, config=config, engine_lowercases=True)
        assert Tokenizer.load(tmp_path).encode(["ABC"])[0].tolist() == [5]


@pytest.mark.parametrize("name", ["BertTokenizer", "ElectraTokenizerFast", "DistilBertTokenizer", None])
def test_classes_with_the_rules_of_bert_are_read(tmp_path, name):
    write_words(tmp_path, config={"tokenizer_class": name, "word_tokenizer_type": "basic"})
    assert Tokenizer.load(tmp_path).encode(["abcb the"])[0].tolist() == [5, 7, 10]


@pytest.mark.parametrize(
    "files, name", [("bpe", "HerbertTokenizer"), ("bpe", "DebertaTokenizer"), ("unigram", "T5Tokenizer")]
)
def test_other_kinds_have_their_classes(trained, tmp_path, files, name):
    trained[files].save(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"tokenizer_class": name}))
    with pytest.raises(UserError, match=f"{name}, named in tokenizer_config.json, has its own rules"):
        Tokenizer.load(tmp_path)
    del config["tokenizer_class"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "config.json").write_text('{"model_type": "xlm-roberta"}')
    with pytest.raises(UserError, match=r"XLMRobertaTokenizer, named in config\.json"):
        Tokenizer.load(tmp_path)


def test_files_that_contradict_each_other_are_refused(trained, tmp_path):
    write_words(tmp_path, config={"do_lower_case": True}, engine_lowercases=False)
    with pytest.raises(UserError, match=r"tokenizer_config.json has do_lower_case=True, but tokenizer.json has False"):
        Tokenizer.load(tmp_path)
    for config in ({"do_lower_case": False}, {}, {"do_lower_case": True, "tokenizer_class": "PreTrainedTokenizerFast"}):
        write_words(tmp_path, config=config, engine_lowercases=False)
        assert Tokenizer.load(tmp_path).encode(["ABC abc"])[0].tolist() == [9, 5]
    for config in ({"strip_accents": False}, {"tokenize_chinese_chars": False}, {"do_lower_case": False}):
        write_words(tmp_path, config=config, engine_lowercases=True)
        with pytest.raises(UserError, match=f"has {next(iter(config))}=False, but tokenizer.json has True"):
            Tokenizer.load(tmp_path)
    write_words(tmp_path, config={"strip_accents": None, "do_lower_case": True}, engine_lowercases=True)
    assert Tokenizer.load(tmp_path).encode(["ABC"])[0].tolist() == [5]
    for kind, changes in (("bpe", {"add_prefix_space": True}), ("unigram", {"keep_accents": True})):
        trained[kind].save(tmp_path / kind)
        config = json.loads((tmp_path / kind / "tokenizer_config.json").read_text())
        (tmp_path / kind / "tokenizer_config.json").write_text(json.dumps(config | changes))
        with pytest.raises(UserError, match=f"has {next(iter(changes))}=True, but tokenizer.json has False"):
            Tokenizer.load(tmp_path / kind)
