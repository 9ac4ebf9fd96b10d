"""The shape of the code: imports point down only (contracts in pyproject.toml), files and functions stay short, names and
docstrings are plain English."""

import ast
import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted(path for name in ("bert_jax", "tools", "examples") for path in ROOT.glob(f"{name}/**/*.py"))
FILE_LINES, FUNCTION_LINES = 320, 60


# Edited folders, files and pages, to which the rules of language below apply.
EDITED = [
    *("bert_jax/cli", "bert_jax/conversion", "bert_jax/formats", "bert_jax/run_folder"),
    *(
        "bert_jax/data",
        "bert_jax/model",
        "bert_jax/objectives",
        "bert_jax/parallel",
        "bert_jax/tasks",
        "bert_jax/train",
    ),
    *("bert_jax/[!_]*.py", "tools", "examples"),
    *("README.md", "docs/**/*.md", "configs"),
]
PLACES = [path for pattern in EDITED for path in sorted(ROOT.glob(pattern))]
PROSE = [file for path in PLACES for file in (sorted(path.rglob("*.py")) if path.is_dir() else [path])]
CODE = [path for path in PROSE if path.suffix == ".py"]
VERB = re.compile(r"[A-Z][a-z-]+s\b")  # in the third person: Returns, Reads, Checks, Raises ...
UNWANTED = re.compile(
    r"(?<!there )\b(is|are) none\b|\bmend(s|ed|ing)?\b|\bbeside\b|\broom\b|second[_ ]opinion|\bjudged\b|\b(ours|theirs)\b"
)
UNWANTED_NAMES = {"found", "given", "judged", "look", "ours", "theirs", "there"}  # say what it is instead


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


OPTIONAL = {
    "torch",
    "transformers",
    "tensorflow",
    "mkdocs",
    "rensa",
    "py3langid",
    "mwparserfromhell",
    "fsspec",
    "s3fs",
    "apache_beam",
    "distributed",
}  # imported where they are needed, with a message where they are missing


def imported(path: Path) -> set[str]:
    """The packages that a file imports."""
    names = list[str]()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names.append(str(node.module))
    return {name.partition(".")[0] for name in names}


def test_what_is_imported_is_required():
    """Nothing works only because another package happens to be installed."""
    distributions = importlib.metadata.packages_distributions()
    for path in [*FILES, *ROOT.glob("configs/**/*.py")]:
        is_server = "serve" in path.stem or path.parent.name == "serving"
        required = requirements("requirements.txt") | (requirements("requirements-serve.txt") if is_server else set())
        neighbours = {
            other.stem for other in path.parent.glob("benchmark_rival*.py")
        }  # of scripts that run in the rival's Python
        packages = imported(path) - {*sys.stdlib_module_names, *OPTIONAL, *neighbours, "bert_jax", "configs", "tools"}
        missing = {name for name in packages if required.isdisjoint(map(normalised, distributions.get(name, [name])))}
        assert not missing, f"{path}: {', '.join(sorted(missing))}: in no line of requirements.txt"


def requirements(name: str) -> set[str]:
    """The packages in a file of requirements."""
    lines = (ROOT / name).read_text().splitlines()
    return {normalised(re.split(r"[\[><=]", line)[0]) for line in lines if not line.startswith(("#", "-"))}


def normalised(name: str) -> str:
    return name.lower().replace("_", "-")


def test_references_are_fixtures():
    """Otherwise tests that compare with torch, transformers or tensorflow would be neither marked nor skipped without them."""
    for path in ROOT.glob("tests/**/test_*.py"):
        skips = [node for node in ast.walk(ast.parse(path.read_text())) if getattr(node, "attr", "") == "importorskip"]
        assert not skips, f"{path}:{skips[0].lineno}: ask for the fixture of tests/conftest.py instead"
        assert imported(path).isdisjoint(OPTIONAL), f"{path}: ask for the fixture of tests/conftest.py instead"


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_docstrings_begin_with_a_sentence(path):
    """The first line is a sentence; that of a function or method begins with a verb, in the third person."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) or not (text := ast.get_docstring(node)):
            continue
        first = text.partition("\n")[0]
        name = getattr(node, "name", "the module")
        assert first.endswith("."), f"{name}: {first!r} is not a sentence on one line"
        decorators = [ast.unparse(decorator) for decorator in getattr(node, "decorator_list", [])]
        if isinstance(node, ast.FunctionDef) and not any(name.endswith("property") for name in decorators):
            assert VERB.match(first), f"{name}: {first!r} does not begin with a verb such as Returns"


@pytest.mark.parametrize("path", PROSE, ids=lambda path: str(path.relative_to(ROOT)))
def test_words_are_plain(path):
    text = path.read_text()
    for number, line in enumerate(text.splitlines(), 1):
        assert not (word := UNWANTED.search(line)), f"{path}:{number}: {word[0]!r}: see docs/glossary.md"
    for node in ast.walk(ast.parse(text)) if path.suffix == ".py" else ():
        is_variable = isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
        name = node.id if is_variable else getattr(node, "name", getattr(node, "arg", None))
        assert name not in UNWANTED_NAMES, f"{path}:{node.lineno}: {name!r} does not say what it is"


def test_the_rules_of_language_apply_to_something():
    assert len(CODE) > 50 and len(PROSE) > len(CODE) and all(any(ROOT.glob(pattern)) for pattern in EDITED)
