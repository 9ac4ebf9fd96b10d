"""Trains vocabularies, deterministically: WordPiece, byte-level BPE, SentencePiece unigram."""

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

ALPHABET_SIZE = 1000  # characters of a trained WordPiece vocabulary, the most frequent ones
CHARACTER_COVERAGE = 0.99995  # of a trained unigram vocabulary, as of ALBERT's (trainer_spec of its spiece.model)
# RoBERTa's first ids (its vocab.json); position numbers begin after the padding's.
_BPE_FIRST = ("cls", "pad", "sep", "unk", "mask")


def train_wordpiece(texts: Iterable[str], vocab_size: int, cased: bool) -> Parts:
    """Trains WordPiece (see `Tokenizer.train`)."""
    words, specials = _word_counts(texts), engines.WORDPIECE_SPECIALS
    draft = engines.wordpiece_engine({}, specials, lowercase=not cased)
    alphabet = _alphabet(draft, words)
    # The trainer numbers the pieces "##x" in the random order of a hash map, and breaks ties between merges by
    # these numbers. Passing them as special tokens makes training deterministic.
    pieces = [*specials.values(), *(f"##{character}" for character in alphabet if _continues_words(draft, character))]
    _check_size(vocab_size, len(pieces) + len(alphabet))
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=pieces,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    draft.train_from_iterator(_repeated(_words_in_alphabet(alphabet, draft, words)), trainer)
    return Parts(engines.wordpiece_engine(draft.get_vocab(), specials, lowercase=not cased), specials)


def _alphabet(draft: tokenizers.Tokenizer, words: Counter[str]) -> list[str]:
    """Returns the ALPHABET_SIZE most frequent characters of the normalised words, sorted."""
    counts = Counter[str]()
    for word, count in words.items():
        for character in draft.normalizer.normalize_str(word):
            counts[character] += count
    del counts[" "]
    ranked = sorted(counts, key=lambda character: (-counts[character], character))
    return sorted(ranked[:ALPHABET_SIZE])


def _continues_words(draft: tokenizers.Tokenizer, character: str) -> bool:
    """Checks whether a character can continue a word; punctuation and Chinese characters are words of their own."""
    return len(draft.pre_tokenizer.pre_tokenize_str(draft.normalizer.normalize_str("a" + character))) == 1


def _words_in_alphabet(alphabet: list[str], draft: tokenizers.Tokenizer, words: Counter[str]) -> list[tuple[str, int]]:
    """Returns the words that have only characters of the alphabet, with their counts, sorted."""
    allowed = {*alphabet, " "}
    return sorted(item for item in words.items() if allowed.issuperset(draft.normalizer.normalize_str(item[0])))


def _repeated(words: list[tuple[str, int]]) -> Iterator[str]:
    """Yields each word as often as it occurs, in chunks of bounded size; must not use the engine, which is locked."""
    for word, count in words:
        for start in range(0, count, 100):
            yield " ".join([word] * min(100, count - start))


def train_bpe(texts: Iterable[str], vocab_size: int, cased: bool) -> Parts:
    """Trains byte-level BPE, always cased and with all 256 bytes (see `Tokenizer.train`)."""
    del cased
    specials = {role: engines.BPE_SPECIALS[role] for role in _BPE_FIRST}
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    _check_size(vocab_size, len(specials) + len(alphabet))
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=list(specials.values()), initial_alphabet=alphabet, show_progress=False
    )
    draft = engines.byte_bpe_engine({}, [], specials)
    # By lines, so that no token contains the end of a line; not by words, because spaces are part of tokens.
    lines = (line for text in texts for line in text.split("\n"))
    draft.train_from_iterator(_not_empty(lines), trainer)
    model = json.loads(draft.to_str())["model"]
    merges = [(first, second) for first, second in model["merges"]]
    return Parts(engines.byte_bpe_engine(model["vocab"], merges, specials), specials)


def _not_empty(lines: Iterator[str]) -> Iterator[str]:
    """Returns the lines from the first one with text. Raises UserError if there is no text."""
    for line in lines:
        if line.strip():
            return chain([line], lines)
    raise _no_words()


def train_unigram(texts: Iterable[str], vocab_size: int, cased: bool) -> Parts:
    """Trains SentencePiece unigram with the settings of ALBERT's spiece.model, trainer_spec (see `Tokenizer.train`)."""
    specials = engines.UNIGRAM_SPECIALS
    rules = normalizers.Sequence(engines.albert_rules(lowercase=not cased, keep_accents=cased))
    words = Counter[str]()
    for word, count in _word_counts(texts).items():
        words[rules.normalize_str(word)] += count
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            # No piece spans several words, so words and counts suffice, and take less memory than texts.
            sentence_iterator=(f"{word}\t{count}" for word, count in sorted(words.items())),
            input_format="tsv",
            model_writer=model,
            model_type="unigram",
            vocab_size=vocab_size,
            hard_vocab_limit=False,  # a small text may have fewer pieces
            character_coverage=CHARACTER_COVERAGE,
            pad_id=0,
            unk_id=1,
            bos_id=-1,
            eos_id=-1,
            control_symbols=[specials[role] for role in ("cls", "sep", "mask")],
            num_threads=16,  # fixed, because rounding depends on it
            minloglevel=2,
        )
    except RuntimeError as error:
        if sizes := re.search(r"required_chars\. \d+ vs (\d+)", str(error)):
            _check_size(vocab_size, int(sizes.group(1)))
        raise UserError(f"vocab_size={vocab_size}: {' '.join(str(error).split())}; try another size") from None
    engine = engines.unigram_engine(model.getvalue(), specials, lowercase=not cased, keep_accents=cased)
    return Parts(engine, specials, model.getvalue())


KINDS = {"wordpiece": train_wordpiece, "bpe": train_bpe, "unigram": train_unigram}


def _word_counts(texts: Iterable[str]) -> Counter[str]:
    """Counts the words, which are separated by white space. Raises UserError if there are none."""
    words = Counter[str]()
    for text in texts:
        words.update(text.split())
    if not words:
        raise _no_words()
    return words


def _no_words() -> UserError:
    return UserError("tokenizer: no words to train on; check that the source contains text")


def _check_size(vocab_size: int, least: int) -> None:
    if least > vocab_size:
        raise UserError(f"vocab_size={vocab_size}: too small for the alphabet of this source; use at least {least}")
