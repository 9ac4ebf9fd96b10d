"""Lists every message of a UserError, from the code that raises it."""

import ast
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tools.lib.docs_code import Names, assigned, cell, code, imported_constants, python_files, relative, texts_of

FOLDERS = ("bert_jax", "tools", "configs")
RAISING = ("UserError", "InputError", "fail")  # a call of any ends a command with a message
_VARIABLE = re.compile(r"<[^>]*>")
# An apostrophe within or after a word is not a quote.
_QUOTED = re.compile(r"""(?<!\w)'[^']*'(?!\w)|"[^"]*"|`[^`]*`""")


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
    walk = _Walk()
    walk.body(tree.body, {**imported_constants(tree), **assigned(tree)}, "")
    messages = [
        _message(text, path, node.lineno) for names, node in walk.calls for text in texts_of(node.args[0], names)
    ]
    return sorted(dict.fromkeys(filter(_says_something, messages)), key=lambda message: message.line)


def _says_something(message: Message) -> bool:
    """Checks whether a message has words of its own. An empty text at its end would mean that there is no problem."""
    words = re.search(r"\w", _VARIABLE.sub("", message.problem))
    return bool(message.remedy or words) and not message.problem.rstrip().endswith(":")


def _message(text: str, path: Path, line: int) -> Message:
    """Splits a message at its last semicolon that is not within quotes."""
    start = _QUOTED.sub(lambda match: "_" * len(match[0]), text).rfind("; ")
    return Message(text[:start], text[start + 2 :], path, line) if start >= 0 else Message(text, "", path, line)


_Assigning = ast.Assign | ast.AnnAssign | ast.AugAssign | ast.NamedExpr
_Assigned = dict[str, list[ast.expr]]  # by name, what it may have been given where the walk is


class _Walk:
    """Goes through statements in their order, and collects the calls that make a message."""

    def __init__(self) -> None:
        self.calls = list[tuple[Names, ast.Call]]()

    def body(self, statements: Sequence[ast.stmt], names: _Assigned, owner: str) -> _Assigned | None:
        """Walks through statements; returns what is assigned after them, None if they raise or return."""
        for statement in statements:
            after = self._statement(statement, names, owner)
            if after is None:
                return None
            names = after
        return names

    def _statement(self, node: ast.stmt, names: _Assigned, owner: str) -> _Assigned | None:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            self.body(node.body, names, node.name)
            return names
        blocks = [part for part in ast.iter_child_nodes(node) if isinstance(part, ast.stmt | ast.ExceptHandler)]
        for part in ast.iter_child_nodes(node):
            if part not in blocks:  # the statement itself, or what stands before its colon
                names = self._expression(part, names, owner)
        if isinstance(node, _Assigning):
            return {**names, **_assignment(node, names)}
        if isinstance(node, ast.Raise | ast.Return | ast.Continue | ast.Break):
            return None
        if isinstance(node, ast.If):
            return _either(self.body(node.body, names, owner), self.body(node.orelse, names, owner))
        if isinstance(node, ast.For | ast.While):
            return self.body(node.orelse, _either(names, self.body(node.body, names, owner)) or names, owner)
        if isinstance(node, ast.With):
            return self.body(node.body, names, owner)
        if isinstance(node, ast.Try):
            after = self.body(node.body, names, owner)
            on_error = _either(names, after) or names
            after = after and self.body(node.orelse, after, owner)
            for handler in node.handlers:
                after = _either(after, self.body(handler.body, on_error, owner))
            last = self.body(node.finalbody, after or on_error, owner)
            return after and last
        return names

    def _expression(self, part: ast.AST, names: _Assigned, owner: str) -> _Assigned:
        for node in ast.walk(part):
            if isinstance(node, ast.NamedExpr):
                names = {**names, **_assignment(node, names)}
        for node in ast.walk(part):
            name = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
            # A ValueError of a dataclass of options becomes a UserError (bert_jax/config.py, `from_dict`).
            is_message = name in RAISING or (name == "ValueError" and owner == "__post_init__")
            if isinstance(node, ast.Call) and node.args and is_message:
                self.calls.append((names, node))
        return names


def _assignment(node: _Assigning, names: _Assigned) -> _Assigned:
    """Returns the names that a statement or expression assigns to, with their new expressions."""
    result: _Assigned = {}
    for name, values in assigned(ast.Module([node], [])).items():  # type: ignore[list-item]
        before = names.get(name, [])
        if isinstance(node, ast.AugAssign):
            result[name] = [ast.BinOp(value, node.op, node.value) for value in before]
        elif isinstance(node.value, ast.Call) and name in {getattr(value, "id", "") for value in node.value.args}:
            result[name] = before  # text = function(text): taken as the same text
        else:
            result[name] = values
    return result


def _either(first: _Assigned | None, second: _Assigned | None) -> _Assigned | None:
    """Returns what is assigned after one or the other of two branches; None for a branch that does not go on."""
    if first is None or second is None:
        return second if first is None else first
    return {name: list(dict.fromkeys([*first.get(name, ()), *second.get(name, ())])) for name in {**first, **second}}
