"""The shape of the code: imports point down only (contracts in pyproject.toml), files and functions stay short."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted([*ROOT.glob("bert_jax/**/*.py"), *ROOT.glob("tools/**/*.py")])
FILE_LINES, FUNCTION_LINES = 320, 60


def test_imports_keep_the_contracts():
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache", "--no-logo"]
    if not command[0].exists():
        pytest.skip("import-linter is not installed; it is among the development requirements")
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_are_short(path):
    text = path.read_text()
    lines = text.count("\n")
    assert lines <= FILE_LINES, f"{lines} lines, more than {FILE_LINES}: it holds more than one thing"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
            length = node.end_lineno - first.lineno + 1  # without parameters and docstring
            assert length <= FUNCTION_LINES, f"{node.name} has {length} lines, more than {FUNCTION_LINES}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_say_what_lives_there(path):
    tree = ast.parse(path.read_text())
    assert not tree.body or ast.get_docstring(tree), "a file without a docstring"
