"""Text to token ids and back: WordPiece, byte-level BPE and unigram; the engine is the package `tokenizers`."""

import hashlib
import json
import re
from collections.abc import Iterable
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from bert_jax.data.tokenizer import training
from bert_jax.data.tokenizer.engines import ROLES, added_in_texts, text_engine
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

KINDS = ("wordpiece", "bpe", "unigram")
CACHED_WORDS = 1 << 18  # about 50 MB
_SPACES = " \n\r\t"  # separate words in tokenizers of every kind


class Tokenizer:
    """Text to ids and back. V = vocab_size ids, the special tokens among them; their ids are `pad_id`, `unk_id`, `cls_id`,
    `sep_id` and `mask_id`, and `special_ids`, sorted.

    A pair of segments has `separators_between` separators between them: one as BERT has it, two as RoBERTa has it.
    Pickles by value, so that worker processes need not read files.
    """

    def __init__(self, parts: Parts):
        engine = parts.engine
        engine.no_padding()
        engine.no_truncation()
        # "[SEP]" within a text is text: a document must not be able to end itself.
        engine.encode_special_tokens = True
        self._parts, self._engine, self._specials = parts, engine, parts.specials
        self._spec: dict[str, Any] = json.loads(engine.to_str())
        roles = set(parts.specials.values())
        self._encoder = text_engine(engine, self._spec, roles)
        self._added = {number: token.content for number, token in engine.get_added_tokens_decoder().items()}
        self._cache: dict[str, list[int]] | None = {} if _looks_at_words(self._encoder, self._spec, roles) else None
        self.vocab_size = vocabulary_size(engine.get_vocab())
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = (self._id(role) for role in ROLES)
        self.special_ids = np.unique([self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id])
        # A pair as transformers joins it: [CLS] a [SEP] b [SEP] has three special tokens, <s> a </s></s> b </s> four.
        self.separators_between = max(1, engine.num_special_tokens_to_add(is_pair=True) - 2)

    # -----------------------------------------------------------------------------------------------------------------
    # Making one
    # -----------------------------------------------------------------------------------------------------------------

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, cased: bool = False, kind: str = "wordpiece") -> "Tokenizer":
        """Trains a vocabulary of at most `vocab_size` tokens, the same one for the same texts; fewer where there are no more.

        Memory grows with the number of distinct words: of a very large corpus, pass a sample of some gigabytes.

        Args:
          texts: documents.
          vocab_size: tokens, special tokens included.
          cased: keep capital letters and accents; byte-level BPE always does.
          kind: wordpiece (BERT), bpe (byte-level, RoBERTa) or unigram (SentencePiece, ALBERT).

        Raises:
          UserError: `vocab_size` is too small for the characters of the texts, there is no text, half of a surrogate pair is
            in one, or an unknown kind.
        """
        try:
            if kind == "wordpiece":
                return cls(training.train_wordpiece(texts, vocab_size, cased))
            if kind == "bpe":
                return cls(training.train_bpe(texts, vocab_size))
            if kind == "unigram":
                return cls(training.train_unigram(texts, vocab_size, cased))
        except UnicodeEncodeError as error:
            raise _half_pair(error) from None
        raise UserError(f"kind={kind!r} is not one of {', '.join(KINDS)}")

    @classmethod
    def load(cls, directory: str | Path) -> "Tokenizer":
        """Reads a folder of `save`, or one of Hugging Face: tokenizer.json; else vocab.txt; else vocab.json and merges.txt;
        else spiece.model. Settings, special tokens and added tokens come from tokenizer_config.json,
        special_tokens_map.json and added_tokens.json; what they leave open has the usual values.

        Raises:
          UserError: no such folder, no tokenizer in it, an unreadable one, one that lacks a special token, has rules that are
            not supported, or files that contradict each other.
        """
        directory = Path(directory)
        if not directory.is_dir():
            raise UserError(f"{directory}: no such tokenizer folder; make one with tools/train_tokenizer.py")
        try:
            with engine_errors("unreadable tokenizer"), quiet_panics():
                tokenizer = cls(read_parts(directory))
                tokenizer._check_rules()
                return tokenizer
        except UserError as error:
            named = "" if str(directory) in str(error) else f"{directory}: "
            raise UserError(f"{named}{error}") from None
        except Exception as error:  # of sentencepiece, or of the engine's types
            raise UserError(f"{directory}: unreadable tokenizer ({error}); {REMEDY}") from None

    def save(self, directory: str | Path, max_length: int | None = None) -> None:
        """Writes tokenizer.json, tokenizer_config.json and special_tokens_map.json, as transformers' AutoTokenizer reads
        them, and the files of the kind: vocab.txt; vocab.json and merges.txt; spiece.model, if there was one.

        With `max_length`, in tokens, AutoTokenizer knows where the model that goes with it wants texts cut.
        """
        write_parts(self._parts, Path(directory), max_length)

    # -----------------------------------------------------------------------------------------------------------------
    # Using one
    # -----------------------------------------------------------------------------------------------------------------

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        """Returns the token ids of each text, int32 [L], without special tokens at the ends. Tokens of the five roles, such as
        "[SEP]", are plain text where they occur in a text; other special and added tokens are tokens.

        Raises:
          UserError: a text holds half of a surrogate pair, as JSON may escape it. The other methods that take texts
            raise it, too.
        """
        if self._cache is None:
            return [np.array(encoding.ids, np.int32) for encoding in self._encode_batch(texts)]
        # BERT's rules look at one word at a time, so words between blanks can be encoded once and looked up after
        # that, which is several times faster. (Not so for a tokeniser whose pieces contain the blank.)
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

    def encode_with_offsets(self, texts: list[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        """As `encode`: ids [L] for each text, and [L, 2] from and to which character of the text each token reaches."""
        found = []
        for text, encoding in zip(texts, self._encode_batch(texts, with_offsets=True), strict=True):
            offsets = [
                (start + len(piece) - len(piece.lstrip()), end - len(piece) + len(piece.rstrip() or piece))
                for start, end in encoding.offsets
                for piece in (text[start:end],)  # spaces may be part of the token
            ]
            found.append((np.array(encoding.ids, np.int32), np.array(offsets, np.int32).reshape(-1, 2)))
        return found

    def encode_with_masks(self, text: str) -> np.ndarray:
        """Like `encode` of one text, int32 [L], but a mask token written in it becomes `mask_id`."""
        first, *others = text.split(self._specials["mask"])
        mask = self._engine.get_added_tokens_decoder().get(self.mask_id)
        if others and mask is not None and mask.lstrip:  # the blank before it is the mask's
            first, others = first.rstrip(), [*(part.rstrip() for part in others[:-1]), others[-1]]
        pieces = self.encode([first, *others])
        mask_1 = np.array([self.mask_id], np.int32)
        return np.concatenate([pieces[0], *chain.from_iterable((mask_1, piece) for piece in pieces[1:])])

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids, special tokens included, with the pieces joined."""
        with engine_errors("tokenizer: its rules fail on a text"):
            return self._engine.decode([int(number) for number in ids], skip_special_tokens=False)

    def tokens(self, ids: Iterable[int]) -> list[str]:
        """The token of each id; "" where a vocabulary has a gap.

        Raises:
          IndexError: an id outside the vocabulary.
        """
        tokens = []
        for number in map(int, ids):
            if not 0 <= number < self.vocab_size:
                raise IndexError(f"id {number} lies outside the vocabulary of {self.vocab_size} tokens")
            # The engine's own names of added tokens are normalized.
            tokens.append(self._added.get(number) or self._engine.id_to_token(number) or "")
        return tokens

    def num_special_tokens(self, num_segments: int) -> int:
        """Special tokens of an example of one or two segments: [CLS], one separator after each, those between."""
        return 2 + (num_segments - 1) * self.separators_between

    @cached_property
    def word_starts(self) -> np.ndarray:
        """Mask of the pieces that start a word, bool [V]. (The first piece of a text starts a word anyway.)

        It follows from the tokenizer's rules: the prefix of pieces that continue a word ("##"), else what a space between two
        words becomes ("Ġ", "▁"). Without either, as where a suffix marks the ends of words, every piece counts as a word.
        """
        tokens = self.tokens(range(self.vocab_size))
        prefix, spaces = self._spec["model"].get("continuing_subword_prefix"), _written_spaces(self._encoder)
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
        """16 hexadecimal digits, equal for tokenizers that turn every text into the same ids."""
        added = added_in_texts(self._spec, set(self._specials.values()))
        model = self._spec["model"]
        if model["type"] == "Unigram":  # the last digits of scores may change when they are written and read
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
        """Runs the rules on texts at which broken ones fail. Raises what the engine does."""
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
        except TypeError:  # looking at the texts beforehand would take time
            for text in texts:
                if isinstance(text, str):
                    _check_characters(text)
            raise

    def __reduce__(self):
        parts = self._parts
        return _restore, (self._engine.to_str(), parts.specials, parts.spiece, parts.input_names)


def _restore(engine: str, *others: Any) -> Tokenizer:
    return Tokenizer(Parts(tokenizers.Tokenizer.from_str(engine), *others))


def _check_characters(text: str) -> None:
    """Raises UserError for half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise _half_pair(error) from None


def _half_pair(error: UnicodeEncodeError) -> UserError:
    place = error.start
    near = error.object[max(0, place - 20) : place + 20]
    return UserError(
        f"text {near!r}: {error.object[place]!r} is half of a surrogate pair and no character; replace or remove it"
    )


def _looks_at_words(engine: tokenizers.Tokenizer, spec: dict[str, Any], roles: set[str]) -> bool:
    """Whether the engine encodes each space-separated word independently of its neighbours."""
    rules = (spec["model"]["type"], (spec["normalizer"] or {}).get("type"), (spec["pre_tokenizer"] or {}).get("type"))
    if rules != ("WordPiece", "BertNormalizer", "BertPreTokenizer"):
        return False
    added = [token for token in spec["added_tokens"] if token["content"] not in roles]
    found = [engine.normalizer.normalize_str(t["content"]) if t["normalized"] else t["content"] for t in added]
    return not any(character.isspace() for content in found for character in content)


def _written_spaces(engine: tokenizers.Tokenizer) -> tuple[str, ...]:
    """Returns what the model sees of a space, end of line or tab between two words; empty if it joins the first word."""
    signs = [_sign_of(space, engine) for space in _SPACES]
    return tuple(filter(None, signs)) if signs[0] else ()


def _sign_of(space: str, engine: tokenizers.Tokenizer) -> str:
    text = f"a{space}b"
    text = engine.normalizer.normalize_str(text) if engine.normalizer else text
    pieces = engine.pre_tokenizer.pre_tokenize_str(text) if engine.pre_tokenizer else [(text, (0, len(text)))]
    # "\0" stands where the pre-tokenizer splits: "a\0Ġb", "▁a\0▁b", "a▁b", "a\0Ċ\0b"; but also "a\0b" and "a \0b".
    between = re.search("a(.*)b", "\0".join(piece for piece, _ in pieces), re.DOTALL)
    sign = between[1].strip("\0") if between else ""
    return "" if between and between[1].startswith(f"{sign}\0") else sign
