"""Lists every message of a UserError, from the code that raises it."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tools.lib.docs_code import Names, assigned, cell, code, imported_constants, python_files, relative, texts_of

FOLDERS = ("bert_jax", "tools", "configs")
RAISING = ("UserError", "InputError", "fail")  # a call of any ends a command with a message


class Message(NamedTuple):
    """A message, with `<...>` for its variable parts."""

    problem: str
    remedy: str  # what stands after the last semicolon; '' if the message has none
    path: Path
    line: int


def page_part() -> str:
    """Returns the messages as Markdown, a section for each folder and a table for each file."""
    parts, folder = list[str](), ""
    for path in python_files(*FOLDERS):
        messages = messages_of(path)
        if not messages:
            continue
        if relative(path.parent) != folder:
            folder = relative(path.parent)
            parts.append(f"## {folder}/\n")
        summary = (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]
        parts.append(f"### {relative(path)}\n\n{summary}\n\n| Message | Remedy | Line |\n|---|---|---|")
        parts += [f"| {code(row.problem)} | {cell(row.remedy)} | {row.line} |" for row in messages]
        parts.append("")
    return "\n".join(parts)


def messages_of(path: Path) -> list[Message]:
    """Returns the messages of a file in the order of their lines."""
    tree = ast.parse(path.read_text())
    messages = [
        _message(text, path, node.lineno)
        for names, node in _raising_calls(tree, {**imported_constants(tree), **assigned(tree)})
        for text in texts_of(node.args[0], names)
    ]
    return sorted(dict.fromkeys(messages), key=lambda message: message.line)


def _raising_calls(tree: ast.AST, names: Names, owner: str = "") -> Iterator[tuple[Names, ast.Call]]:
    """Yields the calls that make a message, with what is assigned to names around them."""
    for node in ast.iter_child_nodes(tree):
        inner = names
        if isinstance(node, ast.FunctionDef):
            inner, owner = {**names, **assigned(node)}, node.name
        if isinstance(node, ast.Call) and node.args:
            name = node.func.id if isinstance(node.func, ast.Name) else ""
            # A ValueError of a dataclass of options becomes a UserError (bert_jax/config.py, `from_dict`).
            if name in RAISING or (name == "ValueError" and owner == "__post_init__"):
                yield inner, node
        yield from _raising_calls(node, inner, owner)


def _message(text: str, path: Path, line: int) -> Message:
    problem, _, remedy = text.rpartition("; ") if "; " in text else (text, "", "")
    return Message(problem, remedy, path, line)
