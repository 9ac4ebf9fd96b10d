"""config.json of Hugging Face's <-> EncoderConfig, by the tables in families.py; which family computes what an encoder does."""

import dataclasses
from pathlib import Path
from typing import Any, TypedDict

import msgspec

from bert_jax.errors import UserError
from bert_jax.files import read_json
from bert_jax.formats.families import FAMILIES
from bert_jax.formats.rows import ACTIVATIONS, Family
from bert_jax.model.config import RANGES, EncoderConfig

CONFIG = "config.json"
# How the numbers are computed, not which: two encoders that differ in these are the same.
EXECUTION = ("dtype", "param_dtype", "remat", "scan_unroll")
_ACTIVATION_OPTIONS = ("activation", "head_activation")


REMEDY = "get the folder again"


class _Form(TypedDict, total=False):
    """Types of the entries of config.json that are not options of an encoder."""

    architectures: list[str] | None
    id2label: dict[str | int, str | int | float | bool | None] | None
    label2id: dict[str, str | int | float | bool | None] | None
    problem_type: str | None


def read_config(folder: Path) -> dict[str, Any]:
    """Their config.json. Raises UserError where there is none that can be read."""
    if not (folder / CONFIG).exists():
        raise UserError(f"{folder}: no {CONFIG} in it; name the folder of a model in Hugging Face's format")
    return read_json(folder / CONFIG, remedy=REMEDY)


def check_form(config: dict[str, Any], where: str) -> None:
    """Raises UserError if their classes or labels are of another type than transformers writes."""
    try:
        msgspec.convert(config, _Form)
    except msgspec.ValidationError as error:
        raise UserError(f"{where}: {CONFIG} is not what is expected ({error}); {REMEDY}") from None


def encoder_config(family: Family, config: dict[str, Any], where: str) -> EncoderConfig:
    """Our config for theirs. Raises UserError for a size that is missing or an option that no encoder here has."""
    config = family.defaults | config
    for name, supported in family.required.items():
        if config.get(name, supported) != supported:
            raise UserError(f"{where}: {name}={config[name]!r} in {CONFIG} is not supported, only {supported!r}")
    try:
        options = {ours: config[theirs] for ours, theirs in family.options.items()} | family.read(config)
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
    # Their own options first: others follow from them.
    for field in sorted(dataclasses.fields(EncoderConfig), key=lambda field: field.name not in family.options):
        default: Any = field.default
        value, kind = options.get(field.name, default), type(default)
        told = f"{where}: {family.options.get(field.name, field.name)}={value!r} in {CONFIG}"
        if type(value) is not kind and not (kind is float and type(value) is int):
            raise UserError(f"{told} is not of type {kind.__name__}; {REMEDY}")
        low, high = RANGES.get(field.name, (value, value))
        if not low <= value <= high:  # as EncoderConfig says it, by their name
            raise UserError(f"{told} is not from {low:,} to {high:,}; {REMEDY}")
    try:
        return EncoderConfig(**(family.fixed | options))
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: {error}; {REMEDY}") from None


def family_of(config: EncoderConfig) -> tuple[Family, dict[str, Any]]:
    """The family that computes what an encoder does, and its config in their words.

    Raises:
      UserError: there is none; says in what each differs.
    """
    differences = []
    for family in FAMILIES.values():
        if family.fixed.get("exported_as", "") != config.exported_as:
            continue
        theirs = write_config(family, config)
        read = dataclasses.replace(encoder_config(family, theirs, family.model_type), pooler=config.pooler)
        own = {name: getattr(config, name) for name in EXECUTION}
        differing = {
            field.name
            for field in dataclasses.fields(config)
            if getattr(dataclasses.replace(read, **own), field.name) != getattr(config, field.name)
        }
        if config.pooler and not pooler_name(family):
            differing.add("pooler")
        if not differing:
            return family, theirs
        differences.append(f"{family.model_type} in {', '.join(sorted(differing))}")
    raise UserError(f"no family of Hugging Face's computes this encoder: it differs from {'; from '.join(differences)}")


def architecture_of(family: Family, heads: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """The class of theirs that holds the most of our heads, and those; the bare encoder where it has none of them."""
    fitting = {name: held for name, held in family.architectures.items() if set(held) <= set(heads)}
    return max(fitting.items(), key=lambda item: len(item[1]))


def class_has_pooler(config: EncoderConfig, heads: tuple[str, ...]) -> bool:
    """Whether the class of theirs with these heads has a pooler: one that reads the pooled state, or the bare encoder."""
    reads_it = {"nsp", "sop"} | ({"classification"} if config.classifier == "pooled" else set())
    return not heads or not reads_it.isdisjoint(heads)


def write_config(family: Family, config: EncoderConfig) -> dict[str, Any]:
    """Our config in the words of a family, as far as it has words for it."""
    written = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
    values = {theirs: getattr(config, ours) for ours, theirs in family.options.items()}
    for name in _ACTIVATION_OPTIONS:
        if name in family.options:
            values[family.options[name]] = written[getattr(config, name) or config.activation]
    return {"model_type": family.model_type} | family.required | values | family.write(config)


def pooler_name(family: Family) -> str:
    """Their name of the pooler's weights, without the prefix; "" for a family without one."""
    return next((row.theirs[0] for row in family.encoder if row.ours == ("pooler/kernel",)), "")
