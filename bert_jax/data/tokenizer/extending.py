"""Adds words to a vocabulary: each becomes one token with a new id, and all other ids stay the same.

How depends on the kind. WordPiece: added tokens, which match whole words only. Byte-level BPE: tokens of the model, matched as
whole words (`ignore_merges`), because an added token would separate the space that belongs to its word. Unigram: pieces of the
model, because around an added token the rules would begin new words.
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import tokenizers
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken

from bert_jax.data.tokenizer.files import Parts
from bert_jax.errors import UserError, listed

Pieces = tuple[int, ...]  # the ids of a word
# By which a new unigram piece exceeds the sum of the scores of its pieces, for each piece fewer; float32 represents it.
_GAIN = 1e-3


def extended(parts: Parts, words: Sequence[Pieces], first_id: int) -> Parts:
    """Returns a tokenizer in which each word, which is several pieces now, is a token; ids are counted from `first_id`.

    Raises:
      UserError: a word is a token already, or the rules of the tokenizer cannot be extended.
    """
    spec = json.loads(parts.engine.to_str())
    kind = _kind(spec)
    names = [name_of(parts.engine, spec, pieces) for pieces in words]
    vocabulary = parts.engine.get_vocab()
    if present := [name for number, name in enumerate(names) if name in vocabulary or name in names[:number]]:
        raise UserError(f"tokens that are there already: {listed(present)}; leave them out")
    spiece = parts.spiece
    if kind == "WordPiece":
        engine = tokenizers.Tokenizer.from_str(json.dumps(spec))
        engine.add_tokens([AddedToken(name, single_word=True, normalized=True) for name in names])
    elif kind == "BPE":
        _match_whole_words(spec, parts.engine)
        spec["model"]["vocab"] |= {name: first_id + number for number, name in enumerate(names)}
        engine = tokenizers.Tokenizer.from_str(json.dumps(spec))
    else:
        scored = [(name, _score(spec, pieces)) for name, pieces in zip(names, words, strict=True)]
        spec["model"]["vocab"] += scored
        engine = tokenizers.Tokenizer.from_str(json.dumps(spec))
        spiece = _with_pieces(spiece, scored, first_id)
    expected = vocabulary | {name: first_id + number for number, name in enumerate(names)}
    if engine.get_vocab() != expected:
        raise UserError("a tokenizer with unused ids between others cannot be extended; train another")
    return Parts(engine, parts.specials, spiece, parts.input_names)


def _kind(spec: dict[str, Any]) -> str:
    """Returns the type of the model. Raises UserError for rules by which a new token would change the tokens next to it."""
    model, normalizer = spec["model"], (spec["normalizer"] or {}).get("type")
    rules = spec["pre_tokenizer"] or {"type": None}
    rules = [rule["type"] for rule in rules.get("pretokenizers", [rules])]
    match model["type"], normalizer, rules:
        case "WordPiece", "BertNormalizer", ["BertPreTokenizer"]:
            return "WordPiece"
        case "BPE", _, ["ByteLevel"] if not (model["continuing_subword_prefix"] or model["end_of_word_suffix"]):
            if spec["pre_tokenizer"].get("use_regex", True):
                return "BPE"
        case "Unigram", _, [*_, "Metaspace"]:
            if all(token["id"] < len(model["vocab"]) for token in spec["added_tokens"]):
                return "Unigram"
            raise UserError(
                "a unigram tokenizer with added tokens cannot be extended: their ids follow those of its pieces"
            )
    described = f"{model['type']} with {normalizer or 'no normalizer'} and {' and '.join(map(str, rules))}"
    kinds = "BERT's WordPiece, byte-level BPE or a SentencePiece unigram model"
    raise UserError(f"a tokenizer of this kind ({described}) cannot be extended, only {kinds}")


def name_of(engine: tokenizers.Tokenizer, spec: dict[str, Any], pieces: Pieces) -> str:
    """Returns the token that a word becomes; `spec` is the JSON of the engine."""
    prefix = spec["model"].get("continuing_subword_prefix") or ""
    first, *others = [str(engine.id_to_token(piece)) for piece in pieces]
    return first + "".join(other.removeprefix(prefix) for other in others)


def _match_whole_words(spec: dict[str, Any], engine: tokenizers.Tokenizer) -> None:
    """Sets `ignore_merges`: a word in the vocabulary is one token. Raises UserError if this changed another word."""
    model, separate = spec["model"], engine.pre_tokenizer.pre_tokenize_str
    # The model's vocabulary must not grow up to the ids of added tokens.
    model["vocab"] |= {token["content"]: token["id"] for token in spec["added_tokens"]}
    if model["ignore_merges"]:
        return
    model["ignore_merges"] = True
    merged = engine.model
    for name, number in model["vocab"].items():
        is_made = [token.id for token in merged.tokenize(name)] == [number]
        if not is_made and [word for word, _ in separate(engine.decoder.decode([name]))] == [name]:
            raise UserError(f"this tokenizer cannot be extended: it never makes its token {name!r} of that word")


def _score(spec: dict[str, Any], pieces: Pieces) -> float:
    """Returns the score of a word as a piece: just above that of its pieces, so that other words stay as they are."""
    score = sum(spec["model"]["vocab"][piece][1] for piece in pieces) + _GAIN * (len(pieces) - 1)
    return float(str(np.float32(score)))  # see engines.unigram_engine


def _with_pieces(spiece: bytes, scored: Sequence[tuple[str, float]], num_pieces: int) -> bytes:
    """Returns spiece.model with more pieces; b"" if it does not have the pieces of the tokenizer."""
    if not spiece:
        return b""
    classes: Any = sentencepiece_model_pb2  # created at import, invisible to mypy
    proto = classes.ModelProto.FromString(spiece)
    if len(proto.pieces) != num_pieces:
        return b""
    for piece, score in scored:
        proto.pieces.add(piece=piece, score=score)
    return proto.SerializeToString()
