"""Markdown made of text that comes from strangers."""

import re

from bert_jax.errors import LONGEST_NAME, plain

# After a backslash each stands for itself: what begins emphasis, code, links, HTML, entities, cells, formulas, and addresses.
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#&|~!$^@]|:(?=//)|(?<=www)\.)", re.IGNORECASE)


def escaped(text: object) -> str:
    """Returns Markdown that shows a text as it is, on one line and cut if it is long: in a heading, list item or table cell."""
    return _SPECIAL.sub(r"\\\1", plain(str(text), LONGEST_NAME))


def table(columns: list[str], rows: list[list[str]]) -> list[str]:
    """Returns the lines of a table. Every cell is escaped."""
    cells = [columns, *rows]
    lines = ["| " + " | ".join(map(escaped, row)) + " |" for row in cells]
    return [lines[0], "|---" * len(columns) + "|", *lines[1:]]
