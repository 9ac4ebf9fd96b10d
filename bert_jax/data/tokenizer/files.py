"""Reads and writes the files of tokenizers.

Vocabularies: BERT's vocab.txt, RoBERTa's vocab.json and merges.txt, ALBERT's spiece.model; for all of them Hugging Face's
tokenizer.json, tokenizer_config.json and special_tokens_map.json. `Parts` holds their contents.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any, TypedDict

import tokenizers

from bert_jax.data.tokenizer import engines
from bert_jax.data.tokenizer.engines import BPE_SPECIALS, ROLES, UNIGRAM_SPECIALS, WORDPIECE_SPECIALS
from bert_jax.data.tokenizer.limits import MOST_TOKENS, REMEDY, Id, check_spec, vocabulary_size
from bert_jax.data.tokenizer.settings import (
    CONFIG_FILE,
    ENGINE_FILE,
    FLAGS,
    GENERAL_CLASSES,
    SPECIALS_FILE,
    Settings,
    check_agreement,
    read_checked,
    read_settings,
    settings_of,
)
from bert_jax.errors import UserError
from bert_jax.files import read_bytes, read_json, read_text, whole_file, write_json, write_text

WORDPIECE_FILE, BPE_FILE, MERGES_FILE, UNIGRAM_FILE = "vocab.txt", "vocab.json", "merges.txt", "spiece.model"
FAIRSEQ_FILE = "sentencepiece.bpe.model"  # of XLM-R and CamemBERT; its ids are not those of the model

# Classes of transformers with the same rules as the engine built from each file.
CLASSES = {
    WORDPIECE_FILE: {
        *("BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer", "MobileBertTokenizer", "SqueezeBertTokenizer"),
        *("ConvBertTokenizer", "LayoutLMTokenizer"),
    },
    BPE_FILE: {"RobertaTokenizer", "GPT2Tokenizer", "BartTokenizer", "LongformerTokenizer"},
    UNIGRAM_FILE: {"AlbertTokenizer"},
}
# Classes with rules of their own, which ignore tokenizer.json.
_WITHOUT_ENGINE = {
    *("BertJapaneseTokenizer", "BertweetTokenizer", "PhobertTokenizer", "FlaubertTokenizer", "XLMTokenizer"),
    *("RoCBertTokenizer", "TapasTokenizer", "EsmTokenizer", "CanineTokenizer"),
}
# A vocabulary with a larger share of capitalised words is cased: bert-base-cased has 31%, bert-base-uncased 0%, and 3.5% if
# all of its 994 unused tokens are replaced by names.
_CAPITALS = 0.1


class _Numbered(TypedDict):
    """An added token of tokenizer.json."""

    content: str
    id: int


class _WithAdded(TypedDict, total=False):
    """Added tokens in tokenizer.json; the engine assigns ids itself."""

    added_tokens: list[_Numbered] | None


@dataclasses.dataclass(frozen=True)
class Parts:
    """Contents of a tokenizer's files."""

    engine: tokenizers.Tokenizer
    specials: dict[str, str]  # the token of each of ROLES
    spiece: bytes = b""  # spiece.model, if present
    input_names: tuple[str, ...] = ()  # "model_input_names" of tokenizer_config.json, if present


def read_parts(directory: Path) -> Parts:
    """Reads a folder: tokenizer.json, else vocab.txt, else vocab.json and merges.txt, else spiece.model.

    Raises:
      UserError: no tokenizer, a missing special token, inconsistent files, or unsupported rules.
      Exception: of the libraries, for damaged files.
    """
    settings = read_settings(directory)
    spiece_files = [path for path in (directory / UNIGRAM_FILE, *sorted(directory.glob("*.model"))) if path.is_file()]
    spiece = read_bytes(spiece_files[0], REMEDY) if spiece_files else b""  # the original ALBERT uses another name
    if (directory / ENGINE_FILE).exists():
        engine, spec = _read_engine_file(directory / ENGINE_FILE, settings)
    else:
        engine = _engine_of_vocabulary(directory, settings, spiece)
        spec = json.loads(engine.to_str())
    _check_ids(engine, [(one.token.content, one.id, one.file) for one in settings.added if one.id is not None])
    specials = _roles(engine, spec, settings.roles)
    if not engine.num_special_tokens_to_add(is_pair=False):
        engine.post_processor = engines.template(engine, specials)
    return Parts(engine, specials, spiece, tuple(settings.values.get("model_input_names") or ()))


