"""The files of three ecosystems: BERT's vocab.txt, RoBERTa's vocab.json and merges.txt, ALBERT's spiece.model, and for all of
them Hugging Face's tokenizer.json, tokenizer_config.json and special_tokens_map.json. `Parts` is what they say.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from sentencepiece import sentencepiece_model_pb2
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from bert_jax.errors import UserError
from bert_jax.files import write_json

ROLES = ("pad", "unk", "cls", "sep", "mask")
WORDPIECE_SPECIALS = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
BPE_SPECIALS = {"pad": "<pad>", "unk": "<unk>", "cls": "<s>", "sep": "</s>", "mask": "<mask>"}
UNIGRAM_SPECIALS = {"pad": "<pad>", "unk": "<unk>", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
LONGEST_WORD = 200  # characters; longer words become [UNK] (google-research/bert tokenization.py, WordpieceTokenizer)

_PROTO: Any = sentencepiece_model_pb2  # its classes are made when it is imported, so mypy does not see them

ENGINE_FILE, CONFIG_FILE, SPECIALS_FILE = "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"
WORDPIECE_FILE, BPE_FILE, MERGES_FILE, UNIGRAM_FILE = "vocab.txt", "vocab.json", "merges.txt", "spiece.model"
FAIRSEQ_FILE = "sentencepiece.bpe.model"  # of XLM-R and CamemBERT, whose ids are not those of the SentencePiece model


@dataclasses.dataclass(frozen=True)
class Parts:
    """All that a tokenizer's files say."""

    engine: tokenizers.Tokenizer
    specials: dict[str, str]  # the token of each of ROLES
    spiece: bytes = b""  # spiece.model as it was, if there was one
    input_names: tuple[str, ...] = ()  # "model_input_names" of tokenizer_config.json, if it had them


# ---------------------------------------------------------------------------------------------------------------------
# Engines
# ---------------------------------------------------------------------------------------------------------------------


def wordpiece_engine(
    vocabulary: dict[str, int],
    specials: dict[str, str],
    lowercase: bool,
    chinese_characters: bool = True,
    strip_accents: bool | None = None,
) -> tokenizers.Tokenizer:
    """BERT's WordPiece; Chinese characters stand alone, accents go if it lower-cases, unless said otherwise."""
    model = models.WordPiece(vocabulary, unk_token=specials["unk"], max_input_chars_per_word=LONGEST_WORD)
    engine = tokenizers.Tokenizer(model)
    engine.normalizer = normalizers.BertNormalizer(
        lowercase=lowercase, handle_chinese_chars=chinese_characters, strip_accents=strip_accents
    )
    engine.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    engine.decoder = decoders.WordPiece(prefix="##")
    engine.add_special_tokens([token for token in specials.values() if token in vocabulary])
    if specials["cls"] in vocabulary and specials["sep"] in vocabulary:  # for transformers; `encode` adds none
        cls, sep = ((specials[role], vocabulary[specials[role]]) for role in ("cls", "sep"))
        engine.post_processor = processors.BertProcessing(sep, cls)
    return engine


def byte_bpe_engine(
    vocabulary: dict[str, int], merges: list[tuple[str, str]], specials: dict[str, str], add_prefix_space: bool = False
) -> tokenizers.Tokenizer:
    """RoBERTa's byte-level BPE: any text is bytes, a blank belongs to the word after it, pairs have two separators."""
    engine = tokenizers.Tokenizer(models.BPE(vocabulary, merges))
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    engine.decoder = decoders.ByteLevel()
    # A mask takes the blank before it, because the word that it hides would (RobertaTokenizer, mask_token).
    tokens = [tokenizers.AddedToken(token, lstrip=role == "mask", special=True) for role, token in specials.items()]
    engine.add_special_tokens([token for token in tokens if token.content in vocabulary])
    if specials["cls"] in vocabulary and specials["sep"] in vocabulary:
        cls, sep = ((specials[role], vocabulary[specials[role]]) for role in ("cls", "sep"))
        engine.post_processor = processors.RobertaProcessing(sep, cls, add_prefix_space=add_prefix_space)
    return engine


