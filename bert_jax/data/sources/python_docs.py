"""Extracts the English documentation of the Python installation as text: docstrings and help topics."""

import ast
import inspect
import re
import sysconfig
import warnings
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

from bert_jax.files import is_regular

# Folders and packages with hardly any prose: tests, generated tables, vendored packages.
_SKIPPED = {"__pycache__", "_vendor", "encodings", "ensurepip", "idlelib", "lib2to3", "site-packages"}
_SKIPPED |= {"test", "testing", "tests", "turtledemo"}


class Docstring(NamedTuple):
    """Prose of one docstring without markup: `text` has one paragraph per line; `name` is '' for the module's docstring."""

    module: str  # dotted, e.g. scipy.stats._qmc
    name: str  # qualified name within the module, e.g. Halton.random
    text: str
    code: tuple[tuple[int, int], ...] = ()  # character offsets (start, end) in `text` of what was marked as code


def python_docstrings() -> Iterator[Docstring]:
    """Yields the docstrings of the standard library and of the installed packages, module by module.

    The files are parsed, not imported. Code, tables, headings and repeated texts are left out. The order is that of
    the module names, with the standard library first.
    """
    seen = set[str]()
    for root in dict.fromkeys(Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")):
        for path in _python_files(root):
            module = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
            for name, docstring in _docstrings(path):
                text, code = _without_brackets("\n".join(_prose(docstring)))
                if text and text not in seen:
                    seen.add(text)
                    yield Docstring(module, name, text, code)


def python_topics() -> Iterator[Docstring]:
    """Yields the topics of Python's `help()`: chapters of the language reference."""
    from pydoc_data.topics import topics

    for topic in sorted(topics):
        text, code = _without_brackets("\n".join(_prose(topics[topic])))
        if text:
            yield Docstring(f"pydoc_data.topics.{topic}", "", text, code)


def _python_files(folder: Path) -> Iterator[Path]:
    """Yields the .py files below a folder, sorted, without skipped folders and links to folders, which may loop."""
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            if path.name not in _SKIPPED and path.name.isidentifier() and not path.is_symlink():
                yield from _python_files(path)
        elif path.suffix == ".py" and path.stem.isidentifier() and is_regular(path):
            yield path


def _docstrings(path: Path) -> Iterator[tuple[str, str]]:
    """Yields (qualified name, docstring) of a module, its classes and functions, in the order of the file."""
    source = path.read_bytes()
    if b'"""' not in source and b"'''" not in source:
        return
    try:
        with warnings.catch_warnings(action="ignore"):  # invalid escapes in other people's code
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):  # templates, other Python versions
        return
    yield from _node_docstrings(tree, "")


def _node_docstrings(node: ast.Module | ast.ClassDef | ast.FunctionDef, prefix: str) -> Iterator[tuple[str, str]]:
    docstring = ast.get_docstring(node, clean=False)
    if docstring:
        yield prefix, docstring.encode("utf-8", "replace").decode()  # replaces unpaired surrogates
    for child in node.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _node_docstrings(child, f"{prefix}.{child.name}" if prefix else child.name)  # type: ignore


_RULER = re.compile(r"[-=~^*+#_.'\"`|: ]+")  # underlines of headings, borders of tables
# `- x`, `1. x`, `:param x: y`, `x (int): y`
_BULLET = re.compile(r"(?:[-*+•]|\(?\d+[.)]|:\w[^:]*:|[\w*`]{1,30}(?: \([^)]*\))?:)\s")
_PARAMETER = re.compile(r"[\w*`., ]+(?: ?: .*)?")  # `x, y : array_like`: its description follows, indented
_TYPE = re.compile(r"[\w*., ]{1,40} : ")  # the same, alone in a paragraph
_MARKUP = re.compile(
    r":(?P<role>[\w:.+-]+):`[~!]?(?P<named>[^`<]*)(?:<[^`]*>)?`|`{1,2}(?P<quoted>[^`<]*)(?P<target><[^`]*>)?`{1,2}_{0,2}"
)
_LINKS = frozenset(["doc", "ref", "term", "math", "pep", "rfc", "cite", "numref", "eq", "download"])  # roles
_OPEN, _CLOSE = "\ue000", "\ue001"  # private-use characters that enclose code until all other markup is removed
_CODE = (">>>", "...", ".. ", "|", "$ ", "%", "@", "#")
_PROSE_WORDS = 4  # fewer words are a heading, a type or a label
_PROSE_SHARE = 0.75  # of the words of English prose, this share at least consists of letters and end punctuation only
_WORD = re.compile(r"[(\"'“]*[A-Za-z]+(?:['’-][A-Za-z]+)*[.,;:!?)\"'”]*")  # noqa: RUF001


def _prose(docstring: str) -> list[str]:
    """Returns the paragraphs of a docstring that read as English, each as one line with code in `_OPEN` and `_CLOSE`."""
    paragraphs = map(_unmarked, _paragraphs(docstring.replace(_OPEN, "").replace(_CLOSE, "")))
    return [text for text in paragraphs if _is_prose(_without_brackets(text)[0])]


def _paragraphs(docstring: str) -> Iterator[str]:
    """Joins lines into paragraphs, which end at blank lines, code, rulers, bullets and changes of indentation."""
    lines = list[str]()
    indent = 0  # of the paragraph's first line
    for line in [*inspect.cleandoc(docstring).splitlines(), ""]:
        text = line.strip()
        margin = len(line) - len(line.lstrip())
        ruler = _RULER.fullmatch(text) is not None
        code = text.startswith(_CODE)
        description = margin > indent and len(lines) == 1 and _PARAMETER.fullmatch(lines[0]) is not None
        if not text or ruler or code or margin < indent or description or _BULLET.match(text):
            if lines and not ruler:  # the text above a ruler is a heading
                yield " ".join(lines)
            lines = []
        if text and not ruler and not code:
            if not lines:
                indent = margin
            lines.append(text)


def _unmarked(paragraph: str) -> str:
    """Removes a bullet and the inline markup of reStructuredText and Markdown; encloses code in `_OPEN` and `_CLOSE`."""
    text = _MARKUP.sub(_bracketed, paragraph)
    text = re.sub(r"^(?:[-*+•]|\(?\d+[.)])\s+", "", text).replace("**", "")
    return " ".join(text.split()).replace("::", ":")


def _bracketed(match: re.Match[str]) -> str:
    """Returns the text of inline markup, enclosed in `_OPEN` and `_CLOSE` unless it is a link or mathematics."""
    inner = (match["named"] or match["quoted"] or "").lstrip("~!")
    is_link = match["target"] or match[0].endswith("_") or (match["role"] or "").rpartition(":")[2] in _LINKS
    is_quotation = inner != inner.strip() or "''" in inner  # ``as in TeX''
    return inner.strip() if is_link or is_quotation or not inner else f"{_OPEN}{inner}{_CLOSE}"


def _without_brackets(text: str) -> tuple[str, tuple[tuple[int, int], ...]]:
    """Removes `_OPEN` and `_CLOSE`; returns the text and the spans that they enclosed, (start, end) in characters."""
    pieces = re.split(f"[{_OPEN}{_CLOSE}]", text)  # every second one is code
    ends = list(accumulate(map(len, pieces)))
    return "".join(pieces), tuple(zip(ends[:-1:2], ends[1::2], strict=True))


def _is_prose(paragraph: str) -> bool:
    words = paragraph.split()
    if len(words) < _PROSE_WORDS or _TYPE.match(paragraph):
        return False
    return sum(_WORD.fullmatch(word) is not None for word in words) >= _PROSE_SHARE * len(words)
