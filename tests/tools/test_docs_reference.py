"""The reference of the documentation has every option, flag and message of the code."""

import dataclasses
import re
import sys

import pytest

from bert_jax.config import to_dict
from bert_jax.errors import EXIT_USER_ERROR
from bert_jax.predictor import BATCH_SIZE
from bert_jax.run_folder.folder import flattened
from bert_jax.tasks import glue, pretraining, qa, text, tokens
from tests.running import ROOT, run
from tools.lib import docs_code, docs_commands, docs_errors, docs_options, docs_python
from tools.lib.benchmark_settings import Settings

# A call whose message has words of its own, or begins on the next line.
MESSAGE = re.compile(r"""(?:(?<!class )\bUserError|^\s+fail)\((?:$|f?["'](?:\{[^}]*\}|[^\w"'{])*\w)""")
ROW = re.compile(r"^\| `([\w.\[\]]+)` \| (.*?) \| (.*?) \| (.*) <small>(\S+):(\d+)</small> \|$", re.MULTILINE)


@pytest.fixture(scope="module")
def options() -> list[tuple[str, ...]]:
    return ROW.findall(docs_options.page())


@pytest.mark.parametrize("task", (pretraining, text, glue, tokens, qa), ids=lambda task: task.__name__.split(".")[-1])
def test_every_option_is_there_with_its_default(task, options):
    shown = {(name, default) for name, _, defaults, *_ in options for default in re.findall(r"`([^`]+)`", defaults)}
    for name, value in flattened(to_dict(task.Config())).items():
        if name == "task":
            continue
        parent = re.sub(r"^options\.(distillation|rtd)\.", "options.mlm.", name)  # whose other options are those of mlm
        assert {(name, repr(value)), (parent, repr(value))} & shown, f"{name}={value!r}"


def test_every_option_has_a_meaning_and_a_place(options):
    assert len(options) > 120
    for name, kind, _, meaning, file, line in options:
        assert len(kind) > 4 and len(meaning) > 4, f"{name}: write a comment next to the field"
        assert re.match(rf"    {name.split('.')[-1]}: ", (ROOT / file).read_text().splitlines()[int(line) - 1])


def test_comments_above_and_after_a_field():
    @dataclasses.dataclass
    class Example:
        size: int = 1  # tokens

        # Heading
        # Of the text. Two lines
        # of it.
        rate: float = 0.5  # a share
        name: str = ""

    fields = docs_code.commented_fields(Example)
    assert [field.comment for field in fields.values()] == ["tokens", "Of the text. Two lines of it. a share", ""]


def test_every_message_is_there():
    """Counted by the lines of the files, without parsing them; those that pass on another text are left out."""
    page, count = docs_errors.page_part(), 0
    for path in docs_code.python_files(*docs_errors.FOLDERS):
        name = docs_code.relative(path)
        section = page.partition(f"### {name}\n")[2].partition("\n### ")[0]
        lines = {int(line) for line in re.findall(r" \| (\d+) \|$", section, re.MULTILINE)}
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if MESSAGE.search(line.partition("#")[0]) and "def fail" not in line:
                assert number in lines, f"{name}:{number} is not among {sorted(lines)}"
                count += 1
    assert count > 500


def test_messages_with_their_variables(tmp_path, monkeypatch):
    file = tmp_path / "code.py"
    file.write_text(
        'REMEDY = "get it again"\n'
        "def read(path, sizes):\n"
        '    problem = "empty" if not sizes else f"{len(sizes):,} parts"\n'
        '    raise UserError(f"{path.name}: {problem}; {REMEDY}")\n'
    )
    messages = docs_errors.messages_of(file)
    assert [(message.problem, message.remedy, message.line) for message in messages] == [
        ("<name>: empty", "get it again", 4),
        ("<name>: <sizes> parts", "get it again", 4),
    ]


CODE = """
def f(size, error):
    hint = "unused"
    if size:
        hint = "make it smaller"
    else:
        raise UserError("is empty")
    try:
        size += 1
    except OSError as error:
        raise UserError(str(error))
    except ValueError:
        hint = "use a number"
    if problem := "is 'a; b'" if size else "":
        hint += ", please"
        raise UserError(f"size={size}: {problem}; {hint}")
    hint = "again"
    fail(f"{size}: too late; {hint}")
"""


