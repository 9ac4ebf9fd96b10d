"""Converts between ConfigDicts, which users edit, and the frozen dataclasses that define options and their defaults."""

import dataclasses
import math
import typing
from typing import Any, TypeVar

from ml_collections import ConfigDict, config_dict

from bert_jax.errors import UserError

T = TypeVar("T")
LARGEST = 2**53  # integer in a config: a float represents all of these exactly
# Former names of options, and what they are called now in the same section. Folders of older runs are read with them; in
# config files and on the command line they are errors that name the new ones.
RENAMED = {
    "data.question_length": "max_query_length",
    "data.short_share": "short_seq_prob",
    "data.stride": "doc_stride",
    "fresh_layers": "reinit_layers",
    "longest_answer": "max_answer_length",
    "model.layer_mix": "scalar_mix",
    "n_best": "n_best_size",
    "optimizer.frozen_until": "unfreeze_at",
    "options.mlm.exact_count": "count",
    "options.mlm.mask": "mask_replace_prob",
    "options.mlm.random": "random_replace_prob",
    "options.mlm.rate": "mlm_probability",
    "options.mlm.whole_word": "masking",
    "options.mlm.whole_word_mask": "masking",
    "options.nsp.random_share": "nsp_probability",
    "warmup_share": "warmup_ratio",
}
# What former switches are called now, off and on.
FORMER_SWITCHES = {
    "options.mlm.exact_count": ("independent", "round"),
    "options.mlm.whole_word": ("token", "word"),
    "options.mlm.whole_word_mask": ("token", "word"),
}


def inherited(default: T) -> T:
    """Declares a section whose unset options are those of the run in `init_from` (see tasks/base.py)."""
    return dataclasses.field(default=default, metadata={"inherited": True})


def to_config_dict(config: Any) -> ConfigDict:
    """Returns a ConfigDict with every option of a dataclass, so that a misspelt override is an error."""
    values = ConfigDict(dataclasses.asdict(config))
    for field in dataclasses.fields(config):
        if field.metadata.get("inherited") and getattr(config, field.name) == field.default:
            values[field.name] = unset(values[field.name])
    return values


def unset(values: ConfigDict) -> ConfigDict:
    """Returns a section whose options are all unset: they are those of the run or model in `init_from` (see tasks/base.py)."""
    kinds = {name: value if isinstance(value, ConfigDict) else type(value) for name, value in values.items()}
    return ConfigDict(
        {
            name: unset(kind) if isinstance(kind, ConfigDict) else config_dict.placeholder(kind)
            for name, kind in kinds.items()
        }
    )


def to_dict(config: Any) -> dict[str, Any]:
    """Returns the options of a dataclass as nested dicts."""
    return dataclasses.asdict(config)


def from_dict(default: T, values: typing.Mapping[str, Any], path: str = "config") -> T:
    """Returns a copy of a dataclass with the values of a mapping.

    Options that are missing (in the config of an older run) or None (unset, see `inherited`) keep their defaults.

    Raises:
      UserError: an option does not exist, or has the wrong type or an invalid value.
    """
    _check_names(values, [field.name for field in dataclasses.fields(default)], path)  # type: ignore[arg-type]
    hints = typing.get_type_hints(type(default))
    changes = {
        name: _convert(getattr(default, name), value, f"{path}.{name}", hints[name])
        for name, value in values.items()
        if value is not None
    }
    try:
        return dataclasses.replace(default, **changes)  # type: ignore[type-var]
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None


def _check_names(values: Any, known: typing.Collection[str], path: str) -> None:
    if not hasattr(values, "items"):  # a ConfigDict is not a Mapping
        raise UserError(f"{path}={values!r}: must be a group of options")
    for name in values:
        if name not in known:
            hint = renamed_hint(f"{path}.{name}".removeprefix("config."))
            raise UserError(f"{path}.{name}: {hint or f'no such option; {path} has ' + ', '.join(known)}")


def renamed_hint(old: str) -> str:
    """Returns what to say about a former name of an option; '' for any other name."""
    if old not in RENAMED:
        return ""
    off, on = FORMER_SWITCHES.get(old, ("", ""))
    return f"the option is called {RENAMED[old]} now" + (f", with {on!r} for True and {off!r} for False" if on else "")


def with_new_names(config: dict[str, Any]) -> dict[str, Any]:
    """Returns the contents of a config.json with the options that it has under former names renamed in place."""
    for old, new in RENAMED.items():
        *sections, name = old.split(".")
        section: Any = config
        for part in sections:
            section = section.get(part) if isinstance(section, dict) else None
        if isinstance(section, dict) and name in section:
            value = section.pop(name)
            is_switch = old in FORMER_SWITCHES and isinstance(value, bool)
            section.setdefault(new, FORMER_SWITCHES[old][value] if is_switch else value)
    return config


def sizes_entry(table: typing.Mapping[str, T], name: str) -> T:
    """Returns an entry of a recipe's table of sizes or tasks. Raises UserError for an unknown name."""
    if name not in table:
        raise UserError(f"--config=FILE:{name}: no such entry; choose one of {', '.join(table)}")
    return table[name]


def _convert(default: Any, value: Any, path: str, hint: Any = None) -> Any:
    if dataclasses.is_dataclass(default):
        return from_dict(default, value, path)
    if isinstance(default, dict):  # of dataclasses by name
        _check_names(value, default, path)
        return default | {name: from_dict(default[name], value[name], f"{path}.{name}") for name in value}
    if isinstance(default, tuple) and isinstance(value, str | dict):  # one part, without the comma of a tuple
        value = (value,)
    if isinstance(default, tuple) and isinstance(value, list | tuple):
        of_parts = typing.get_args(hint)[0]
        if dataclasses.is_dataclass(of_parts):
            return tuple(
                from_dict(typing.cast(Any, of_parts)(), part, f"{path}[{number}]") for number, part in enumerate(value)
            )
        # On the command line a tuple is 'mlm,nsp', which ml_collections reads as one name.
        parts = [part for item in value for part in (item.split(",") if isinstance(item, str) else [item])]
        return tuple(_convert(default[0] if default else of_parts(), part, path) for part in parts)
    if isinstance(default, float) and type(value) is int and abs(value) <= LARGEST:
        value = float(value)
    if type(value) is not type(default):
        example = f", like {default!r}" if default or not isinstance(default, str) else ""
        raise UserError(f"{path}={value!r}: must be of type {type(default).__name__}{example}")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{path}={value!r}: must be a finite number")
    if isinstance(value, int) and abs(value) > LARGEST:
        raise UserError(f"{path}={value!r}: must be a number of at most {LARGEST}")
    return value
