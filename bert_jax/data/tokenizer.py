"""Text to token ids and back: WordPiece as BERT has it, with the Hugging Face `tokenizers` package as its engine."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import chain
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from bert_jax.errors import UserError

LONGEST_WORD = 200  # characters; longer words become [UNK] (google-research/bert tokenization.py, WordpieceTokenizer)
ALPHABET = 1000  # the most frequent characters, that a trained vocabulary holds
CACHED_WORDS = 1 << 18  # about 50 MB
SPECIALS = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
_TOKENIZER_FILE, _CONFIG_FILE, _VOCABULARY_FILE = "tokenizer.json", "tokenizer_config.json", "vocab.txt"


class Tokenizer:
    """WordPiece with BERT's normaliser and pre-tokeniser. V = vocab_size ids, the special tokens among them.

    Pickles by value, so that worker processes need not read files.
    """

    def __init__(self, engine: tokenizers.Tokenizer, specials: dict[str, str]):
        """Wraps an engine; `specials` maps the roles pad, unk, cls, sep and mask to its tokens."""
        engine.no_padding()
        engine.no_truncation()
        # "[SEP]" within a text is text: a document must not be able to end itself.
        engine.encode_special_tokens = True
        self._engine, self._specials = engine, specials
        self._cache: dict[str, list[int]] = {}
        self.vocab_size = engine.get_vocab_size()
        roles = (self._id(specials[role]) for role in SPECIALS)
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = roles
        self.special_ids = np.sort([self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id])

    # -----------------------------------------------------------------------------------------------------------------
    # Making one
    # -----------------------------------------------------------------------------------------------------------------

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, cased: bool = False) -> "Tokenizer":
        """Trains a vocabulary of at most `vocab_size` tokens, the same one for the same texts.

        Memory grows with the number of distinct words: of a very large corpus, pass a sample of some gigabytes.

        Raises:
          UserError: `vocab_size` is too small for the characters of the texts, or there is no text.
        """
        words = Counter[str]()
        for text in texts:
            words.update(text.split())
        if not words:
            raise UserError("tokenizer: no words to train on; check that the source holds text")
        draft = _engine({}, cased)
        alphabet = _alphabet(draft, words)
        # The trainer numbers the pieces "##x" in the random order of a hash map, and breaks ties between merges by
        # these numbers. Naming them beforehand, as if they were special, makes training repeatable.
        pieces = [*SPECIALS.values(), *(f"##{character}" for character in alphabet if _within_words(draft, character))]
        if len(pieces) + len(alphabet) > vocab_size:
            least = len(pieces) + len(alphabet)
            raise UserError(f"vocab_size={vocab_size}: too small for the alphabet of this source; use at least {least}")
        trainer = trainers.WordPieceTrainer(
            vocab_size=vocab_size,
            special_tokens=pieces,
            initial_alphabet=alphabet,
            limit_alphabet=len(alphabet),
            show_progress=False,
        )
        draft.train_from_iterator(_repeated(_spelt_with(alphabet, draft, words)), trainer)
        return cls(_engine(draft.get_vocab(), cased), dict(SPECIALS))

    @classmethod
    def load(cls, directory: str | Path) -> "Tokenizer":
        """Reads `tokenizer.json`, or `vocab.txt` (then lower-casing, unless tokenizer_config.json says otherwise).

        Raises:
          UserError: no such folder, no tokenizer in it, an unreadable one, or one that lacks a special token.
        """
        directory = Path(directory)
        if not directory.is_dir():
            raise UserError(f"{directory}: no such tokenizer folder; make one with tools/train_tokenizer.py")
        if not any((directory / name).is_file() for name in (_TOKENIZER_FILE, _VOCABULARY_FILE)):
            raise UserError(f"{directory}: neither {_TOKENIZER_FILE} nor {_VOCABULARY_FILE}; name a tokenizer folder")
        try:
            config_file = directory / _CONFIG_FILE
            config = json.loads(config_file.read_text(encoding="utf-8")) if config_file.is_file() else {}
            engine = _read_engine(directory, cased=not config.get("do_lower_case", True))
            return cls(engine, {role: _content(config.get(f"{role}_token", token)) for role, token in SPECIALS.items()})
        except UserError as error:
            raise UserError(f"{directory}: {error}") from None
        except Exception as error:  # `tokenizers` raises bare Exceptions
            reason = " ".join(str(error).split())
            raise UserError(f"{directory}: unreadable tokenizer ({reason}); copy or train it again") from None

    def save(self, directory: str | Path) -> None:
        """Writes tokenizer.json, vocab.txt and tokenizer_config.json, as transformers' AutoTokenizer reads them."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        tokens = self.tokens(range(self.vocab_size))
        config = {
            "tokenizer_class": "BertTokenizer",
            "do_lower_case": json.loads(self._engine.to_str())["normalizer"]["lowercase"],
            "model_max_length": 512,
            **{f"{role}_token": token for role, token in self._specials.items()},
        }
        (directory / _VOCABULARY_FILE).write_text("".join(f"{token}\n" for token in tokens), encoding="utf-8")
        (directory / _CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        self._engine.save(str(directory / _TOKENIZER_FILE))

    # -----------------------------------------------------------------------------------------------------------------
    # Using one
    # -----------------------------------------------------------------------------------------------------------------

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        """Token ids, int32 [L] for each text. No special tokens are added, and those written in a text are text."""
        # BERT's rules look at one word at a time, so words between blanks can be encoded once and looked up after
        # that, which is several times faster. (Not so for a tokeniser whose pieces contain the blank.)
        split = [text.split(" ") for text in texts]
        cache = self._cache
        unknown = list(set(chain.from_iterable(split)).difference(cache))
        if len(cache) + len(unknown) > CACHED_WORDS:
            cache = self._cache = {}
            unknown = list(set(chain.from_iterable(split)))
        for word, encoding in zip(
            unknown, self._engine.encode_batch_fast(unknown, add_special_tokens=False), strict=True
        ):
            cache[word] = encoding.ids
        find = cache.__getitem__
        return [np.fromiter(chain.from_iterable(map(find, words)), np.int32) for words in split]

    def encode_with_masks(self, text: str) -> np.ndarray:
        """Like `encode` of one text, int32 [L], but a mask token written in it becomes `mask_id`."""
        pieces = self.encode(text.split(self._specials["mask"]))
        mask = np.array([self.mask_id], np.int32)
        return np.concatenate([pieces[0], *chain.from_iterable((mask, piece) for piece in pieces[1:])])

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids, special tokens included, with WordPiece's pieces joined."""
        return self._engine.decode([int(number) for number in ids], skip_special_tokens=False)

    def tokens(self, ids: Iterable[int]) -> list[str]:
        """The token of each id.

        Raises:
          IndexError: an id outside the vocabulary.
        """
        tokens = []
        for number in ids:
            token = self._engine.id_to_token(int(number))
            if token is None:
                raise IndexError(f"id {number} lies outside the vocabulary of {self.vocab_size} tokens")
            tokens.append(token)
        return tokens

    @cached_property
    def word_starts(self) -> np.ndarray:
        """bool [V]: False for the pieces that continue a word."""
        prefix = json.loads(self._engine.to_str())["model"]["continuing_subword_prefix"]
        return np.array([not token.startswith(prefix) for token in self.tokens(range(self.vocab_size))])

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits, equal for tokenizers that turn every text into the same ids."""
        engine = json.loads(self._engine.to_str())
        parts = [engine[part] for part in ("normalizer", "pre_tokenizer", "model", "added_tokens")]
        canonical = json.dumps([*parts, self._specials], sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    def _id(self, token: str) -> int:
        number = self._engine.token_to_id(token)
        if number is None:
            raise UserError(f"tokenizer lacks the special token {token}; add it to the vocabulary or train another")
        return number

    def __reduce__(self):
        return _restore, (self._engine.to_str(), self._specials)


def _restore(engine: str, specials: dict[str, str]) -> Tokenizer:
    return Tokenizer(tokenizers.Tokenizer.from_str(engine), specials)


def _engine(vocabulary: dict[str, int], cased: bool) -> tokenizers.Tokenizer:
    """BERT's WordPiece over a vocabulary."""
    model = models.WordPiece(vocabulary, unk_token=SPECIALS["unk"], max_input_chars_per_word=LONGEST_WORD)
    engine = tokenizers.Tokenizer(model)
    engine.normalizer = normalizers.BertNormalizer(lowercase=not cased)  # strips accents if it lower-cases
    engine.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    engine.decoder = decoders.WordPiece(prefix="##")
    engine.add_special_tokens([token for token in SPECIALS.values() if token in vocabulary])
    if SPECIALS["cls"] in vocabulary and SPECIALS["sep"] in vocabulary:  # for transformers; `encode` adds none
        cls, sep = ((SPECIALS[role], vocabulary[SPECIALS[role]]) for role in ("cls", "sep"))
        engine.post_processor = processors.BertProcessing(sep, cls)
    return engine


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


def _read_engine(directory: Path, cased: bool) -> tokenizers.Tokenizer:
    """Reads tokenizer.json if it is there, else vocab.txt, one token a line; `cased` is for the latter."""
    if (directory / _TOKENIZER_FILE).is_file():
        return tokenizers.Tokenizer.from_file(str(directory / _TOKENIZER_FILE))
    tokens = (directory / _VOCABULARY_FILE).read_text(encoding="utf-8").removesuffix("\n").split("\n")
    return _engine({token: number for number, token in enumerate(tokens)}, cased)


def _content(token: str | dict) -> str:
    """The text of a special token, which transformers may write as a table of its properties."""
    return token["content"] if isinstance(token, dict) else token