def test_messages_have_what_reaches_them(tmp_path):
    """Not what a variable is given later, before it is given something else, or in a branch that ends."""
    file = tmp_path / "code.py"
    file.write_text(CODE)
    assert [message[:2] for message in docs_errors.messages_of(file)] == [
        ("is empty", ""),
        ("size=<size>: is 'a; b'", "make it smaller, please"),
        ("size=<size>: is 'a; b'", "use a number, please"),
        ("<size>: too late", "again"),
    ]


def test_a_message_of_a_command_is_on_the_page(tmp_path):
    """A message as a user sees it fits the pattern on the page."""
    command = [sys.executable, "-m", "bert_jax.evaluate", f"--workdir={tmp_path}"]
    printed = run(command, code=EXIT_USER_ERROR).stderr.strip()
    rows = re.findall(r"^\| `(.+?)` \| (.*) \| \d+ \|$", docs_errors.page_part(), re.MULTILINE)
    texts = [f"{problem}; {remedy}" if remedy else problem for problem, remedy in rows]
    parts = [re.split(r"<[^>]*>", text) for text in texts]
    patterns = [".*".join(map(re.escape, fixed)) for fixed in parts if len("".join(fixed)) > 20]
    assert printed.startswith("error: --workdir=")
    assert any(re.fullmatch(pattern, printed.removeprefix("error: ")) for pattern in patterns), printed


def test_the_usual_errors_are_in_the_code():
    """The longest words of each that do not depend on the input."""
    table = (ROOT / "docs" / "errors.md").read_text().partition("## All messages")[0]
    messages = re.findall(r"^\| `(.+?)` \|", table, re.MULTILINE)
    code = "".join(path.read_text() for path in docs_code.python_files("bert_jax"))
    assert len(messages) > 10
    for message in messages:
        parts = [part.strip(": ") for part in re.split(r"\.\.\.|RUN: |[()]", message) if not part.endswith("=")]
        part = max(parts, key=len)
        assert len(part) >= 8 and part in code, f"{message!r}: no message has {part!r}"


def test_flags_are_those_of_the_command():
    """As absl shows them: the names and the meanings."""
    for file in ("bert_jax/predict.py", "tools/prepare_corpus.py", "tools/convert_checkpoint.py"):
        module = ["-m", "bert_jax.predict"] if file.startswith("bert_jax") else [str(ROOT / file)]
        shown = " ".join(run([sys.executable, *module, "--help"], code=None).stdout.split())
        names = [name for name, *_ in docs_commands.flags_of(ROOT / file)]
        assert len(names) >= 6
        for name in names:
            assert re.search(rf"--(\[no\])?{name}:", shown), f"{file}: --{name}"


def test_defaults_are_values():
    """As --help shows them, also those that the code names by constants; those of this machine are left out."""
    shown = {name: default for name, default, _ in docs_commands.flags_of(ROOT / "tools" / "benchmark.py")}
    assert shown["turns"] == str(Settings().turns) and shown["source"] == Settings().source
    assert shown["rival_python"] == shown["data"] == ""
    (batch_size,) = [row for row in docs_commands.flags_of(ROOT / "bert_jax" / "predict.py") if row[0] == "batch_size"]
    assert batch_size[1] == str(BATCH_SIZE)
    (document,) = [row for row in docs_commands.flags_of(ROOT / "tools/prepare_corpus.py") if row[0] == "document"]
    assert document[1:] == ("blank-line", "what ends a document of a text source. One of blank-line, file.")


def test_every_command_has_a_section():
    page = docs_commands.page()
    tools = [path for path in (ROOT / "tools").glob("*.py") if "DEFINE_" in path.read_text()]
    assert len(tools) > 15
    for path in tools:
        assert f"## tools/{path.name}\n" in page
    for name in docs_commands.COMMANDS:
        assert f"## bert_jax.{name}\n" in page


def test_the_python_page_has_the_sections_of_docstrings():
    page = docs_python.page()
    assert "- `layer`: layer of the hidden states: 0 for the embeddings, -1 for the last." in page
    assert "load(folder: str | Path, step: int | None=None, mesh: Mesh | None=None) -> LoadedEncoder" in page
    assert "(self" not in page and "__call__(" not in page
    answers = page.partition("## Answers of `predict`")[2]
    assert all(len(part.strip().splitlines()[-1]) > 10 for part in answers.split("\n### ")[1:]), (
        "a task without a docstring"
    )
