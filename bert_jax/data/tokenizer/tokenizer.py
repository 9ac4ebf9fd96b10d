"""Converts texts to token ids and back, with WordPiece, byte-level BPE or unigram; the engine is `tokenizers`."""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import chain, groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from bert_jax.data.tokenizer import training
from bert_jax.data.tokenizer.engines import ROLES, added_in_texts, text_engine
from bert_jax.data.tokenizer.extending import Pieces, extended, name_of
from bert_jax.data.tokenizer.files import Parts, read_parts, write_parts
from bert_jax.data.tokenizer.limits import (
    MOST_SPECIAL_TOKENS,
    REMEDY,
    engine_errors,
    probe_texts,
    quiet_panics,
    vocabulary_size,
)
from bert_jax.errors import UserError

KINDS = tuple(training.KINDS)
CACHED_WORDS = 1 << 18  # about 50 MB
_SPACES = " \n\r\t"  # separators of words in all kinds of tokenizers


class Tokenizer:
    """Converts texts to ids and back. V = vocab_size ids, including special tokens.

    The special ids are `pad_id`, `unk_id`, `cls_id`, `sep_id`, `mask_id`, and sorted `special_ids`. There are
    `separators_between` separators between two segments: one in BERT, two in RoBERTa. Pickled by value, so that worker
    processes need not read files.
    """

    def __init__(self, parts: Parts):
        engine = parts.engine
        engine.no_padding()
        engine.no_truncation()
        # "[SEP]" in a text is plain text, so that a document cannot end itself.
        engine.encode_special_tokens = True
        self._parts, self._engine, self._specials = parts, engine, parts.specials
        self._spec: dict[str, Any] = json.loads(engine.to_str())
        roles = set(parts.specials.values())
        self._encoder = text_engine(engine, self._spec, roles)
        self._added = {number: token.content for number, token in engine.get_added_tokens_decoder().items()}
        can_cache = _encodes_words_independently(self._encoder, self._spec, roles)
        self._cache: dict[str, list[int]] | None = {} if can_cache else None
        self.vocab_size = vocabulary_size(engine.get_vocab())
        ids = [self._id(role) for role in ROLES]
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = ids
        self.special_ids = np.unique(ids)
        # As in transformers: [CLS] a [SEP] b [SEP] has three special tokens, <s> a </s></s> b </s> four.
        self.separators_between = max(1, engine.num_special_tokens_to_add(is_pair=True) - 2)

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, cased: bool = False, kind: str = "wordpiece") -> "Tokenizer":
        """Trains a vocabulary of at most `vocab_size` tokens, deterministically; small texts may give fewer.

        Memory grows with the number of distinct words; for a very large corpus, use a sample of some gigabytes.

        Args:
          texts: documents.
          vocab_size: special tokens included.
          cased: keep capital letters and accents; byte-level BPE always does.
          kind: wordpiece (BERT), bpe (byte-level, RoBERTa) or unigram (SentencePiece, ALBERT).

        Raises:
          UserError: `vocab_size` is too small for the characters, there is no text, it contains unpaired surrogates, or
            the kind is unknown.
        """
        if kind not in KINDS:
            raise UserError(f"kind={kind!r} is not one of {', '.join(KINDS)}")
        try:
            return cls(training.KINDS[kind](texts, vocab_size, cased))
        except UnicodeEncodeError as error:
            raise _unpaired_surrogate(error) from None

    @classmethod
    def load(cls, directory: str | Path) -> "Tokenizer":
        """Loads a tokenizer from a folder written by `save` or in Hugging Face's format.

        Reads tokenizer.json; else vocab.txt; else vocab.json and merges.txt; else spiece.model; and for settings and added
        tokens tokenizer_config.json, special_tokens_map.json and added_tokens.json.

        Raises:
          UserError: the folder does not exist or has no tokenizer; the tokenizer is damaged or inconsistent, lacks a
            special token, or has unsupported rules.
        """
        directory = Path(directory)
        if not directory.is_dir():
            raise UserError(f"{directory}: no such tokenizer folder; make it with tools/train_tokenizer.py")
        try:
            with engine_errors("unreadable tokenizer"), quiet_panics():
                tokenizer = cls(read_parts(directory))
                tokenizer._check_rules()
                return tokenizer
        except UserError as error:
            prefix = "" if str(directory) in str(error) else f"{directory}: "
            raise UserError(f"{prefix}{error}") from None
        except Exception as error:  # e.g. of sentencepiece or of the engine's types
            raise UserError(f"{directory}: unreadable tokenizer ({error}); {REMEDY}") from None

    def save(self, directory: str | Path, max_length: int | None = None) -> None:
        """Saves the tokenizer in Hugging Face's format, for transformers' AutoTokenizer.

        Also writes the files of its kind: vocab.txt; vocab.json and merges.txt; spiece.model, if there was one.
        `max_length`, in tokens, becomes AutoTokenizer's model_max_length.
        """
        write_parts(self._parts, Path(directory), max_length)

    def extended(self, words: Sequence[Pieces]) -> "Tokenizer":
        """Returns a tokenizer in which these words, given by the ids of their pieces, are tokens with the next ids.

        All other ids stay the same, and so do all texts without these words.

        Raises:
          UserError: a word is a token already, or the rules of this tokenizer cannot be extended.
        """
        return Tokenizer(extended(self._parts, words, self.vocab_size))

    def has_word(self, pieces: Pieces) -> bool:
        """Checks whether the pieces together are a token already, which `extended` would refuse."""
        return self._engine.token_to_id(name_of(self._engine, self._spec, pieces)) is not None

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        """Returns the token ids of each text, int32 [L], without special tokens at the ends.

        Tokens of the five roles, such as "[SEP]", are plain text in a text; other special and added tokens are tokens.

        Raises:
          UserError: a text contains an unpaired surrogate, which JSON can express. Other methods that take texts raise
            it, too.
        """
        if self._cache is None:
            return [np.array(encoding.ids, np.int32) for encoding in self._encode_batch(texts)]
        # BERT's rules apply to each word independently, so words are encoded once and cached: several times faster.
        split = [text.split(" ") for text in texts]
        cache = self._cache
        unknown = list(set(chain.from_iterable(split)).difference(cache))
        if len(cache) + len(unknown) > CACHED_WORDS:
            cache = self._cache = {}
            unknown = list(set(chain.from_iterable(split)))
        for word, encoding in zip(unknown, self._encode_batch(unknown), strict=True):
            cache[word] = encoding.ids
        find = cache.__getitem__
        return [np.fromiter(chain.from_iterable(map(find, words)), np.int32) for words in split]

    def encode_words(self, texts: list[str]) -> list[list[Pieces]]:
        """Returns the ids of each word of each text; words are what the rules separate before pieces are found."""
        encodings = self._encode_batch(texts, with_offsets=True)
        words = (groupby(zip(one.word_ids, one.ids, strict=True), itemgetter(0)) for one in encodings)
        return [[tuple(number for _, number in pairs) for _, pairs in of_text] for of_text in words]

    def encode_with_offsets(self, texts: list[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Returns as `encode` the ids [L] of each text, and the start and end [L, 2] of each token, in characters."""
        results = []
        for text, encoding in zip(texts, self._encode_batch(texts, with_offsets=True), strict=True):
            offsets = [
                (start + len(piece) - len(piece.lstrip()), end - len(piece) + len(piece.rstrip() or piece))
                for start, end in encoding.offsets
                for piece in (text[start:end],)  # tokens may include spaces
            ]
            results.append((np.array(encoding.ids, np.int32), np.array(offsets, np.int32).reshape(-1, 2)))
        return results

    def encode_with_masks(self, text: str) -> np.ndarray:
        """Encodes one text as `encode`, int32 [L], but mask tokens written in it become `mask_id`."""
        first, *others = text.split(self._specials["mask"])
        mask = self._engine.get_added_tokens_decoder().get(self.mask_id)
        if others and mask is not None and mask.lstrip:  # the mask includes the space before it
            first, others = first.rstrip(), [*(part.rstrip() for part in others[:-1]), others[-1]]
        pieces = self.encode([first, *others])
        mask_1 = np.array([self.mask_id], np.int32)
        return np.concatenate([pieces[0], *chain.from_iterable((mask_1, piece) for piece in pieces[1:])])

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of the ids, including special tokens."""
        with engine_errors("tokenizer: its rules fail on a text"):
            return self._engine.decode([int(number) for number in ids], skip_special_tokens=False)

    def tokens(self, ids: Iterable[int]) -> list[str]:
        """Returns the token of each id, "" for gaps in the vocabulary. Raises IndexError for an id outside it."""
        tokens = []
        for number in map(int, ids):
            if not 0 <= number < self.vocab_size:
                raise IndexError(f"id {number} lies outside the vocabulary of {self.vocab_size} tokens")
            # The engine normalizes its names of added tokens.
            tokens.append(self._added.get(number) or self._engine.id_to_token(number) or "")
        return tokens

    def token_id(self, token: str) -> int | None:
        """Returns the id of a token as it is written in the vocabulary, such as "##s"; None if there is none."""
        return self._engine.token_to_id(token)

    def num_special_tokens(self, num_segments: int) -> int:
        """Returns the number of special tokens of an example with one or two segments: [CLS] and all separators."""
        return 2 + (num_segments - 1) * self.separators_between

    @cached_property
    def word_starts(self) -> np.ndarray:
        """Mask of the pieces that start a word, bool [V]; the first piece of a text always does.

        Derived from the rules: the prefix of pieces that continue a word ("##"), else the character for a space ("Ġ", "▁").
        With neither, e.g. if a suffix marks the ends of words, every piece counts as a word.
        """
        tokens = self.tokens(range(self.vocab_size))
        prefix = self._spec["model"].get("continuing_subword_prefix")
        with engine_errors("tokenizer: its rules fail on a text"):
            spaces = _written_spaces(self._encoder)
        if prefix:
            starts = np.array([not token.startswith(prefix) for token in tokens])
        elif spaces:
            starts = np.array([token.startswith(spaces) for token in tokens])
        else:
            starts = np.ones(len(tokens), bool)
        starts[[*self._added, *self.special_ids]] = True
        return starts

    @cached_property
    def fingerprint(self) -> str:
        """Hash of 16 hexadecimal digits; tokenizers with the same one turn every text into the same ids."""
        added = added_in_texts(self._spec, set(self._specials.values()))
        model = self._spec["model"]
        if model["type"] == "Unigram":  # the last digits of scores may change in a round trip
            model = model | {"vocab": [(piece, f"{score:.6g}") for piece, score in model["vocab"]]}
        parts = [self._spec["normalizer"], self._spec["pre_tokenizer"], model, added]
        canonical = json.dumps([*parts, self._specials], sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    def _id(self, role: str) -> int:
        number = self._engine.token_to_id(self._specials[role])
        if number is None:
            raise UserError(f"tokenizer lacks the special token {self._specials[role]}; train another")
        return number

    def _check_rules(self) -> None:
        """Runs the rules on texts on which broken ones fail. Raises errors of the engine."""
        if (number := self._engine.num_special_tokens_to_add(is_pair=True)) > MOST_SPECIAL_TOKENS:
            raise UserError(f"{number} special tokens around a pair, more than {MOST_SPECIAL_TOKENS}; {REMEDY}")
        for text in probe_texts(self._spec):
            ids = self._encoder.encode(text, add_special_tokens=False).ids
            self._engine.decode(ids, skip_special_tokens=False)
        self._engine.decode(list(range(self.vocab_size)), skip_special_tokens=False)

    def _encode_batch(self, texts: list[str], with_offsets: bool = False) -> list[tokenizers.Encoding]:
        encode = self._encoder.encode_batch if with_offsets else self._encoder.encode_batch_fast
        try:
            with engine_errors("tokenizer: its rules fail on a text"):
                return encode(texts, add_special_tokens=False)
        except TypeError:  # checking the texts beforehand would take time
            for text in texts:
                try:
                    text.encode()
                except UnicodeEncodeError as error:
                    raise _unpaired_surrogate(error) from None
                except AttributeError:  # not a string
                    continue
            raise

    def __reduce__(self):
        return Tokenizer, (self._parts,)


def _unpaired_surrogate(error: UnicodeEncodeError) -> UserError:
    place = error.start
    near = error.object[max(0, place - 20) : place + 20]
    return UserError(f"text {near!r}: {error.object[place]!r} is an unpaired surrogate; replace or remove it")


def _encodes_words_independently(engine: tokenizers.Tokenizer, spec: dict[str, Any], roles: set[str]) -> bool:
    """Checks whether the engine encodes each space-separated word independently of its neighbours."""
    rules = (spec["model"]["type"], (spec["normalizer"] or {}).get("type"), (spec["pre_tokenizer"] or {}).get("type"))
    if rules != ("WordPiece", "BertNormalizer", "BertPreTokenizer"):
        return False
    added = [token for token in spec["added_tokens"] if token["content"] not in roles]
    contents = [engine.normalizer.normalize_str(t["content"]) if t["normalized"] else t["content"] for t in added]
    return not any(character.isspace() for content in contents for character in content)


def _written_spaces(engine: tokenizers.Tokenizer) -> tuple[str, ...]:
    """Returns what becomes of a space, end of line or tab between two words; empty if it is joined to the first word."""
    signs = [_sign_of(space, engine) for space in _SPACES]
    return tuple(filter(None, signs)) if signs[0] else ()


def _sign_of(space: str, engine: tokenizers.Tokenizer) -> str:
    text = f"a{space}b"
    text = engine.normalizer.normalize_str(text) if engine.normalizer else text
    pieces = engine.pre_tokenizer.pre_tokenize_str(text) if engine.pre_tokenizer else [(text, (0, len(text)))]
    # "\0" marks splits of the pre-tokenizer: "a\0Ġb", "▁a\0▁b", "a▁b", "a\0Ċ\0b"; but also "a\0b" and "a \0b".
    between = re.search("a(.*)b", "\0".join(piece for piece, _ in pieces), re.DOTALL)
    sign = between[1].strip("\0") if between else ""
    return "" if between and between[1].startswith(f"{sign}\0") else sign
