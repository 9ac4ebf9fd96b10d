"""Conversion between Hugging Face's config.json and EncoderConfig, by the tables in families.py; names of classes."""

import dataclasses
from pathlib import Path
from typing import Any, TypedDict

from bert_jax.errors import UserError, listed
from bert_jax.files import read_json
from bert_jax.formats.families import FAMILIES
from bert_jax.formats.rows import ACTIVATIONS, Family
from bert_jax.model.config import RANGES, EncoderConfig

CONFIG = "config.json"
# Options that say how the encoder is executed and do not change what it computes.
EXECUTION = ("dtype", "param_dtype", "attention", "remat", "scan_unroll")
_ACTIVATION_OPTIONS = ("activation", "head_activation")
# Problem types of a classification head: name here -> name in config.json.
PROBLEM_TYPES = {
    "classification": "single_label_classification",
    "multi_label": "multi_label_classification",
    "regression": "regression",
}
REMEDY = "get the folder again"


class Form(TypedDict, total=False):
    """Entries of config.json that are not options of an encoder."""

    architectures: list[str] | None
    id2label: dict[str | int, str | int | float | bool | None] | None
    label2id: dict[str, str | int | float | bool | None] | None
    problem_type: str | None


def read_huggingface_config(folder: Path) -> dict[str, Any]:
    """Reads config.json. Raises UserError if it is missing or unreadable."""
    if not (folder / CONFIG).exists():
        raise UserError(f"{folder}: no {CONFIG} in it; use a model folder in Hugging Face's format")
    return read_json(folder / CONFIG, remedy=REMEDY)


def encoder_config(family: Family, config: dict[str, Any], where: str) -> EncoderConfig:
    """Converts the contents of config.json. Raises UserError for a missing size or an unsupported option."""
    config = family.defaults | config
    for name, supported in family.required.items():
        if config.get(name, supported) != supported:
            raise UserError(f"{where}: {name}={config[name]!r} in {CONFIG} is not supported, only {supported!r}")
    try:
        options = {name: config[hf_name] for name, hf_name in family.options.items()} | family.read(config)
    except KeyError as error:
        raise UserError(f"{where}: {CONFIG} has no {error.args[0]}; {REMEDY}") from None
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    except (TypeError, AttributeError) as error:
        raise UserError(f"{where}: an option in {CONFIG} is of the wrong type ({error}); {REMEDY}") from None
    for name in _ACTIVATION_OPTIONS:
        if name in options:
            if not isinstance(options[name], str) or options[name] not in ACTIVATIONS:
                raise UserError(f"{where}: activation {options[name]!r} is not one of {', '.join(ACTIVATIONS)}")
            options[name] = ACTIVATIONS[options[name]]
    # Options of the file first: the others are derived from them.
    for field in sorted(dataclasses.fields(EncoderConfig), key=lambda field: field.name not in family.options):
        default: Any = field.default
        value, kind = options.get(field.name, default), type(default)
        option = f"{where}: {family.options.get(field.name, field.name)}={value!r} in {CONFIG}"
        if type(value) is not kind and not (kind is float and type(value) is int):
            raise UserError(f"{option} is not of type {kind.__name__}; {REMEDY}")
        low, high = RANGES.get(field.name, (value, value))
        if not low <= value <= high:  # the check of EncoderConfig, with the name in the file
            raise UserError(f"{option} is not from {low:,} to {high:,}; {REMEDY}")
    try:
        return EncoderConfig(**(family.fixed | options))
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: {error}; {REMEDY}") from None


def family_of(config: EncoderConfig) -> tuple[Family, dict[str, Any]]:
    """Returns the family that computes the same as an encoder, and its config.json. Raises UserError if there is none."""
    differences = []
    for family in FAMILIES.values():
        if family.fixed.get("exported_as", "") != config.exported_as:
            continue
        hf_config = to_huggingface(family, config)
        own = {name: getattr(config, name) for name in (*EXECUTION, "pooler")}
        read = dataclasses.replace(encoder_config(family, hf_config, family.model_type), **own)
        options = _options(read)
        differing = {name for name, value in _options(config).items() if value != options[name]}
        if config.pooler and not pooler_name(family):
            differing.add("pooler")
        if not differing:
            return family, hf_config
        differences.append(f"{family.model_type} in {', '.join(sorted(differing))}")
    raise UserError(
        f"no family of Hugging Face's format computes this encoder: it differs from {'; from '.join(differences)}"
    )


