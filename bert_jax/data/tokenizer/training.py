"""Training of vocabularies, each the same one for the same texts: WordPiece, byte-level BPE, SentencePiece unigram."""

import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain

import sentencepiece
import tokenizers
from tokenizers import normalizers, pre_tokenizers, trainers

from bert_jax.data.tokenizer import engines
from bert_jax.data.tokenizer.files import Parts
from bert_jax.errors import UserError

ALPHABET = 1000  # the most frequent characters, that a trained WordPiece vocabulary holds
CHARACTER_COVERAGE = 0.99995  # of a trained unigram vocabulary, as of ALBERT's (trainer_spec of its spiece.model)
# RoBERTa's first ids (its vocab.json); position numbers begin after the padding's.
_BPE_FIRST = ("cls", "pad", "sep", "unk", "mask")


# ---------------------------------------------------------------------------------------------------------------------
# WordPiece
# ---------------------------------------------------------------------------------------------------------------------


def train_wordpiece(texts: Iterable[str], vocab_size: int, cased: bool) -> Parts:
    """See `Tokenizer.train`."""
    words, specials = word_counts(texts), dict(engines.WORDPIECE_SPECIALS)
    draft = engines.wordpiece_engine({}, specials, lowercase=not cased)
    alphabet = _alphabet(draft, words)
    # The trainer numbers the pieces "##x" in the random order of a hash map, and breaks ties between merges by
    # these numbers. Naming them beforehand, as if they were special, makes training repeatable.
    pieces = [*specials.values(), *(f"##{character}" for character in alphabet if _within_words(draft, character))]
    _check_size(vocab_size, len(pieces) + len(alphabet))
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=pieces,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    draft.train_from_iterator(_repeated(_spelt_with(alphabet, draft, words)), trainer)
    return Parts(engines.wordpiece_engine(draft.get_vocab(), specials, lowercase=not cased), specials)


def _alphabet(draft: tokenizers.Tokenizer, words: Counter[str]) -> list[str]:
    """The ALPHABET most frequent characters of the normalised words, sorted."""
    counts = Counter[str]()
    for word, count in words.items():
        for character in draft.normalizer.normalize_str(word):
            counts[character] += count
    del counts[" "]
    ranked = sorted(counts, key=lambda character: (-counts[character], character))
    return sorted(ranked[:ALPHABET])


def _within_words(draft: tokenizers.Tokenizer, character: str) -> bool:
    """Whether the character can continue a word, unlike punctuation and Chinese characters, which stand alone."""
    return len(draft.pre_tokenizer.pre_tokenize_str(draft.normalizer.normalize_str("a" + character))) == 1


def _spelt_with(alphabet: list[str], draft: tokenizers.Tokenizer, words: Counter[str]) -> list[tuple[str, int]]:
    """The words without rare characters and their counts, sorted."""
    allowed = {*alphabet, " "}
    return sorted(item for item in words.items() if allowed.issuperset(draft.normalizer.normalize_str(item[0])))


def _repeated(words: list[tuple[str, int]]) -> Iterator[str]:
    """Each word as often as it occurs, in pieces of bounded size. (The engine is locked while it trains on these.)"""
    for word, count in words:
        for start in range(0, count, 100):
            yield " ".join([word] * min(100, count - start))


# ---------------------------------------------------------------------------------------------------------------------
# Byte-level BPE
# ---------------------------------------------------------------------------------------------------------------------


def train_bpe(texts: Iterable[str], vocab_size: int) -> Parts:
    """See `Tokenizer.train`. All 256 bytes are in the vocabulary, and capital letters stay."""
    specials = {role: engines.BPE_SPECIALS[role] for role in _BPE_FIRST}
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    _check_size(vocab_size, len(specials) + len(alphabet))
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(specials.values()),
        initial_alphabet=alphabet,
        show_progress=False,
    )
    draft = engines.byte_bpe_engine({}, [], specials)
    # Line by line, as texts are encoded: no token holds the end of a line. Blanks count, so words will not do.
    lines = (line for text in texts for line in text.split("\n"))
    draft.train_from_iterator(_not_empty(lines), trainer)
    model = json.loads(draft.to_str())["model"]
    merges = [(first, second) for first, second in model["merges"]]
    return Parts(engines.byte_bpe_engine(model["vocab"], merges, specials), specials)


def _not_empty(lines: Iterator[str]) -> Iterator[str]:
    """The lines from the first that is not blank; there is one."""
    for line in lines:
        if line.strip():
            return chain([line], lines)
    raise _no_words()


# ---------------------------------------------------------------------------------------------------------------------
# Unigram
# ---------------------------------------------------------------------------------------------------------------------


def train_unigram(texts: Iterable[str], vocab_size: int, cased: bool) -> Parts:
    """See `Tokenizer.train`. SentencePiece trains, with the settings of ALBERT's spiece.model (its trainer_spec)."""
    specials = dict(engines.UNIGRAM_SPECIALS)
    rules = normalizers.Sequence(engines.albert_rules(lowercase=not cased, keep_accents=cased))
    words = Counter[str]()
    for word, count in word_counts(texts).items():
        words[rules.normalize_str(word)] += count
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            # Pieces end with words, so words and their counts say all, and take less memory than the texts.
            sentence_iterator=(f"{word}\t{count}" for word, count in sorted(words.items())),
            input_format="tsv",
            model_writer=model,
            model_type="unigram",
            vocab_size=vocab_size,
            hard_vocab_limit=False,  # a small text may not have so many pieces
            character_coverage=CHARACTER_COVERAGE,
            pad_id=0,
            unk_id=1,
            bos_id=-1,
            eos_id=-1,
            control_symbols=[specials[role] for role in ("cls", "sep", "mask")],
            num_threads=16,  # each sums on its own, so another number rounds in another way
            minloglevel=2,
        )
    except RuntimeError as error:
        if sizes := re.search(r"required_chars\. \d+ vs (\d+)", str(error)):
            _check_size(vocab_size, int(sizes.group(1)))
        raise UserError(f"vocab_size={vocab_size}: {' '.join(str(error).split())}; try another size") from None
    engine = engines.unigram_engine(model.getvalue(), specials, lowercase=not cased, keep_accents=cased)
    return Parts(engine, specials, model.getvalue())


# ---------------------------------------------------------------------------------------------------------------------
# All kinds
# ---------------------------------------------------------------------------------------------------------------------


def word_counts(texts: Iterable[str]) -> Counter[str]:
    """How often each word occurs; words are what lies between blanks.

    Raises:
      UserError: there is none.
    """
    words = Counter[str]()
    for text in texts:
        words.update(text.split())
    if not words:
        raise _no_words()
    return words


def _no_words() -> UserError:
    return UserError("tokenizer: no words to train on; check that the source holds text")


def _check_size(vocab_size: int, least: int) -> None:
    if least > vocab_size:
        raise UserError(f"vocab_size={vocab_size}: too small for the alphabet of this source; use at least {least}")
