"""Reads the settings next to a vocabulary, with the precedence of transformers 5 where they overlap.

They are tokenizer_config.json, special_tokens_map.json, added_tokens.json, and the class named in the model's config.json.
"""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Required, TypedDict

import msgspec
from tokenizers import AddedToken

from bert_jax.data.tokenizer.engines import ROLES, Added
from bert_jax.data.tokenizer.limits import REMEDY
from bert_jax.errors import UserError
from bert_jax.files import read_json

ENGINE_FILE, CONFIG_FILE, SPECIALS_FILE = "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"
_LEGACY_FILE, _MODEL_FILE = "added_tokens.json", "config.json"
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")

# Classes of transformers that imply no rules; "" if no class is named.
GENERAL_CLASSES = {"", "PreTrainedTokenizer", "TokenizersBackend", "PythonBackend"}
# Classes of models that share file names with other families and differ only by config.json.
_CLASS_OF_MODEL = {"camembert": "CamembertTokenizer", "xlm-roberta": "XLMRobertaTokenizer"}
# Options of BertJapaneseTokenizer, and the values that make it equivalent to BertTokenizer.
_WORD_OPTIONS = {"word_tokenizer_type": "basic", "subword_tokenizer_type": "wordpiece"}
# Options of BERT's, RoBERTa's and ALBERT's tokenizers that are true, false or null (default depends on others).
_SWITCHES = ("do_lower_case", "tokenize_chinese_chars", "strip_accents", "add_prefix_space", "keep_accents")


class _Token(TypedDict, total=False):
    content: Required[str]
    single_word: bool
    lstrip: bool
    rstrip: bool
    normalized: bool
    special: bool


_Extra = list[str | _Token] | dict[str, str | _Token] | None
_Id = Annotated[str, msgspec.Meta(pattern="^[0-9]{1,10}$")]


class _Values(TypedDict, total=False):
    """Entries of tokenizer_config.json and special_tokens_map.json that are read."""

    tokenizer_class: str | None
    model_input_names: list[str] | None
    added_tokens_decoder: dict[_Id, _Token] | None
    extra_special_tokens: _Extra
    additional_special_tokens: _Extra
    pad_token: str | _Token | None
    unk_token: str | _Token | None
    cls_token: str | _Token | None
    sep_token: str | _Token | None
    mask_token: str | _Token | None


class _Model(TypedDict, total=False):
    """Entries of config.json that are read."""

    tokenizer_class: str | None
    model_type: str | None


@dataclasses.dataclass(frozen=True)
class Settings:
    """Contents of the files of settings."""

    values: dict[str, Any]  # tokenizer_config.json
    roles: dict[str, str]  # role -> token, for the roles in the files
    added: tuple[Added, ...]  # first those with ids, in order
    class_name: str  # without "Fast"
    class_file: str  # in which the class is named


def read_settings(directory: Path) -> Settings:
    """Reads the settings; any file may be missing. Raises UserError if one is damaged or selects unsupported rules."""
    values, names = read_checked(directory / CONFIG_FILE, _Values), read_checked(directory / SPECIALS_FILE, _Values)
    for option in _SWITCHES:
        if not isinstance(values.get(option), bool | None):
            raise UserError(f"{option}={values[option]!r} in {CONFIG_FILE}: must be true or false")
    for option, plain in _WORD_OPTIONS.items():
        if values.get(option, plain) != plain:
            raise UserError(
                f"{option}={values[option]!r} in {CONFIG_FILE}: only the rules of BertTokenizer are supported; "
                "use another model"
            )
    named = _named(names) | _named(values)
    roles = {role: _content(named[f"{role}_token"]) for role in ROLES if f"{role}_token" in named}
    model = read_checked(directory / _MODEL_FILE, _Model)
    in_values, in_model = values.get("tokenizer_class"), model.get("tokenizer_class")
    class_name = in_values or in_model or _CLASS_OF_MODEL.get(str(model.get("model_type")), "")
    legacy = read_checked(directory / _LEGACY_FILE, dict[str, int])
    added = _added_tokens(values, names, legacy, set(roles.values()))
    class_file = CONFIG_FILE if in_values else _MODEL_FILE
    return Settings(values, roles, added, class_name.removesuffix("Fast"), class_file)