def _options(config: EncoderConfig) -> dict[str, Any]:
    """Returns the options of an encoder by name, those that are left open with what they stand for."""
    return dataclasses.asdict(config) | {"head_activation": config.head_activation or config.activation}


def architecture_of(family: Family, heads: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """Returns the class of transformers that holds the most of `heads`, and those; the bare encoder if none has any."""
    fitting = {name: held for name, held in family.architectures.items() if set(held) <= set(heads)}
    return max(fitting.items(), key=lambda item: len(item[1]))


def class_has_pooler(config: EncoderConfig, heads: tuple[str, ...]) -> bool:
    """Checks whether the class of transformers with these heads has a pooler: bare encoders and heads that read it do."""
    reads_it = {"nsp", "sop"} | ({"classification"} if config.classifier == "pooled" else set())
    return not heads or not reads_it.isdisjoint(heads)


def to_huggingface(family: Family, config: EncoderConfig) -> dict[str, Any]:
    """Returns the config.json of an encoder; options that the family does not have are left out."""
    hf_activations = {name: hf_name for hf_name, name in reversed(ACTIVATIONS.items())}
    values = {hf_name: getattr(config, name) for name, hf_name in family.options.items()}
    for name in _ACTIVATION_OPTIONS:
        if name in family.options:
            values[family.options[name]] = hf_activations[getattr(config, name) or config.activation]
    return {"model_type": family.model_type} | family.required | values | family.write(config)


def pooler_name(family: Family) -> str:
    """Returns the name of the pooler's weights in the file, without the prefix; "" for a family without a pooler."""
    return next((row.names[0] for row in family.encoder if row.paths == ("pooler/kernel",)), "")


def problem_of(config: dict[str, Any], num_outputs: int) -> str:
    """Returns the problem type of a classification head; if unset, a single output means regression, as in transformers.

    Raises:
      UserError: problem_type is unknown, or does not fit the number of outputs.
    """
    problem_type = config.get("problem_type")
    if problem_type is None:
        return "regression" if num_outputs == 1 else "classification"
    problems = {hf_name: name for name, hf_name in PROBLEM_TYPES.items()}
    if problem_type not in problems:
        raise UserError(f"{CONFIG}: {problem_type=} is not one of {', '.join(problems)}")
    where = f"{CONFIG}: {problem_type=} with a head of {num_outputs} outputs"
    if problems[problem_type] == "regression" and num_outputs > 1:
        raise UserError(f"{where}: only a single number can be predicted; use it as a library, with bert_jax.load")
    if problems[problem_type] == "classification" and num_outputs == 1:
        raise UserError(
            f"{where}: a single class always has probability 1; set {PROBLEM_TYPES['multi_label']} or regression"
        )
    return problems[problem_type]


def label_names(config: dict[str, Any], num_classes: int) -> list[str]:
    """Returns the class names of a head in the order of its logits; without id2label LABEL_0 and so on, as in transformers.

    A name that is a number in the file is converted to text.

    Raises:
      UserError: a class has no name, shares its name with another, or has two numbers.
    """
    named = config.get("id2label") or {str(number): f"LABEL_{number}" for number in range(num_classes)}
    if not all(str(number).isdecimal() and len(str(number)) < 10 for number in named):
        raise UserError(
            f"{CONFIG}: id2label does not map numbers to names: {listed(list(map(str, named)))}; number the labels from 0"
        )
    by_number = {int(number): name for number, name in named.items()}
    if sorted(by_number) != list(range(num_classes)):
        numbers = listed(list(map(str, sorted(by_number))))
        raise UserError(
            f"{CONFIG}: the head has {num_classes} classes, but id2label names the numbers {numbers}; "
            f"name 0 to {num_classes - 1}"
        )
    numbers_of: dict[str, int] = {}
    for number, name in sorted(by_number.items()):
        if not isinstance(name, str | int | float):
            raise UserError(f"{CONFIG}: id2label gives class {number} the name {name!r}; use a string")
        first = numbers_of.setdefault(str(name), number)
        if first != number:
            raise UserError(
                f"{CONFIG}: id2label gives the classes {first} and {number} the same name, {str(name)!r}; rename one"
            )
    for name, number in (config.get("label2id") or {}).items():
        if name in numbers_of and str(number) != str(numbers_of[name]):
            raise UserError(
                f"{CONFIG}: class {name!r} is number {numbers_of[name]} in id2label and {number} in label2id; correct one"
            )
    return list(numbers_of)
