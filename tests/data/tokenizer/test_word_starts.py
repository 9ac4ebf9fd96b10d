"""Where words start, by the rules of each kind of tokenizer, against the words that the offsets of the pieces find."""

import dataclasses
import re

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Engine
from tokenizers import models, normalizers, pre_tokenizers, trainers

from bert_jax import random_numbers
from bert_jax.data.corpus.format import Corpus
from bert_jax.data.corpus.prepare import prepare
from bert_jax.data.pretraining.stream import CorpusStream, DataConfig
from bert_jax.data.sources.documents import Document
from bert_jax.data.tokenizer.files import Parts
from bert_jax.data.tokenizer.tokenizer import KINDS, Tokenizer
from bert_jax.objectives.base import default_options, load
from bert_jax.objectives.mlm import Objective, Options

TEXTS = ["the cats sat on the matting and the cats watched a catalogue of mats\nwatching\tcats"] * 3
WORDS = ["the", "cats", "catalogue", "mats", "a", "watching", "watched", "[E1]"]
SPECIALS = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}


def trained_on_words(model, trainer, pre_tokenizer, normalizer=None, later=None, **options) -> Tokenizer:
    """A tokenizer trained with a pre-tokenizer, perhaps to work with another one and a normalizer."""
    engine = Engine(model)
    engine.pre_tokenizer = pre_tokenizer
    engine.train_from_iterator(TEXTS, trainer(special_tokens=list(SPECIALS.values()), show_progress=False, **options))
    if normalizer:
        engine.normalizer = normalizer
        engine.pre_tokenizer = later
    engine.add_special_tokens(["[E1]"])
    return Tokenizer(Parts(engine, SPECIALS))


def bpe(pre_tokenizer, **rules) -> Tokenizer:
    return trained_on_words(models.BPE(), trainers.BpeTrainer, pre_tokenizer, vocab_size=60, **rules)


def make(kind: str) -> Tokenizer:
    if kind in KINDS:
        parts = Tokenizer.train(TEXTS, 300, kind=kind)._parts
        parts.engine.add_special_tokens(["[E1]"])
        return Tokenizer(parts)
    low_line, metaspace = normalizers.Replace(" ", "▁"), pre_tokenizers.Metaspace
    spaces_alone = pre_tokenizers.Split(tokenizers.Regex(r"\s"), "isolated")
    of_words, prefix = pre_tokenizers.Whitespace(), {"continuing_subword_prefix": "@@"}
    return {
        # As Gemma's tokenizer.json has it: the normalizer writes the spaces, so that its Split finds none.
        "gemma": lambda: bpe(metaspace(), normalizer=low_line, later=pre_tokenizers.Split(" ", "merged_with_previous")),
        "llama": lambda: bpe(metaspace(), normalizer=normalizers.Sequence([normalizers.Prepend("▁"), low_line])),
        "metaspace": lambda: bpe(metaspace()),
        "metaspace, never first": lambda: bpe(metaspace(prepend_scheme="never")),
        "bytes, space first": lambda: bpe(pre_tokenizers.ByteLevel(add_prefix_space=True)),
        "spaces alone": lambda: bpe(spaces_alone),
        "prefix": lambda: trained_on_words(
            models.BPE(**prefix), trainers.BpeTrainer, of_words, **prefix, vocab_size=60
        ),
        "words": lambda: trained_on_words(models.WordLevel(unk_token="[UNK]"), trainers.WordLevelTrainer, of_words),
    }[kind]()


OTHERS = ["gemma", "llama", "metaspace", "metaspace, never first", "bytes, space first", "spaces alone"]
OTHERS += ["prefix", "words"]
MADE: dict[str, Tokenizer] = {}  # hypothesis asks for each many times


@settings(deadline=None, max_examples=150)
@given(st.sampled_from([*KINDS, *OTHERS]), st.lists(st.sampled_from(WORDS), min_size=1), st.sampled_from([" ", "  "]))
def test_words_are_those_that_offsets_find(kind, words, space):
    tokenizer = MADE[kind] if kind in MADE else MADE.setdefault(kind, make(kind))
    text = space.join(words)
    ((ids, offsets),) = tokenizer.encode_with_offsets([text])
    starts = tokenizer.word_starts[ids]
    starts[0] = True  # the first of a text starts a word anyway
    spans = set()
    for of_word in np.split(offsets, np.flatnonzero(starts)[1:]):
        start, end = of_word[:, 0].min(), of_word[:, 1].max()
        begin = start + len(text[start:end]) - len(text[start:end].lstrip())
        if begin < end:  # else a space alone
            spans.add((begin, end))
    assert spans == {match.span() for match in re.finditer(r"\S+", text)}, tokenizer.tokens(ids)


