"""Parameters chosen by regular expressions that are searched in their paths.

Arrays in which layers are stacked have one path for each layer: 'encoder/layers/3/mlp/up/kernel'.
"""

import re
from collections.abc import Callable, Mapping
from typing import Generic, NamedTuple, TypeVar

import jax

from bert_jax.errors import UserError
from bert_jax.parallel.mesh import Axes

Arrays = Mapping[str, jax.Array]  # by path; the first axis of stacked layers is "layers"
T = TypeVar("T")


class Entry(NamedTuple, Generic[T]):
    """An entry of a table 'VALUE:REGEX;VALUE:REGEX'."""

    text: str
    value: T
    regex: re.Pattern[str]


class Table(NamedTuple, Generic[T]):
    """An option 'VALUE:REGEX;VALUE:REGEX': the first entry whose regex is found in a path counts."""

    option: str
    entries: tuple[Entry[T], ...]

    @classmethod
    def parse(cls, option: str, text: str, value: Callable[[str], T], form: str) -> "Table[T]":
        """Returns the table that an option's text describes; '' has no entries.

        Args:
          option: its name.
          text: of the option.
          value: reads a VALUE, or raises ValueError.
          form: of an entry, with an example, for messages.

        Raises:
          UserError: an invalid value or regex.
        """
        entries = list[Entry[T]]()
        for entry in text.split(";") if text else []:
            before, _, regex = entry.partition(":")
            try:
                if not regex:
                    raise ValueError("the regex is missing")
                entries.append(Entry(entry, value(before), re.compile(regex)))
            except (ValueError, re.error) as error:
                raise UserError(f"optimizer.{option}: {entry!r} is not {form} ({error}); fix it") from None
        return cls(option, tuple(entries))

    def value_of(self, path: str, default: T) -> T:
        """Returns the value of the first entry that fits a path."""
        return next((entry.value for entry in self.entries if entry.regex.search(path)), default)

    def check(self, params: Arrays, axes: Mapping[str, Axes]) -> None:
        """Raises UserError if a regex fits none of the trained parameters."""
        paths = [path for name, array in params.items() for path in layer_paths(name, array, axes)]
        for entry in self.entries:
            if not any(entry.regex.search(path) for path in paths):
                example = f"paths look like {min(paths)}"
                raise UserError(f"optimizer.{self.option}: {entry.text!r} fits no parameter; {example}")


def is_stacked(name: str, axes: Mapping[str, Axes]) -> bool:
    """Checks whether an array holds the parameters of all layers."""
    return "layers" in axes[name]


def layer_paths(name: str, array: jax.Array, axes: Mapping[str, Axes]) -> list[str]:
    """Returns the path of an array in each layer, or its own if it is not stacked."""
    if not is_stacked(name, axes):
        return [name]
    return [name.replace("layers/", f"layers/{number}/", 1) for number in range(len(array))]


def compiled(option: str, regex: str) -> re.Pattern[str]:
    """Compiles the regex of an option of the optimizer. Raises UserError if it is invalid."""
    try:
        return re.compile(regex)
    except re.error as error:
        raise UserError(f"optimizer.{option}={regex!r} is not a valid regular expression: {error}; fix it") from None
