"""Converts MediaWiki's markup to the text that people read: paragraphs, items of lists and headings, each on a line.

Left out: templates, tables, references, pictures with their captions, categories, formulas, and headings without text below.
"""

import logging
import re
from collections.abc import Sequence
from typing import Any

logger = logging.getLogger(__name__)
# Tags whose contents are not prose.
# fmt: off
_LEFT_OUT = frozenset([
    "ref", "references", "table", "gallery", "timeline", "math", "chem", "ce", "score", "syntaxhighlight", "source", "graph",
    "mapframe", "maplink", "imagemap", "hiero", "inputbox", "categorytree", "templatestyles", "templatedata", "style", "script",
    "indicator", "section",
])
# fmt: on
_BLOCKS = frozenset(["p", "div", "blockquote", "ul", "ol", "li", "dl", "dt", "dd", "center", "pre", "poem", "br", "hr"])
# Control characters, which XML cannot contain, mark what becomes a line of its own.
_ITEM, _HEADING = "\x01", "\x02"
_CONTROL = re.compile(r"[\0-\x08\x0b-\x1f\x7f]")
_MAGIC_WORD = re.compile(r"__[A-Z]+__")
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[a-z]+)*|simple")  # of a link to the article in another Wikipedia
# Markup that begins and does not end takes mwparserfromhell quadratic time: seconds for this many, days for a page full of it.
_MOST_UNCLOSED = 2000
_PAIRS = (("{{", "}}"), ("[[", "]]"), ("{|", "|}"))
_TAG, _TAG_END = re.compile(r"<(?!(?:br|hr|li|d[dt]|t[dhr]|wbr)\b)[a-z]", re.IGNORECASE), re.compile(r"</|/>")
_TABLE_LINE = re.compile(r"\{\||\|")  # of a table that does not end
# What templates leave behind, such as "(; )" and " ,".
_CLEANED = [
    (re.compile(r"\(\s*(?:[,;:]\s*)*"), "("),
    (re.compile(r"\s*(?:[,;]\s*){0,9}\)"), ")"),
    (re.compile(r"\s*\(\s*\)"), ""),
    (re.compile(r"\s+([,.])(?=\s|$)"), r"\1"),
]


class Converter:
    """Converts the pages of one wiki."""

    def __init__(self, namespaces: Sequence[str] = ()):
        """Takes the names of the namespaces of files and categories in the language of the wiki."""
        names = ("File", "Image", "Category", *namespaces)
        self._left_out = frozenset(name.strip().lower() for name in names)

    def text(self, wikitext: str) -> str:
        """Returns the text of a page; "" if it cannot be parsed, which is logged."""
        import mwparserfromhell

        wikitext = _CONTROL.sub("", wikitext)
        if (unclosed := _unclosed(wikitext)) > _MOST_UNCLOSED:
            logger.warning(
                "a page is left out, because its markup is broken (%d not closed): %.60r", unclosed, wikitext
            )
            return ""
        try:
            nodes = mwparserfromhell.parse(wikitext).nodes
        except mwparserfromhell.parser.ParserError as error:
            logger.warning("a page is left out, because mwparserfromhell cannot parse it (%s): %.60r", error, wikitext)
            return ""
        return "\n".join(_without_empty_sections(_lines("".join(self._pieces(nodes)))))

    def _pieces(self, nodes: Any) -> list[str]:
        """Returns the text of nodes, with marks; a method for each class of mwparserfromhell.nodes that is shown."""
        pieces = []
        for node in nodes:
            convert = getattr(self, f"_{type(node).__name__.lower()}", None)
            if convert is not None:  # not a template, an argument of one, or a comment
                pieces.append(convert(node))
        return pieces

    def _inner(self, code: Any) -> str:
        return "".join(self._pieces(code.nodes)) if code is not None else ""

    def _text(self, node: Any) -> str:
        return node.value

    def _heading(self, node: Any) -> str:
        return f"\n{_HEADING * node.level}{self._inner(node.title)}\n"

    def _wikilink(self, node: Any) -> str:
        title = str(node.title).strip()
        namespace, _, rest = title.partition(":")
        if rest and namespace.strip().lower() in self._left_out:
            return ""
        if node.text is not None:
            return self._inner(node.text)
        return "" if rest and _LANGUAGE.fullmatch(namespace) else self._inner(node.title).lstrip(":")

    def _externallink(self, node: Any) -> str:
        return self._inner(node.title) if node.brackets else self._inner(node.url)

    def _htmlentity(self, node: Any) -> str:
        try:
            return _CONTROL.sub("", node.normalize())
        except (ValueError, OverflowError):  # a number that is no character
            return ""

    def _tag(self, node: Any) -> str:
        name = str(node.tag).strip().lower()
        if name in _LEFT_OUT:
            return ""
        contents = self._inner(node.contents)
        if node.wiki_markup and name in ("li", "dt", "dd"):
            return f"\n{_ITEM}"
        return f"\n\n{contents}\n\n" if name in _BLOCKS else contents


def _unclosed(wikitext: str) -> int:
    """Returns about how many templates, links, tables and tags begin and do not end."""
    tags = sum(1 for _ in _TAG.finditer(wikitext)) - sum(1 for _ in _TAG_END.finditer(wikitext))
    return max(0, tags) + sum(max(0, wikitext.count(start) - wikitext.count(end)) for start, end in _PAIRS)


def _lines(text: str) -> list[tuple[int, str]]:
    """Returns (level, line) of what is shown; the level is that of a heading, or 0."""
    lines, is_open = list[tuple[int, str]](), False  # the last line goes on with the next one of the wikitext
    for raw in _MAGIC_WORD.sub("", text).split("\n"):
        level, is_item = raw.count(_HEADING), raw.startswith(_ITEM)
        line = " ".join(raw.replace(_HEADING, "").replace(_ITEM, "").split())
        if _TABLE_LINE.match(line):
            continue
        for pattern, replacement in _CLEANED:
            line = pattern.sub(replacement, line)
        line = line.strip()
        if line and is_open and not level and not is_item:
            lines[-1] = (0, f"{lines[-1][1]} {line}")
        elif line:
            lines.append((level, line))
        is_open = bool(line) and not level and not is_item
    return lines


def _without_empty_sections(lines: list[tuple[int, str]]) -> list[str]:
    """Returns the lines without the headings that nothing follows, such as those of references."""
    kept, following = list[str](), 1  # the level of the next line that is kept; 1 at the end of the page
    for level, line in reversed(lines):
        if not level or not following or following > level:
            kept.append(line)
            following = level
    return kept[::-1]
