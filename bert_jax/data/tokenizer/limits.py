"""Limits on what a tokenizer's files may ask for, and conversion of the engine's panics to UserErrors."""

import base64
import contextlib
import math
import os
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any

import msgspec

from bert_jax.errors import UserError

REMEDY = "copy or train it again"
MOST_TOKENS = 1 << 21  # the largest vocabulary of a published encoder, XLM-V's, has 901,629
MOST_GAPS = 1000  # unused ids, in addition to one per token
MOST_RULES = 64  # of a normalizer, pre-tokenizer or decoder; known ones have about ten at most
# Characters into which rules may turn one. Published tokenizers replace a space by one character, or prepend one.
MOST_GROWTH = 64
LONGEST_WORD, LONGEST_AFFIX = 1000, 100  # characters; WordPiece's search is cubic in the first
MOST_SPECIAL_TOKENS = 16  # around a pair of texts; BERT has 3, RoBERTa 4
Id = Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)]
_PARTS = ("normalizer", "pre_tokenizer", "decoder")
_panic_lock = threading.Lock()


def check_spec(spec: Mapping[str, Any]) -> None:
    """Raises UserError if the JSON of an engine exceeds the limits; called before anything is built."""
    model = spec.get("model")
    if not isinstance(model, dict):
        raise UserError(f"tokenizer.json has no model; {REMEDY}")
    if model.get("dropout"):
        raise UserError("tokenizer.json: a model with dropout is random; set dropout to null")
    if isinstance(longest := model.get("max_input_chars_per_word"), int) and not 0 <= longest <= LONGEST_WORD:
        raise UserError(f"tokenizer.json: max_input_chars_per_word={longest} is not from 0 to {LONGEST_WORD}; {REMEDY}")
    for affix in ("continuing_subword_prefix", "end_of_word_suffix"):
        if isinstance(text := model.get(affix), str) and len(text) > LONGEST_AFFIX:
            raise UserError(f"tokenizer.json: {affix} has {len(text)} characters, more than {LONGEST_AFFIX}; {REMEDY}")
    vocabulary = model.get("vocab")
    if isinstance(vocabulary, list):  # of a unigram model, whose ids are positions
        vocabulary = {str(number): number for number in range(len(vocabulary))}
    try:
        vocabulary_size(msgspec.convert(vocabulary, dict[str, Id]))
    except msgspec.ValidationError as error:
        raise UserError(f"tokenizer.json: not a vocabulary ({error}); {REMEDY}") from None
    for part in _PARTS:
        rules = _rules(spec.get(part))
        if len(rules) > MOST_RULES:
            raise UserError(f"tokenizer.json: the {part} has {len(rules)} rules, more than {MOST_RULES}; {REMEDY}")
        if (growth := math.prod(map(_growth, rules))) > MOST_GROWTH:
            raise UserError(f"tokenizer.json: the {part} may make texts {growth:.3g} times longer; {REMEDY}")


def _rules(part: Any) -> list[dict[str, Any]]:
    """Returns the rules of a normalizer, pre-tokenizer or decoder, including those in sequences."""
    rules, waiting = list[dict[str, Any]](), [part]
    while waiting and len(rules) <= MOST_RULES:
        match waiting.pop():
            case list(entries):
                waiting += entries
            case {"type": "Sequence", **entries}:
                waiting += entries.values()
            case dict(rule):
                rules.append(rule)
    return rules


def _growth(rule: dict[str, Any]) -> float:
    """Returns into how many characters a rule may turn one. A regex may match the empty string anywhere."""
    match rule:
        case {"type": "Replace", "pattern": {"String": str(pattern)}, "content": str(content)} if pattern:
            return max(1.0, len(content) / len(pattern))
        case {"type": "Replace", "content": str(content)} | {"type": "Prepend", "prepend": str(content)}:
            return 1.0 + len(content)
        case {"precompiled_charsmap": str(charsmap)}:
            try:
                return charsmap_growth(base64.b64decode(charsmap, validate=True))
            except ValueError:
                raise UserError(f"tokenizer.json: precompiled_charsmap is not base64; {REMEDY}") from None
        case {"type": "ByteLevel"}:  # one character of two bytes for each byte
            return 2.0
    return 1.0


