"""Builds engines (objects of `tokenizers`) from vocabularies: BERT's WordPiece, RoBERTa's byte-level BPE, ALBERT's unigram.

Also the engine that encodes texts, in which the tokens of the five roles are plain text.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import tokenizers
from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors

from bert_jax.data.tokenizer.limits import MOST_GROWTH, MOST_TOKENS, REMEDY, charsmap_growth
from bert_jax.errors import UserError

ROLES = ("pad", "unk", "cls", "sep", "mask")
WORDPIECE_SPECIALS = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
BPE_SPECIALS = {"pad": "<pad>", "unk": "<unk>", "cls": "<s>", "sep": "</s>", "mask": "<mask>"}
UNIGRAM_SPECIALS = {"pad": "<pad>", "unk": "<unk>", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
LONGEST_WORD = 200  # characters; longer words become [UNK] (google-research/bert tokenization.py, WordpieceTokenizer)

_PROTO: Any = sentencepiece_model_pb2  # its classes are created at import, invisible to mypy


class Added(NamedTuple):
    """A token that is recognised in texts before the model is applied."""

    token: AddedToken
    id: int | None  # None if no file sets it: the id in the vocabulary, else the next free one
    file: str  # in which it is declared


def wordpiece_engine(
    vocabulary: dict[str, int],
    specials: dict[str, str],
    lowercase: bool,
    chinese_characters: bool = True,
    strip_accents: bool | None = None,
    added: Sequence[Added] = (),
) -> tokenizers.Tokenizer:
    """Builds BERT's WordPiece. By default Chinese characters are separate words, and lower-casing also strips accents."""
    model = models.WordPiece(vocabulary, unk_token=specials["unk"], max_input_chars_per_word=LONGEST_WORD)
    engine = tokenizers.Tokenizer(model)
    engine.normalizer = normalizers.BertNormalizer(
        lowercase=lowercase, handle_chinese_chars=chinese_characters, strip_accents=strip_accents
    )
    engine.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    engine.decoder = decoders.WordPiece(prefix="##")
    return _with_specials(engine, specials, added, processors.BertProcessing)


def byte_bpe_engine(
    vocabulary: dict[str, int],
    merges: list[tuple[str, str]],
    specials: dict[str, str],
    add_prefix_space: bool = False,
    added: Sequence[Added] = (),
) -> tokenizers.Tokenizer:
    """Builds RoBERTa's byte-level BPE: a space belongs to the word after it, and pairs have two separators."""
    engine = tokenizers.Tokenizer(models.BPE(vocabulary, merges))
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    engine.decoder = decoders.ByteLevel()
    processing = partial(processors.RobertaProcessing, add_prefix_space=add_prefix_space)
    # A mask includes the space before it, as the word it replaces would (RobertaTokenizer, mask_token).
    return _with_specials(engine, specials, added, processing, mask_takes_space=True)


def unigram_engine(
    spiece: bytes,
    specials: dict[str, str],
    lowercase: bool = True,
    keep_accents: bool = False,
    added: Sequence[Added] = (),
) -> tokenizers.Tokenizer:
    """Builds ALBERT's unigram model: rules for quotes, accents and capitals, then those of the SentencePiece model.

    Raises:
      UserError: the SentencePiece model is damaged or of another type.
    """
    try:
        proto = _PROTO.ModelProto.FromString(spiece)
    except DecodeError as error:
        raise UserError(f"unreadable tokenizer: spiece.model is damaged ({error}); {REMEDY}") from None
    if proto.trainer_spec.model_type != _PROTO.TrainerSpec.UNIGRAM:
        raise UserError("spiece.model is not a unigram model; add a tokenizer.json to the folder")
    # The shortest decimals of these float32 survive a round trip through JSON; a double may not (serde_json).
    pieces = [(piece.piece, float(str(np.float32(piece.score)))) for piece in proto.pieces]
    types = [piece.type for piece in proto.pieces]
    unknown = _PROTO.ModelProto.SentencePiece.UNKNOWN
    if len(pieces) > MOST_TOKENS or unknown not in types or not all(math.isfinite(score) for _, score in pieces):
        raise UserError(f"spiece.model is damaged: too many pieces, no unknown piece, or invalid scores; {REMEDY}")
    unk_id = types.index(unknown)
    engine = tokenizers.Tokenizer(models.Unigram(pieces, unk_id, byte_fallback=proto.trainer_spec.byte_fallback))
    rules = albert_rules(lowercase, keep_accents)
    if proto.normalizer_spec.precompiled_charsmap:
        if (growth := charsmap_growth(proto.normalizer_spec.precompiled_charsmap)) > MOST_GROWTH:
            raise UserError(f"spiece.model may make texts {growth:.3g} times longer; {REMEDY}")
        rules.append(normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap))
    engine.normalizer = normalizers.Sequence(rules)
    scheme = "always" if proto.normalizer_spec.add_dummy_prefix else "never"
    engine.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme=scheme)]
    )
    engine.decoder = decoders.Metaspace(prepend_scheme=scheme)
    return _with_specials(engine, specials, added, lambda sep, cls: template(engine, specials), mask_takes_space=True)


