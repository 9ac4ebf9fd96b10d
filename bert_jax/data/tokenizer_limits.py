"""What a tokenizer may ask for, and the failures of its library. Its files come from strangers, and the library trusts them.

Limits are far beyond what published tokenizers have.
"""

import base64
import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from typing import Any

from bert_jax.errors import UserError, plain

LONGEST_WORD = 1000  # characters; WordPiece's search takes the cube of it. BERT has 100 or 200
LARGEST_GROWTH = 100  # characters of a normalized text for each of the text
LONGEST_REPLACEMENT = 256  # bytes for one character in a compiled map; in NFKC it is 33
LARGEST_VOCABULARY = 1 << 22
MOST_SPECIAL_TOKENS = 16  # that a pair of texts is joined with


def check_rules(spec: dict[str, Any]) -> None:
    """Checks the contents of a tokenizer.json before anything is built from them.

    Raises:
      UserError: rules that multiply the length of a text, that take too long for a word, or whose result is random.
    """
    for part in ("normalizer", "decoder"):
        if (growth := _growth(spec.get(part))) > LARGEST_GROWTH:
            raise UserError(
                f"the rules of the {part} can make a text {growth:,.0f} times as long; use another tokenizer"
            )
    model = spec.get("model")
    if not isinstance(model, dict):
        raise UserError("has no model; get the file again")
    longest = model.get("max_input_chars_per_word", 0)
    if not isinstance(longest, int) or longest > LONGEST_WORD:
        raise UserError(f"max_input_chars_per_word={longest}: at most {LONGEST_WORD} is supported; lower it")
    if isinstance(vocabulary := model.get("vocab"), dict):
        check_ids(vocabulary)
    if model.get("dropout"):
        raise UserError(f"dropout={model['dropout']}: a text would have random tokens; set it to null")


def _growth(rules: Any) -> float:
    """Returns how many characters the rules can make of one; nested sequences multiply."""
    if not isinstance(rules, dict):
        return 1.0
    growth = 1.0
    for name in ("normalizers", "decoders"):
        for rule in rules[name] if isinstance(rules.get(name), list) else ():
            growth *= _growth(rule)
    content, pattern = rules.get("content"), rules.get("pattern")
    if isinstance(content, str) and isinstance(pattern, dict):
        # A regular expression may match the empty text before each character.
        growth *= max(1.0, len(content) / len(pattern["String"]) if pattern.get("String") else 1 + len(content))
    if isinstance(charsmap := rules.get("precompiled_charsmap"), str):
        check_charsmap(base64.b64decode(charsmap))
    return growth


def check_charsmap(charsmap: bytes) -> None:
    """Raises UserError for a map of SentencePiece that replaces a character by a long text.

    The map is a trie, before it its size in bytes (4 bytes), and after it the replacements, each followed by a zero
    (google/sentencepiece, normalizer.cc).
    """
    replacements = charsmap[4 + int.from_bytes(charsmap[:4], "little") :].split(b"\0")
    if (longest := max(map(len, replacements))) > LONGEST_REPLACEMENT:
        raise UserError(f"its map of characters has a replacement of {longest:,} bytes; get the file again")


def check_ids(vocabulary: dict[str, Any]) -> None:
    """Checks the ids of tokens, the largest of which is the size of tables here and in the library.

    Raises:
      UserError: ids that are not integers, or have large gaps.
    """
    if not all(type(number) is int and number >= 0 for number in vocabulary.values()):
        raise UserError("a token's id is not a number; get the files again")
    largest = max(vocabulary.values(), default=0)
    if not vocabulary or largest >= min(LARGEST_VOCABULARY, 2 * len(vocabulary) + 4096):
        raise UserError(f"it has {len(vocabulary):,} tokens and ids up to {largest:,}; get the files again")


@contextlib.contextmanager
def library_failures(what: str, remedy: str) -> Iterator[None]:
    """Turns what `tokenizers` raises into UserErrors: bare Exceptions, and panics, which are not even Exceptions."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        if isinstance(error, Exception) and type(error) is not Exception:
            raise  # not the library's
        raise UserError(f"{what} ({plain(str(error), 200)}); {remedy}") from None


@contextlib.contextmanager
def without_panic_messages() -> Iterator[None]:
    """Hides what Rust prints of a panic by itself; in other threads than the main one nothing is hidden."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    sys.stderr.flush()
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)
