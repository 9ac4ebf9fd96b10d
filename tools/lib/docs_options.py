"""The page of all options: names, types and defaults from the dataclasses, meanings from the comments next to their fields."""

import dataclasses
import importlib
import inspect
import pkgutil
import re
import sys
import typing
from pathlib import Path
from typing import Any, NamedTuple

import bert_jax.tasks
from bert_jax.model import config as model_config
from bert_jax.model.config import EncoderConfig
from bert_jax.objectives.base import available
from bert_jax.tasks import pretraining
from bert_jax.tasks.base import TaskConfig
from bert_jax.tasks.common.phases import PhaseConfig
from bert_jax.tasks.finetuning.options import FineTuningConfig
from tools.lib.docs_code import Field, cell, code, commented_fields, relative

_TABLE = re.compile(r"\bone of ([A-Z]+)\b")
_MODULE = re.compile(r"\b(?:\w+\.)+(?=\w)")
INTRODUCTION = """# Options

Every option of a config, set as `--config.SECTION.FIELD=value` on the command line or in a file of `configs/`. The defaults are
those of the dataclasses; recipes set others. In fine-tuning some defaults differ, and those that are not set here are those of
the run in `init_from`. [Former names](../glossary.md#options-renamed) are errors that name the new ones.
"""


class Section(NamedTuple):
    """A group of options with the same prefix."""

    title: str
    prefix: str
    default: Any  # a dataclass
    other: Any = None  # the same section in fine-tuning
    note: str = ""
    base: type = object  # whose options another section lists


def page() -> str:
    """Returns the page as Markdown."""
    return "\n".join([INTRODUCTION, *map(section_part, sections())])


def sections() -> list[Section]:
    """Returns all sections: those of every task, of pretraining with its objectives, of each fine-tuning task."""
    pretrained, tuned = pretraining.Config(), FineTuningConfig()
    parts = [Section("All tasks", "", TaskConfig())]
    for name in ("model", "train", "optimizer", "parallel", "checkpoint"):
        parts.append(Section(name.capitalize(), f"{name}.", getattr(pretrained, name), getattr(tuned, name)))
    parts.append(Section("Pretraining", "", pretrained, base=TaskConfig))
    parts.append(Section("Data of pretraining", "data.", pretrained.data))
    note = "Each of the `phases` has these options; 0, '' and () stand for those of the run."
    parts.append(Section("Phases", "phases[N].", PhaseConfig(), note=note))
    masks = pretrained.options["mlm"]
    for name in available():
        options = pretrained.options[name]
        has_masks = name != "mlm" and isinstance(options, type(masks))
        note = "And those of `options.mlm`, with the defaults below where they differ." if has_masks else ""
        base = type(masks) if has_masks else object
        parts.append(Section(f"Objective {name}", f"options.{name}.", options, note=note, base=base))
    parts.append(Section("Fine-tuning", "", tuned, base=TaskConfig))
    for name in finetuning_tasks():
        config = importlib.import_module(f"bert_jax.tasks.{name}").Config()
        parts.append(Section(f"Task {name}", "", config, base=FineTuningConfig))
        parts.append(Section(f"Data of {name}", "data.", config.data))
    return parts


def finetuning_tasks() -> list[str]:
    """Returns the names of the files in tasks/ whose config is one of fine-tuning."""
    names = [file.name for file in pkgutil.iter_modules(bert_jax.tasks.__path__) if not file.ispkg]
    configs = {name: getattr(importlib.import_module(f"bert_jax.tasks.{name}"), "Config", None) for name in names}
    return [name for name, config in configs.items() if config and issubclass(config, FineTuningConfig)]


def section_part(section: Section) -> str:
    """Returns a section as Markdown: where it is defined, and a table with a row for each option."""
    cls = type(section.default)
    summary = (inspect.getdoc(cls) or "") if not _is_generated(cls) else ""
    lines = [f"## {section.title}", "", summary.partition("\n\nRaises:")[0], "", section.note, ""]
    lines += ["| Option | Type | Default | Meaning, and where it is defined |", "|---|---|---|---|"]
    for name, kind, default, field, place in rows(section):
        meaning = f"{cell(field.comment)} <small>{place}</small>"
        lines.append(f"| `{section.prefix}{name}` | {code(kind)} | {default} | {meaning} |")
    return "\n".join([*lines, ""])


def rows(section: Section) -> list[tuple[str, str, str, Field, str]]:
    """Returns (name, type, default, field, place) of each option that no other section lists."""
    cls, found_rows = type(section.default), []
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        owner = next(base for base in cls.__mro__ if field.name in vars(base).get("__annotations__", {}))
        value = getattr(section.default, field.name)
        is_listed = owner in section.base.__mro__ and value == getattr(section.base(), field.name, None)
        is_listed = is_listed or (field.name == "task" and cls is not TaskConfig)
        if is_listed or dataclasses.is_dataclass(value) or field.name == "options":
            continue
        default = code(repr(value))
        if section.other is not None and getattr(section.other, field.name) != value:
            default += f"; fine-tuning {code(repr(getattr(section.other, field.name)))}"
        text = commented_fields(owner)[field.name]
        comment = with_choices(section, field.name, with_values(owner, text.comment))
        text = text._replace(comment=comment)
        path = Path(typing.cast(str, inspect.getsourcefile(owner)))
        found_rows.append((field.name, kind_of(hints[field.name]), default, text, f"{relative(path)}:{text.line}"))
    return found_rows


def with_choices(section: Section, name: str, comment: str) -> str:
    """Returns a comment with the values that the option may have, where a table in the code says so."""
    if not isinstance(section.default, EncoderConfig):
        return comment
    parts = [comment] if comment else []
    if name in model_config.CHOICES:
        parts.append("One of " + ", ".join(f"`{choice!r}`" for choice in model_config.CHOICES[name]))
    if name in model_config.RANGES:
        low, high = model_config.RANGES[name]
        parts.append(f"From {low:,} to {high:,}")
    return ". ".join(part.rstrip(".") for part in parts)


def with_values(owner: type, comment: str) -> str:
    """Returns a comment with the values of the tables that it names: those of `one of SCHEDULES`."""
    values = vars(sys.modules[owner.__module__])
    for name in _TABLE.findall(comment):
        if isinstance(values.get(name), dict | tuple):
            comment = comment.replace(f"one of {name}", "one of " + ", ".join(f"`{value!r}`" for value in values[name]))
    return comment


def kind_of(hint: Any) -> str:
    """Returns a type as it is written: `tuple[str, ...]`."""
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else _MODULE.sub("", str(hint))


def _is_generated(cls: type) -> bool:
    """Checks whether the docstring of a dataclass is the signature that Python makes."""
    return (cls.__doc__ or "").startswith(f"{cls.__name__}(")