def albert_rules(lowercase: bool, keep_accents: bool) -> list[normalizers.Normalizer]:
    """Returns ALBERT's rules before the SentencePiece model (google-research/albert tokenization.py, preprocess_text)."""
    rules: list[normalizers.Normalizer] = [normalizers.Replace("``", '"'), normalizers.Replace("''", '"')]
    rules += [] if keep_accents else [normalizers.NFKD(), normalizers.StripAccents()]
    return rules + ([normalizers.Lowercase()] if lowercase else [])


def template(engine: tokenizers.Tokenizer, specials: dict[str, str]) -> processors.PostProcessor:
    """Returns the template [CLS] A [SEP] B [SEP] for transformers; `Tokenizer.encode` adds no special tokens."""
    cls, sep = specials["cls"], specials["sep"]
    ids = [(token, engine.token_to_id(token)) for token in dict.fromkeys([cls, sep])]
    single, pair = f"{cls}:0 $A:0 {sep}:0", f"{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1"
    return processors.TemplateProcessing(single=single, pair=pair, special_tokens=ids)


def with_ids(added: Sequence[Added], roles: Iterable[str], vocabulary: Mapping[str, int]) -> dict[str, AddedToken]:
    """Returns the tokens to add, by content, without those of `roles` that the tokenizer lacks."""
    missing = set(roles) - vocabulary.keys()
    return {one.token.content: one.token for one in added if one.id is not None or one.token.content not in missing}


def _with_specials(
    engine: tokenizers.Tokenizer,
    specials: dict[str, str],
    added: Sequence[Added],
    processing: Callable[..., processors.PostProcessor],
    mask_takes_space: bool = False,
) -> tokenizers.Tokenizer:
    """Adds the roles' tokens in the vocabulary and those of `added`; new tokens get the next ids, in order.

    If the vocabulary has them, `processing`, of (token, id) of the separator and of [CLS], makes the post-processor. It is
    only for transformers; `Tokenizer.encode` adds no special tokens.
    """
    vocabulary = engine.get_vocab()
    tokens = with_ids(added, specials.values(), vocabulary)
    for role, content in specials.items():
        if content in vocabulary:
            flags = tokens.get(content) or AddedToken(content, lstrip=mask_takes_space and role == "mask")
            stripping = {"lstrip": flags.lstrip, "rstrip": flags.rstrip}
            tokens[content] = AddedToken(content, normalized=False, special=True, **stripping)
    engine.add_tokens(list(tokens.values()))
    vocabulary, ends = engine.get_vocab(), (specials["sep"], specials["cls"])
    if vocabulary.keys() >= set(ends):
        engine.post_processor = processing(*[(token, vocabulary[token]) for token in ends])
    return engine


def added_in_texts(spec: dict[str, Any], roles: set[str]) -> list[dict[str, Any]]:
    """Returns the added tokens of an engine's JSON, with `special` set for exactly those of `roles`."""
    return [token | {"special": token["content"] in roles} for token in spec["added_tokens"]]


def text_engine(engine: tokenizers.Tokenizer, spec: dict[str, Any], roles: set[str]) -> tokenizers.Tokenizer:
    """Returns an engine that treats `roles` in a text as plain text, and all other added tokens as tokens.

    `spec` is the JSON of `engine`, which makes all special tokens plain text and is returned if that is equivalent.
    """
    added = added_in_texts(spec, roles)
    model = spec["model"]
    if model["type"] == "Unigram":
        # Otherwise the search would match "<pad>" like any piece. Its input never contains spaces, so " <pad>" cannot match.
        pieces = [[f" {piece}" if piece in roles else piece, score] for piece, score in model["vocab"]]
        hidden = roles.intersection(piece for piece, _ in model["vocab"])
        model, added = model | {"vocab": pieces}, [token for token in added if token["content"] not in hidden]
    elif added == spec["added_tokens"]:
        return engine
    changed = {**spec, "model": model, "added_tokens": added, "post_processor": None}
    encoder = tokenizers.Tokenizer.from_str(json.dumps(changed))
    encoder.encode_special_tokens = True
    return encoder
