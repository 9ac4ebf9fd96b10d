"""The page of the Python API: signatures and docstrings of what programs import."""

import ast
import importlib
import inspect
import textwrap
from pathlib import Path
from typing import Any

from tools.lib.docs_code import in_markdown, relative
from tools.lib.docs_options import finetuning_tasks

INTRODUCTION = """# Python

`import bert_jax` gives `load` and `Predictor`; the rest is imported from its module. Shapes: B rows, L tokens, D hidden size, V
vocabulary, C classes, N layers.
"""
# Module, object, and the members that are shown in addition to its docstring.
OBJECTS: dict[str, dict[str, tuple[str, ...]]] = {
    "bert_jax.library": {"load": (), "LoadedEncoder": ("__call__", "encode"), "Output": ()},
    "bert_jax.predictor": {"Predictor": ("load", "input_fields", "predict", "stream")},
    "bert_jax.data.tokenizer.tokenizer": {"Tokenizer": ("train", "load", "save", "encode", "tokens")},
    "bert_jax.conversion.convert": {"import_run": (), "export_run": ()},
    "bert_jax.errors": {"UserError": ()},
}


def page() -> str:
    """Returns the page as Markdown, with the answers of every task at its end."""
    parts = [INTRODUCTION]
    for module, objects in OBJECTS.items():
        for name, members in objects.items():
            value = getattr(importlib.import_module(module), name)
            parts.append(object_part(module, name, value))
            parts += [member_part(name, member, inspect.getattr_static(value, member)) for member in members]
    parts.append(
        "## Answers of `predict`\n\nWhat `Predictor.predict` returns for each input, by the task of the run.\n"
    )
    for task in ("pretraining", *finetuning_tasks()):
        method = importlib.import_module(f"bert_jax.tasks.{task}").Task.prepare
        parts.append(f"### {task}\n\n{in_markdown(inspect.getdoc(method) or '')}\n")
    return "\n".join(parts)


def object_part(module: str, name: str, value: Any) -> str:
    """Returns a function or class as Markdown."""
    text = in_markdown(inspect.getdoc(value) or "")
    source = relative(Path(str(importlib.import_module(module).__file__)))
    call = signature(name, value) if inspect.isfunction(value) else f"class {name}"
    return f"## {name}\n\n```python\n{call}\n```\n\n`{source}`\n\n{text}\n"


def member_part(owner: str, name: str, value: Any) -> str:
    """Returns a method or property as Markdown."""
    is_property = isinstance(value, property)
    function = value.fget if is_property else getattr(value, "__func__", value)
    call = signature(name, function).replace("() -> ", ": ") if is_property else signature(name, function)
    text = in_markdown(inspect.getdoc(function) or "")
    return f"### {owner}.{name}\n\n```python\n{call.replace('__call__', owner)}\n```\n\n{text}\n"


def signature(name: str, function: Any) -> str:
    """Returns the parameters of a function as they stand in the code, without self."""
    node = _definition(function)
    node.args.args = [argument for argument in node.args.args if argument.arg not in ("self", "cls")]
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"{name}({ast.unparse(node.args)}){returns}"


def _definition(function: Any) -> ast.FunctionDef:
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    assert isinstance(node, ast.FunctionDef)
    return node
