"""Markdown from untrusted text."""

import re

from bert_jax.errors import LONGEST_NAME, plain

# Characters with a meaning, which a backslash removes: emphasis, code, links, HTML, entities, cells, formulas, addresses.
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#&|~!$^@]|:(?=//)|(?<=www)\.)", re.IGNORECASE)


def escaped(text: object) -> str:
    """Returns Markdown that shows a text literally, on one line and shortened, in a heading, list item or table cell."""
    return _SPECIAL.sub(r"\\\1", plain(str(text), LONGEST_NAME))


def table(columns: list[str], rows: list[list[str]]) -> list[str]:
    """Returns the lines of a table. Every cell is escaped."""
    lines = ["| " + " | ".join(map(escaped, row)) + " |" for row in [columns, *rows]]
    return [lines[0], "|---" * len(columns) + "|", *lines[1:]]