def holds_tokenizer(directory: Path) -> bool:
    """Checks whether a folder has any file that `read_parts` reads."""
    names = (ENGINE_FILE, WORDPIECE_FILE, BPE_FILE)
    return any((directory / name).is_file() for name in names) or any(directory.glob("*.model"))


def _engine_of_vocabulary(directory: Path, settings: Settings, spiece: bytes) -> tokenizers.Tokenizer:
    names = {path.name for path in directory.iterdir() if path.is_file()}
    values, roles, added = settings.values, settings.roles, settings.added
    if WORDPIECE_FILE in names:
        _check_class(settings, WORDPIECE_FILE)
        tokens = _read_lines(directory / WORDPIECE_FILE)
        vocabulary = {token: number for number, token in enumerate(tokens)}
        lowercase = values.get("do_lower_case", not _has_capitals(set(tokens) - set(roles.values())))
        chinese, accents = values.get("tokenize_chinese_chars", True), values.get("strip_accents")
        return engines.wordpiece_engine(vocabulary, WORDPIECE_SPECIALS | roles, lowercase, chinese, accents, added)
    if {BPE_FILE, MERGES_FILE} <= names:
        _check_class(settings, BPE_FILE)
        vocabulary, merges = _read_bpe(directory / BPE_FILE, directory / MERGES_FILE)
        return engines.byte_bpe_engine(
            vocabulary, merges, BPE_SPECIALS | roles, values.get("add_prefix_space", False), added
        )
    if FAIRSEQ_FILE in names:
        raise UserError(
            f"{FAIRSEQ_FILE} alone does not determine the ids of its pieces, which fairseq renumbered; "
            f"add the {ENGINE_FILE} saved by transformers' AutoTokenizer"
        )
    if spiece:
        _check_class(settings, UNIGRAM_FILE)
        lowercase, accents = values.get("do_lower_case", True), values.get("keep_accents", False)
        return engines.unigram_engine(spiece, UNIGRAM_SPECIALS | roles, lowercase, accents, added)
    raise UserError(
        f"no {ENGINE_FILE}, {WORDPIECE_FILE}, {BPE_FILE} with {MERGES_FILE}, or {UNIGRAM_FILE}; use a tokenizer folder"
    )


def _read_lines(path: Path) -> list[str]:
    """Reads the lines of a file without line ends (LF or CRLF). Raises UserError for invalid UTF-8 or too many lines."""
    text = read_text(path, REMEDY).replace("\r\n", "\n").removesuffix("\n")
    if (number := text.count("\n")) > MOST_TOKENS:
        raise UserError(f"{path}: has {number:,} lines, more than {MOST_TOKENS:,}; {REMEDY}")
    return text.split("\n")  # as transformers does; str.splitlines would split at characters that are tokens