def unigram_engine(
    spiece: bytes, specials: dict[str, str], lowercase: bool = True, keep_accents: bool = False
) -> tokenizers.Tokenizer:
    """ALBERT's unigram model: its rules for quotes, accents and capitals, then those of the model itself.

    Raises:
      UserError: a SentencePiece model of another type.
    """
    proto = _PROTO.ModelProto.FromString(spiece)
    if proto.trainer_spec.model_type != _PROTO.TrainerSpec.UNIGRAM:
        raise UserError(f"{UNIGRAM_FILE} is no unigram model; give the folder a {ENGINE_FILE}")
    # The shortest decimals of these float32 survive being written and read; all digits of a double may not (serde_json).
    pieces = [(piece.piece, float(str(np.float32(piece.score)))) for piece in proto.pieces]
    types = [piece.type for piece in proto.pieces]
    unk_id = types.index(_PROTO.ModelProto.SentencePiece.UNKNOWN)
    engine = tokenizers.Tokenizer(models.Unigram(pieces, unk_id, byte_fallback=proto.trainer_spec.byte_fallback))
    rules = albert_rules(lowercase, keep_accents)
    if proto.normalizer_spec.precompiled_charsmap:
        rules.append(normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap))
    engine.normalizer = normalizers.Sequence(rules)
    scheme = "always" if proto.normalizer_spec.add_dummy_prefix else "never"
    engine.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme=scheme)]
    )
    engine.decoder = decoders.Metaspace(prepend_scheme=scheme)
    vocabulary = engine.get_vocab()
    tokens = [tokenizers.AddedToken(token, lstrip=role == "mask", special=True) for role, token in specials.items()]
    engine.add_special_tokens([token for token in tokens if token.content in vocabulary])
    if {specials["cls"], specials["sep"]} <= vocabulary.keys():
        engine.post_processor = _template(engine, specials)
    return engine


def albert_rules(lowercase: bool, keep_accents: bool) -> list[normalizers.Normalizer]:
    """What ALBERT does to a text before its SentencePiece model (google-research/albert tokenization.py, preprocess_text)."""
    rules: list[normalizers.Normalizer] = [normalizers.Replace("``", '"'), normalizers.Replace("''", '"')]
    rules += [] if keep_accents else [normalizers.NFKD(), normalizers.StripAccents()]
    return rules + ([normalizers.Lowercase()] if lowercase else [])


# ---------------------------------------------------------------------------------------------------------------------
# Reading
# ---------------------------------------------------------------------------------------------------------------------


def read_parts(directory: Path) -> Parts:
    """Reads a folder: tokenizer.json, else vocab.txt, else vocab.json and merges.txt, else spiece.model.

    Raises:
      UserError: none of these, or a special token is missing. Damaged files raise whatever their libraries do.
    """
    config = _read_json(directory / CONFIG_FILE)
    named = _named_roles(_read_json(directory / SPECIALS_FILE)) | _named_roles(config)
    spiece_files = [path for path in (directory / UNIGRAM_FILE, *sorted(directory.glob("*.model"))) if path.is_file()]
    spiece = spiece_files[0].read_bytes() if spiece_files else b""  # the original ALBERT has it by another name
    engine = _read_engine(directory, config, named, spiece)
    specials = _roles(engine, named)
    if not engine.num_special_tokens_to_add(is_pair=False):
        engine.post_processor = _template(engine, specials)
    return Parts(engine, specials, spiece, tuple(config.get("model_input_names", ())))


def holds_tokenizer(directory: Path) -> bool:
    """Whether `read_parts` finds any of its files in the folder."""
    names = (ENGINE_FILE, WORDPIECE_FILE, BPE_FILE)
    return any((directory / name).is_file() for name in names) or any(directory.glob("*.model"))