@pytest.mark.parametrize("kind", ["bpe", "gemma", "metaspace", "spaces alone"])
@pytest.mark.parametrize("space", ["\n", "\t"])
def test_ends_of_lines_and_tabs_start_words_too(kind, space):
    tokenizer = make(kind)
    (ids,) = tokenizer.encode([f"cats{space}cats"])
    pieces = tokenizer.tokens(ids)
    first = next(number for number, piece in enumerate(pieces) if tokenizer.word_starts[ids[number]] and number)
    assert tokenizer.decode(ids[:first]).replace("▁", " ").replace(" ", "") == "cats"


def test_a_sign_at_the_ends_of_words_leaves_pieces():
    """The starts of words cannot be told from such pieces alone, so all of them count as words."""
    assert bpe(pre_tokenizers.Split(" ", "merged_with_previous")).word_starts.all()
    assert bpe(pre_tokenizers.Whitespace()).word_starts.all()


@pytest.mark.parametrize("masking, low, high", [("word", 1.0, 1.4), ("ngram", 1.5, 2.2), ("span", 2.4, 4.0)])
@pytest.mark.parametrize("kind", KINDS)
def test_units_of_words_are_words_of_the_text(kind, masking, low, high):
    """By the offsets of pieces, whatever the vocabulary says; and longer units hold several words."""
    tokenizer = MADE[kind] if kind in MADE else MADE.setdefault(kind, make(kind))
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS[:-1], 40)) for _ in range(60)]
    options = Options(masking=masking, mlm_probability=0.2, mask_replace_prob=1.0, random_replace_prob=0.0)
    objective, runs = Objective(options, tokenizer), list[str]()
    for number, (ids, offsets) in enumerate(tokenizer.encode_with_offsets(texts)):
        row = np.array([[tokenizer.cls_id, *ids, tokenizer.sep_id]], np.int32)
        batch = {"input_ids": row, "attention_mask": np.ones_like(row)}
        corrupted = objective.corrupt(batch, random_numbers.row_keys(0, np.array([number])))
        is_masked = corrupted["input_ids"][0, 1:-1] == tokenizer.mask_id
        assert is_masked.any()
        masked_words = list[bool]()
        for word in re.finditer(r"\S+", texts[number]):
            inside = (offsets[:, 1] > word.start()) & (offsets[:, 0] < word.end())
            assert np.unique(is_masked[inside]).size == 1, word[0]
            masked_words.append(bool(is_masked[inside][0]))
        runs += "".join("x" if masked else " " for masked in masked_words).split()
    mean = sum(map(len, runs)) / len(runs)
    assert low < mean < high, f"{mean:.2f} words follow one another"


def test_whole_words_of_a_corpus_are_masked(tmp_path):
    """From the text to the examples of a run, for the tokenizer that writes spaces by a normalizer."""
    make("gemma")._engine.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.load(tmp_path)
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS[:-1], 300)) for _ in range(6)]
    documents = [Document(str(number), text) for number, text in enumerate(texts)]
    prepare(documents, tokenizer, tmp_path / "corpus", source="tests", held_out_fraction=0.0)
    options = default_options()
    options["mlm"] = dataclasses.replace(options["mlm"], masking="word", mask_replace_prob=1.0, random_replace_prob=0.0)
    config = DataConfig(corpus=str(tmp_path / "corpus"), sequence_length=128)
    objectives = load(("mlm",), options, tokenizer)
    stream = CorpusStream.build(Corpus.open(tmp_path / "corpus"), tokenizer, config, objectives, 0)
    assert stream.size > 5
    counts = []
    batch = stream.batch(np.arange(stream.size))
    for row in range(stream.size):
        example = {name: array[row] for name, array in batch.items()}
        num_predicted = int(example["mlm_weights"].sum())
        places, labels = example["mlm_positions"][:num_predicted], example["mlm_labels"][:num_predicted]
        is_masked = example["input_ids"] == tokenizer.mask_id
        assert np.flatnonzero(is_masked).tolist() == places.tolist()
        original = example["input_ids"].copy()
        original[places] = labels
        pieces = tokenizer.tokens(original[1 : int(example["attention_mask"].sum()) - 1])
        pieces = ["\n" if piece == "[SEP]" else piece for piece in pieces]
        ends = np.cumsum([len(piece) for piece in pieces])
        for word in re.finditer("▁*[^▁\n]+", "".join(pieces)):  # found in the text, whatever the pieces
            inside = (ends > word.start()) & (ends <= word.end())
            assert np.unique(is_masked[1 : len(pieces) + 1][inside]).size == 1, word[0]
        counts.append(num_predicted)
    assert min(counts) >= 15, "19 of 128 tokens are to be predicted, as far as whole words fill them"