def _read_bpe(vocabulary_file: Path, merges_file: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Reads the ids of the tokens, and the pairs to merge. Raises UserError if a file is invalid."""
    vocabulary = read_json(vocabulary_file, dict[str, Id], REMEDY)
    vocabulary_size(vocabulary)  # engines take time for every gap
    merges = list[tuple[str, str]]()
    for number, line in enumerate(_read_lines(merges_file), 1):
        if line.startswith("#version"):
            continue
        first, _, second = line.partition(" ")
        if not first or not second or " " in second:
            raise UserError(f"{merges_file}: line {number} is not a pair of tokens: {line[:100]!r}; {REMEDY}")
        merges.append((first, second))
    return vocabulary, merges


def _read_engine_file(path: Path, settings: Settings) -> tuple[tokenizers.Tokenizer, dict[str, Any]]:
    """Returns the engine of a tokenizer.json, with added tokens of the settings, and the JSON of the engine."""
    if settings.class_name in _WITHOUT_ENGINE:
        raise _other_rules(settings)
    raw_spec = read_checked(path, _WithAdded)
    check_spec(raw_spec)
    written: list[_Numbered] = raw_spec.get("added_tokens") or []
    engine = tokenizers.Tokenizer.from_str(read_text(path, REMEDY))
    spec = json.loads(engine.to_str())  # with defaults filled in
    _check_ids(engine, [(token["content"], token["id"], ENGINE_FILE) for token in written])
    if settings.class_name not in GENERAL_CLASSES - {""}:  # these ignore settings
        check_agreement(spec, settings.values)
    if not settings.added:
        return engine, spec
    roles, vocabulary = set(settings.roles.values()), engine.get_vocab()
    fixed = roles.intersection(vocabulary).union(token["content"] for token in written)
    # Flags that tokenizer_config.json spells out take precedence, as in transformers.
    replaced = {one.token.content for one in settings.added if one.id is not None and one.file == CONFIG_FILE} - roles
    tokens = engines.with_ids(settings.added, roles, vocabulary)
    engine.add_tokens([token for content, token in tokens.items() if content in replaced or content not in fixed])
    return engine, spec


def _has_capitals(tokens: set[str]) -> bool:
    """Guesses whether a vocabulary is cased if no file says so, as in the original folders of BERT."""
    words = [token for token in tokens if token and token[0] != "[" and token.lower() != token.upper()]
    return sum(word != word.lower() for word in words) > _CAPITALS * len(words)


def _check_class(settings: Settings, file: str) -> None:
    """Raises UserError for a class whose rules differ from those of the engine built from the file."""
    if settings.class_name not in CLASSES[file] | GENERAL_CLASSES:
        raise _other_rules(settings)


def _other_rules(settings: Settings) -> UserError:
    remedy = "" if settings.class_name in _WITHOUT_ENGINE else f"; add a {ENGINE_FILE} to the folder"
    return UserError(
        f"{settings.class_name}, named in {settings.class_file}, has its own rules, which are not supported"
        + (remedy or "; use a model with another tokenizer")
    )


def _check_ids(engine: tokenizers.Tokenizer, ids: list[tuple[str, int, str]]) -> None:
    """Raises UserError if a file gives an added token another id than the engine, which appends them to the vocabulary."""
    for content, number, file in ids:
        if (expected := engine.token_to_id(content)) != number:
            raise UserError(
                f"{file} gives the token {content!r} the id {number}, but the vocabulary implies {expected}: added tokens "
                "follow the vocabulary without a gap; correct either file"
            )


def _roles(engine: tokenizers.Tokenizer, spec: dict[str, Any], named: dict[str, str]) -> dict[str, str]:
    """Returns the token of each role: the one in the settings, else the one in the engine's rules, else the usual one."""
    used = _framing(spec.get("post_processor") or {}) | {"unk": spec["model"].get("unk_token")}
    special = [token.content for token in engine.get_added_tokens_decoder().values() if token.special]
    roles = {}
    for role in ROLES:
        usual = [WORDPIECE_SPECIALS[role], BPE_SPECIALS[role], *(token for token in special if role in token.lower())]
        candidates = [named[role]] if role in named else [used.get(role), *usual]
        tokens = [token for token in candidates if token and engine.token_to_id(token) is not None]
        if not tokens:
            missing = named.get(role, WORDPIECE_SPECIALS[role])
            raise UserError(
                f"tokenizer lacks the special token {missing}; add it to the vocabulary or train another"
                + ("" if role in named else f", or set {role}_token in {CONFIG_FILE}")
            )
        roles[role] = tokens[0]
    return roles


def _framing(processor: dict[str, Any]) -> dict[str, str]:
    """Returns the tokens that a post-processor puts before and after a text, as roles cls and sep."""
    if processor.get("type") == "Sequence":
        return {role: token for part in processor["processors"] for role, token in _framing(part).items()}
    if "cls" in processor:
        return {role: processor[role][0] for role in ("cls", "sep")}
    tokens = [part["SpecialToken"]["id"] for part in processor.get("single", []) if "SpecialToken" in part]
    return {"cls": tokens[0], "sep": tokens[-1]} if len(tokens) > 1 else {}


def write_parts(parts: Parts, directory: Path, max_length: int | None = None) -> None:
    """Writes the files of the tokenizer's kind, and those that transformers' AutoTokenizer reads."""
    directory.mkdir(parents=True, exist_ok=True)
    spec = json.loads(parts.engine.to_str())
    kind = spec["model"]["type"]
    vocabulary = parts.engine.get_vocab(with_added_tokens=False)
    if kind == "WordPiece":
        tokens = {number: token for token, number in vocabulary.items()}
        lines = "".join(f"{tokens.get(number, '')}\n" for number in range(1 + max(tokens)))
        write_text(directory / WORDPIECE_FILE, lines)
    elif kind == "BPE" and not spec["model"]["ignore_merges"]:  # which these files cannot express
        parts.engine.model.save(str(directory))  # vocab.json and merges.txt
    if parts.spiece:
        with whole_file(directory / UNIGRAM_FILE, binary=True) as file:
            file.write(parts.spiece)
    specials: dict[str, Any] = {f"{role}_token": token for role, token in parts.specials.items()}
    length = {"model_max_length": max_length} if max_length else {}
    added, roles = spec["added_tokens"], set(parts.specials.values())
    if extra := [token["content"] for token in added if token["special"] and token["content"] not in roles]:
        specials["additional_special_tokens"] = extra
    config = _config(spec, parts) | specials | length
    if any(token["content"] not in roles.intersection(vocabulary) for token in added):
        flags = ("content", *FLAGS)
        config["added_tokens_decoder"] = {str(token["id"]): {flag: token[flag] for flag in flags} for token in added}
    write_json(directory / CONFIG_FILE, config)
    for token in added:
        if token["content"] == parts.specials["mask"] and token["lstrip"]:
            names = ("content", "single_word", "lstrip", "rstrip", "normalized")
            specials["mask_token"] = {name: token[name] for name in names}
    write_json(directory / SPECIALS_FILE, specials)
    write_text(directory / ENGINE_FILE, parts.engine.to_str(pretty=True))


def _config(spec: dict[str, Any], parts: Parts) -> dict[str, Any]:
    """Returns tokenizer_config.json: the class of transformers equivalent to the engine, or the general one, and settings."""
    model, normalizer, pre_tokenizer = spec["model"], spec["normalizer"] or {}, spec["pre_tokenizer"] or {}
    kinds = model["type"], normalizer.get("type"), pre_tokenizer.get("type"), spec["post_processor"]["type"]
    names = {"model_input_names": list(parts.input_names)} if parts.input_names else {}
    settings = settings_of(spec)
    if kinds[:3] == ("WordPiece", "BertNormalizer", "BertPreTokenizer"):
        return names | {"tokenizer_class": "BertTokenizer"} | settings | {"strip_accents": normalizer["strip_accents"]}
    if kinds == ("BPE", None, "ByteLevel", "RobertaProcessing") and not model["ignore_merges"]:
        offsets = {"trim_offsets": spec["post_processor"]["trim_offsets"]}
        return names | {"tokenizer_class": "RobertaTokenizer"} | settings | offsets
    if parts.specials == UNIGRAM_SPECIALS and "keep_accents" in settings and model["unk_id"] == 1:
        # AlbertTokenizer of transformers 5 omits the token types by default.
        names = {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]} | names
        return names | {"tokenizer_class": "AlbertTokenizer"} | settings
    return {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": ["input_ids", "attention_mask"]} | names