def charsmap_growth(charsmap: bytes) -> float:
    """Returns into how many characters a SentencePiece character map may turn one of 3 bytes.

    Format: size of a trie in bytes (uint32), the trie, the replacements, each followed by a zero (google/sentencepiece,
    normalizer.cc). The longest replacement in NFKC has 33 bytes.

    Raises:
      UserError: the map is truncated, or its size is invalid; the engine would allocate that much memory.
    """
    size = int.from_bytes(charsmap[:4], "little")
    if len(charsmap) < 4 or size % 4 or not 0 < size <= len(charsmap) - 4:
        raise UserError(f"the precompiled character map (charsmap) is damaged; {REMEDY}")
    return max(1.0, max(map(len, charsmap[4 + size :].split(b"\0"))) / 3)


def vocabulary_size(vocabulary: Mapping[str, int]) -> int:
    """Returns the number of ids of a vocabulary, gaps included. Raises UserError if it is empty, too large or too sparse."""
    if not vocabulary:
        raise UserError(f"the vocabulary is empty; {REMEDY}")
    size = 1 + max(vocabulary.values())
    if len(vocabulary) > MOST_TOKENS or size > 2 * len(vocabulary) + MOST_GAPS:
        token = max(vocabulary, key=vocabulary.__getitem__)
        raise UserError(
            f"the vocabulary has {len(vocabulary):,} tokens, but {token!r} has the id {size - 1}; ids count from 0 "
            f"without many gaps, and no more than {MOST_TOKENS:,} tokens are supported; {REMEDY}"
        )
    return size


@contextlib.contextmanager
def engine_errors(what: str) -> Iterator[None]:
    """Turns the engine's errors, bare Exceptions and panics (BaseExceptions), into a UserError that begins with `what`."""
    try:
        yield
    except BaseException as error:
        if type(error) is not Exception and not _is_panic(error):
            raise
        reason = str(error).removeprefix("Onig: ") or type(error).__name__
        raise UserError(f"{what} ({reason}); {REMEDY}") from None


@contextlib.contextmanager
def quiet_panics() -> Iterator[None]:
    """Suppresses the message of a Rust panic, which goes directly to file descriptor 2; other output is passed on later."""
    with _panic_lock, tempfile.TemporaryFile() as kept:
        with contextlib.suppress(AttributeError, OSError, ValueError):  # stderr may be closed
            sys.stderr.flush()
        try:
            own = os.dup(2)
        except OSError:  # closed, so nothing is printed
            yield
            return
        os.dup2(kept.fileno(), 2)
        try:
            yield
        except BaseException as error:
            if _is_panic(error):
                kept.truncate(0)
            raise
        finally:
            os.dup2(own, 2)
            kept.seek(0)
            os.write(own, kept.read())
            os.close(own)


def probe_texts(spec: Mapping[str, Any]) -> Iterable[str]:
    """Yields texts on which broken rules fail: ordinary and unknown characters, and repetitions of those in regexes."""
    yield from ("", "The quick (brown) fox, don't! 12\n\té ``x''", "\u4e2d\u6587 \U0001f600\uffff\0", " " * 60 + "!")
    patterns = [rule.get("pattern") for part in _PARTS for rule in _rules(spec.get(part))]
    texts = "".join(pattern.get("Regex") or "" for pattern in patterns if isinstance(pattern, dict))
    for character in sorted(set(texts))[:64]:
        yield f"{character * 60}\0!"


def _is_panic(error: BaseException) -> bool:
    return type(error).__name__ == "PanicException"  # its class is in no module