def _added_tokens(
    values: dict[str, Any], names: dict[str, Any], legacy: dict[str, int], roles: set[str]
) -> tuple[Added, ...]:
    """Returns the added tokens. With `added_tokens_decoder`, transformers ignores both older files."""
    decoder = values.get("added_tokens_decoder") or {}
    named = _named(values) if decoder else _named(names) | _named(values)
    extra = _extra(values) or ([] if decoder else _extra(names))
    special = {_content(value): value for value in [*named.values(), *extra]}
    if decoder:
        tokens = [(int(number), _token(value, False)) for number, value in decoder.items()]
    else:
        if "" in legacy:
            raise UserError(f"{_LEGACY_FILE} gives the id {legacy['']} to an empty token; remove it")
        tokens = [(number, AddedToken(content, special=content in special)) for content, number in legacy.items()]
    file = CONFIG_FILE if decoder else _LEGACY_FILE
    numbered = [Added(token, number, file) for number, token in sorted(tokens, key=lambda pair: pair[0])]
    known = {added.token.content for added in numbered}
    # The token of a role has the flags of its tokenizer's kind unless they are set explicitly.
    others = [
        Added(_token(value, True), None, CONFIG_FILE)
        for content, value in special.items()
        if content not in known and not (content in roles and isinstance(value, str))
    ]
    return (*numbered, *others)


def _named(values: dict[str, Any]) -> dict[str, Any]:
    """Returns the entries 'mask_token', 'bos_token' and so on: strings, or dicts with the token's properties."""
    return {
        name: value
        for name, value in values.items()
        if name.endswith("_token") and value and isinstance(_content(value), str)
    }


def _extra(values: dict[str, Any]) -> list[Any]:
    """Returns the special tokens without a role, from either of two entries."""
    extra = values.get("extra_special_tokens") or values.get("additional_special_tokens") or []
    return list(extra.values()) if isinstance(extra, dict) else list(extra)


def _content(value: Any) -> Any:
    return value.get("content") if isinstance(value, dict) else value


def _token(value: str | dict[str, Any], special: bool) -> AddedToken:
    if isinstance(value, str):
        return AddedToken(value, special=special)
    flags = {"special": special} | {name: bool(value[name]) for name in FLAGS if name in value}
    return AddedToken(value["content"], **flags)


def read_checked(path: Path, form: Any) -> dict[str, Any]:
    """Reads a JSON file and checks it against `form`, which may lack entries; {} if it does not exist."""
    if not path.exists():
        return {}
    values = read_json(path, remedy=REMEDY)
    try:
        msgspec.convert(values, form)
    except msgspec.ValidationError as error:
        raise UserError(f"{path}: invalid contents ({error}); {REMEDY}") from None
    return values


def check_agreement(spec: dict[str, Any], values: dict[str, Any]) -> None:
    """Raises UserError if tokenizer_config.json contradicts the engine; which one transformers uses depends on the class."""
    for name, actual in settings_of(spec).items():
        if (value := values.get(name, actual)) not in (actual, None):
            raise UserError(f"{CONFIG_FILE} has {name}={value}, but {ENGINE_FILE} has {actual}; correct the wrong one")


def settings_of(spec: dict[str, Any]) -> dict[str, Any]:
    """Returns the settings of an engine by their names in tokenizer_config.json of BERT, RoBERTa or ALBERT."""
    normalizer, pre_tokenizer = spec.get("normalizer") or {}, spec.get("pre_tokenizer") or {}
    settings = dict[str, Any]()
    if normalizer.get("type") == "BertNormalizer":
        lowercase, accents = normalizer["lowercase"], normalizer["strip_accents"]
        settings["do_lower_case"] = lowercase
        settings["tokenize_chinese_chars"] = normalizer["handle_chinese_chars"]
        settings["strip_accents"] = lowercase if accents is None else accents
    if pre_tokenizer.get("type") == "ByteLevel":
        settings["add_prefix_space"] = pre_tokenizer["add_prefix_space"]
    rules = [rule["type"] for rule in normalizer.get("normalizers", ())]
    if spec["model"].get("type") == "Unigram" and "Replace" in rules[:1]:
        settings["do_lower_case"], settings["keep_accents"] = "Lowercase" in rules, "StripAccents" not in rules
    return settings