def _read_engine(directory: Path, config: dict[str, Any], named: dict[str, str], spiece: bytes) -> tokenizers.Tokenizer:
    there = {path.name for path in directory.iterdir() if path.is_file()}
    if ENGINE_FILE in there:
        return tokenizers.Tokenizer.from_file(str(directory / ENGINE_FILE))
    if WORDPIECE_FILE in there:
        tokens = (directory / WORDPIECE_FILE).read_text(encoding="utf-8").removesuffix("\n").split("\n")
        vocabulary = {token: number for number, token in enumerate(tokens)}
        # Where nothing says so, as in the folders of BERT's authors, a vocabulary with capitals is of texts with capitals.
        is_cased = any(
            token != token.lower() and token not in named.values() and token[0] != "[" for token in tokens if token
        )
        lowercase = config.get("do_lower_case", not is_cased)
        chinese, accents = config.get("tokenize_chinese_chars", True), config.get("strip_accents")
        return wordpiece_engine(vocabulary, WORDPIECE_SPECIALS | named, lowercase, chinese, accents)
    if {BPE_FILE, MERGES_FILE} <= there:
        vocabulary, merges = models.BPE.read_file(str(directory / BPE_FILE), str(directory / MERGES_FILE))
        return byte_bpe_engine(vocabulary, merges, BPE_SPECIALS | named, config.get("add_prefix_space", False))
    if FAIRSEQ_FILE in there:
        raise UserError(
            f"{FAIRSEQ_FILE} alone does not say the ids of its pieces, which fairseq numbered anew; "
            f"add the {ENGINE_FILE} that transformers' AutoTokenizer saves"
        )
    if spiece:
        lowercase = config.get("do_lower_case", True)
        return unigram_engine(spiece, UNIGRAM_SPECIALS | named, lowercase, config.get("keep_accents", False))
    raise UserError(
        f"no {ENGINE_FILE}, {WORDPIECE_FILE}, {BPE_FILE} with {MERGES_FILE}, or {UNIGRAM_FILE}; name a tokenizer folder"
    )


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _named_roles(config: dict[str, Any]) -> dict[str, str]:
    """The roles that a configuration gives tokens to; transformers may write a token as a table of its properties."""
    values = {role: config.get(f"{role}_token") for role in ROLES}
    return {role: value["content"] if isinstance(value, dict) else value for role, value in values.items() if value}


def _roles(engine: tokenizers.Tokenizer, named: dict[str, str]) -> dict[str, str]:
    """The token of each role: as named, else by what the engine does with it, else by the usual names."""
    vocabulary, spec = engine.get_vocab(), json.loads(engine.to_str())
    used = _framing(spec["post_processor"] or {}) | {"unk": spec["model"].get("unk_token")}
    special = [token["content"] for token in spec["added_tokens"] if token["special"]]
    roles = {}
    for role in ROLES:
        usual = [WORDPIECE_SPECIALS[role], BPE_SPECIALS[role], *(token for token in special if role in token.lower())]
        candidates = [named[role]] if role in named else [used.get(role), *usual]
        found = [token for token in candidates if token in vocabulary]
        if not found:
            lacking = named.get(role, WORDPIECE_SPECIALS[role])
            raise UserError(
                f"tokenizer lacks the special token {lacking}; add it to the vocabulary or train another"
                + ("" if role in named else f", or name it as {role}_token in {CONFIG_FILE}")
            )
        roles[role] = found[0]
    return roles


def _framing(processor: dict[str, Any]) -> dict[str, str]:
    """The tokens that a post-processor puts before and after a text, as the roles cls and sep."""
    if processor.get("type") == "Sequence":
        return {role: token for part in processor["processors"] for role, token in _framing(part).items()}
    if "cls" in processor:
        return {role: processor[role][0] for role in ("cls", "sep")}
    tokens = [part["SpecialToken"]["id"] for part in processor.get("single", []) if "SpecialToken" in part]
    return {"cls": tokens[0], "sep": tokens[-1]} if len(tokens) > 1 else {}


