"""Reads texts out of the code for the reference: strings with their placeholders, comments next to fields, docstrings."""

import ast
import inspect
import io
import re
import textwrap
import tokenize
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
_HEADING = re.compile(r"[A-Z][a-z]+")  # a comment such as `# Layers` above a group of fields
_MOST_ALTERNATIVES = 12  # of a message, by the values of its variables
_SECTION = re.compile(r"(Args|Returns|Yields|Raises|Attributes):")
_ITEM = re.compile(r"(\*{0,2}[\w/, ]+): (.*)")

Names = Mapping[str, list[ast.expr]]  # what is assigned to each name


def python_files(*folders: str) -> list[Path]:
    """Returns the Python files of folders of the repository, sorted."""
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def assigned(tree: ast.AST) -> dict[str, list[ast.expr]]:
    """Returns the expressions assigned to each name in a module or function; those of its functions only there."""
    names: dict[str, list[ast.expr]] = {}
    for node in _own_nodes(tree):
        if not isinstance(node, ast.Assign | ast.AnnAssign | ast.NamedExpr | ast.AugAssign):
            continue
        for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
            value = node.value
            pairs: list[tuple[ast.expr, ast.expr | None]] = [(target, value)]
            if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
                pairs = list(zip(target.elts, value.elts, strict=False))
            for name, part in pairs:
                if isinstance(name, ast.Name) and part is not None:
                    names.setdefault(name.id, []).append(part)
    return names


def imported_constants(tree: ast.Module) -> dict[str, list[ast.expr]]:
    """Returns the expressions of the constants that a module imports from other files of the repository."""
    names: dict[str, list[ast.expr]] = {}
    for node in tree.body:
        path = ROOT / f"{str(getattr(node, 'module', '')).replace('.', '/')}.py"
        if isinstance(node, ast.ImportFrom) and path.is_file():
            constants = assigned(ast.parse(path.read_text()))
            names |= {
                name.asname or name.name: constants.get(name.name, []) for name in node.names if name.name.isupper()
            }
    return names


def _own_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        yield node
        if not isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Lambda):
            yield from _own_nodes(node)


def texts_of(node: ast.expr, names: Names, depth: int = 0) -> list[str]:
    """Returns the texts that an expression may have, with `<...>` in the place of what is only known when it runs."""
    if isinstance(node, ast.Constant):
        return [str(node.value)]
    if isinstance(node, ast.JoinedStr):
        return _joined([_value_texts(part, names, depth) for part in node.values])
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _joined([texts_of(node.left, names, depth), texts_of(node.right, names, depth)])
    if isinstance(node, ast.IfExp):
        return [*texts_of(node.body, names, depth), *texts_of(node.orelse, names, depth)]
    if isinstance(node, ast.BoolOp):
        return [text for value in node.values for text in texts_of(value, names, depth)]
    if isinstance(node, ast.Name) and depth < 5:
        values = [value for value in names.get(node.id, ()) if _is_text(value)]
        if values:
            return list(dict.fromkeys(text for value in values for text in texts_of(value, names, depth + 1)))
    return [f"<{_short(node)}>"]


def _is_text(node: ast.expr) -> bool:
    if isinstance(node, ast.IfExp):
        return _is_text(node.body) or _is_text(node.orelse)
    if isinstance(node, ast.BinOp):
        return _is_text(node.left) or _is_text(node.right)
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def _value_texts(part: ast.expr, names: Names, depth: int) -> list[str]:
    return texts_of(part.value if isinstance(part, ast.FormattedValue) else part, names, depth)


def _joined(parts: list[list[str]]) -> list[str]:
    texts = [""]
    for part in parts:
        if len(texts) * len(part) > _MOST_ALTERNATIVES:
            part = ["<...>"] if len(part) > 1 else part
        texts = [text + end for text in texts for end in part]
    return texts


def _short(node: ast.expr) -> str:
    """Returns a name for the value of an expression: `folder` for `str(self.folder)`."""
    if isinstance(node, ast.Name):
        return node.id.strip("_").lower()
    if isinstance(node, ast.Attribute):
        return node.attr.strip("_").lower()
    if isinstance(node, ast.Call) and node.args:
        return _short(node.args[0])
    if isinstance(node, ast.Call):
        return _short(node.func)
    if isinstance(node, ast.Subscript | ast.Starred):
        return _short(node.value)
    if isinstance(node, ast.BinOp):
        return _short(node.left)
    if isinstance(node, ast.GeneratorExp):
        return _short(node.generators[0].iter)
    return "..."


class Field(NamedTuple):
    """A field of a dataclass as it stands in the code."""

    comment: str
    line: int


def commented_fields(cls: type) -> dict[str, Field]:
    """Returns the fields that a dataclass itself defines, with the comments above and after them."""
    lines, first = inspect.getsourcelines(cls)
    source = textwrap.dedent("".join(lines))
    comments = dict[int, tuple[str, bool]]()  # by line: the text, and whether it is all of the line
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            is_whole_line = not token.line[: token.start[1]].strip()
            comments[token.start[0]] = token.string.lstrip("# "), is_whole_line
    (definition,) = ast.parse(source).body
    fields = {}
    for node in definition.body if isinstance(definition, ast.ClassDef) else ():
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            above, line = list[str](), node.lineno - 1
            while comments.get(line, ("", False))[1]:
                above.insert(0, comments[line][0])
                line -= 1
            above = above[1:] if above and _HEADING.fullmatch(above[0]) else above
            after = comments.get(node.end_lineno or node.lineno, ("", True))
            parts = [" ".join(above), "" if after[1] else after[0]]
            fields[node.target.id] = Field(" ".join(filter(None, parts)), first + node.lineno - 1)
    return fields


def in_markdown(docstring: str) -> str:
    """Returns a docstring in Google's style as Markdown, its sections as lists."""
    lines, section = list[str](), False
    for line in inspect.cleandoc(docstring).splitlines():
        if _SECTION.fullmatch(line):
            lines += ["", f"**{line}**", ""]
            section = True
        elif section and line.startswith("  ") and (item := _ITEM.fullmatch(line.strip())) and line[2] != " ":
            lines.append(f"- `{item[1]}`: {item[2]}")
        elif section and line.startswith("  ") and line[2:3] != " ":
            lines.append(line[2:])
        else:
            section = section and line.startswith(" ")
            lines.append(line)
    return "\n".join(lines)


def cell(text: str) -> str:
    """Returns a text for a cell of a table: on one line, without what would end the cell."""
    return " ".join(text.split()).replace("|", "\\|")


def code(text: Any) -> str:
    """Returns a text as code in a cell of a table."""
    return f"`{cell(str(text))}`" if str(text) else ""
