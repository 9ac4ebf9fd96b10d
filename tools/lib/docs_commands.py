"""The page of all commands: usage from the docstrings of their files, flags from the code that defines them."""

import ast
import importlib
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bert_jax.__main__ import COMMANDS
from tools.lib.docs_code import ROOT, Names, assigned, cell, code, imported_constants, python_files, relative, texts_of

INTRODUCTION = """# Commands

`python -m bert_jax.NAME` and `bert-jax NAME` are the same command. Flags are written `--name=value`, in any order; a switch is
written `--name` or `--noname`. `--help` shows them, too. [Running](../running.md#stopping-and-resuming) has the exit codes,
[Errors](../errors.md) the messages.
"""
SHARED = ROOT / "bert_jax" / "cli" / "command_flags.py"  # flags of all files that import it
# Positions of the default and of the help among the arguments of absl's functions.
_ARGUMENTS = {"DEFINE_enum": (1, 3)}


def page() -> str:
    """Returns the page as Markdown: the commands of the package, then the tools."""
    parts = [INTRODUCTION]
    parts += [command_part(ROOT / "bert_jax" / f"{name}.py", f"bert_jax.{name}") for name in COMMANDS]
    tools = [path for path in python_files("tools") if path.parent.name == "tools"]
    parts += [command_part(path, relative(path)) for path in tools if any(flags_of(path))]
    return "\n".join(parts)


def command_part(path: Path, name: str) -> str:
    """Returns a command as Markdown: its docstring and a table of its flags."""
    docstring = inspect.cleandoc(ast.get_docstring(ast.parse(path.read_text())) or "")
    # Usage is indented in most files, as code is in Markdown.
    lines = [f"    {line}" if line.startswith("python -m ") else line for line in docstring.splitlines()]
    rows = [f"| `--{flag}` | {code(default)} | {cell(meaning)} |" for flag, default, meaning in flags_of(path)]
    table = ["| Flag | Default | Meaning |", "|---|---|---|", *rows]
    return "\n".join([f"## {name}", "", *lines, "", *table, ""])


def flags_of(path: Path) -> Iterator[tuple[str, str, str]]:
    """Yields (name, default, meaning) of each flag of a command, those of the imported shared file first."""
    text = path.read_text()
    tree = ast.parse(text)
    if path != SHARED and "command_flags" in text:
        yield from flags_of(SHARED)
    for names, call in _calls(tree, {**imported_constants(tree), **assigned(tree)}):
        function = call.func.attr if isinstance(call.func, ast.Attribute) else ""
        default_at, help_at = _ARGUMENTS.get(function, (1, 2))
        default, meaning = call.args[default_at], call.args[help_at] if len(call.args) > help_at else None
        is_required = any(keyword.arg == "required" for keyword in call.keywords)
        meanings = texts_of(meaning, names) if meaning else [""]
        if function == "DEFINE_enum":
            choices = ", ".join(_value(call.args[2], names, tree))
            meanings = [". ".join([meanings[0].rstrip("."), f"One of {choices}."])]
        shown = "required" if is_required else _default(default, names, tree)
        yield texts_of(call.args[0], names)[0], shown, meanings[0]


def _calls(tree: ast.AST, names: Names) -> Iterator[tuple[Names, ast.Call]]:
    for node in ast.iter_child_nodes(tree):
        inner = {**names, **assigned(node)} if isinstance(node, ast.FunctionDef) else names
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr.startswith("DEFINE_"):
            yield inner, node
        yield from _calls(node, inner)


def _default(node: ast.expr, names: Names, tree: ast.Module) -> str:
    """Returns the value of a default; '' for none, and for one that depends on the machine or on other flags."""
    if isinstance(node, ast.Call):
        return ""
    value = _value(node, names, tree)
    return "" if value in (None, "", [], sys.executable) else str(value)


def _value(node: ast.expr, names: Names, tree: ast.Module) -> Any:
    """Evaluates an expression of a file, with what the file assigns to its names or imports from elsewhere."""
    imports = {
        alias.asname or alias.name: (part.module or "", alias.name)
        for part in ast.walk(tree)
        if isinstance(part, ast.ImportFrom)
        for alias in part.names
    }
    variables = dict[str, Any]()
    for name in {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}:
        if name in imports:
            module, original = imports[name]
            variables[name] = getattr(importlib.import_module(module), original)
        elif name in names:
            variables[name] = _value(names[name][0], names, tree)
    return eval(compile(ast.Expression(node), "default", "eval"), variables)