def _template(engine: tokenizers.Tokenizer, specials: dict[str, str]) -> processors.PostProcessor:
    """[CLS] A [SEP] B [SEP], for transformers; `Tokenizer.encode` adds none."""
    cls, sep = specials["cls"], specials["sep"]
    ids = [(token, engine.token_to_id(token)) for token in dict.fromkeys([cls, sep])]
    single, pair = f"{cls}:0 $A:0 {sep}:0", f"{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1"
    return processors.TemplateProcessing(single=single, pair=pair, special_tokens=ids)


# ---------------------------------------------------------------------------------------------------------------------
# Writing
# ---------------------------------------------------------------------------------------------------------------------


def write_parts(parts: Parts, directory: Path, tokens: list[str], max_length: int | None = None) -> None:
    """Writes the files that transformers' AutoTokenizer reads, and those of the ecosystem; `tokens` are in order of ids."""
    directory.mkdir(parents=True, exist_ok=True)
    spec = json.loads(parts.engine.to_str())
    kind = spec["model"]["type"]
    if kind == "WordPiece":
        (directory / WORDPIECE_FILE).write_text("".join(f"{token}\n" for token in tokens), encoding="utf-8")
    elif kind == "BPE":
        parts.engine.model.save(str(directory))  # vocab.json and merges.txt
    if parts.spiece:
        (directory / UNIGRAM_FILE).write_bytes(parts.spiece)
    specials = {f"{role}_token": token for role, token in parts.specials.items()}
    length = {"model_max_length": max_length} if max_length else {}
    write_json(directory / CONFIG_FILE, _config(spec, parts) | specials | length)
    properties = {token["content"]: token for token in spec["added_tokens"]}
    mask = properties.get(parts.specials["mask"], {})
    if mask.get("lstrip"):
        names = ("content", "single_word", "lstrip", "rstrip", "normalized")
        specials |= {"mask_token": {name: mask[name] for name in names}}  # type: ignore[dict-item]
    write_json(directory / SPECIALS_FILE, specials)
    parts.engine.save(str(directory / ENGINE_FILE))


def _config(spec: dict[str, Any], parts: Parts) -> dict[str, Any]:
    """The class of transformers that works as the engine does, and its settings; the general one where none does."""
    model, normalizer, pre_tokenizer = spec["model"], spec["normalizer"] or {}, spec["pre_tokenizer"] or {}
    kinds = model["type"], normalizer.get("type"), pre_tokenizer.get("type"), spec["post_processor"]["type"]
    names = {"model_input_names": list(parts.input_names)} if parts.input_names else {}
    if kinds[:3] == ("WordPiece", "BertNormalizer", "BertPreTokenizer"):
        return names | {
            "tokenizer_class": "BertTokenizer",
            "do_lower_case": normalizer["lowercase"],
            "tokenize_chinese_chars": normalizer["handle_chinese_chars"],
            "strip_accents": normalizer["strip_accents"],
        }
    if kinds == ("BPE", None, "ByteLevel", "RobertaProcessing"):
        space, offsets = pre_tokenizer["add_prefix_space"], spec["post_processor"]["trim_offsets"]
        return names | {"tokenizer_class": "RobertaTokenizer", "add_prefix_space": space, "trim_offsets": offsets}
    rules = [rule["type"] for rule in normalizer.get("normalizers", ())]
    if parts.specials == UNIGRAM_SPECIALS and kinds[0] == "Unigram" and model["unk_id"] == 1 and "Replace" in rules[:1]:
        accents, lowercase = "StripAccents" not in rules, "Lowercase" in rules
        # AlbertTokenizer of transformers 5 leaves the token types out, unless told.
        names = {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]} | names
        return names | {"tokenizer_class": "AlbertTokenizer", "do_lower_case": lowercase, "keep_accents": accents}
    return {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": ["input_ids", "attention_mask"]} | names
