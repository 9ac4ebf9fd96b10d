"""Predicts with a run: fills [MASK]s with a pretrained one, labels texts with a fine-tuned one. JSON lines come out.

python -m bert_jax.predict --workdir=runs/y --text "..."
python -m bert_jax.predict --workdir=runs/y --input FILE|- [--output FILE]
"""

import contextlib
import itertools
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from absl import flags

from bert_jax import cli, command
from bert_jax.errors import UserError
from bert_jax.files import whole_file
from bert_jax.model.build import Params
from bert_jax.run import load_predictor
from bert_jax.tasks.base import Task

TEXT = flags.DEFINE_string("text", None, "A text to predict for; the two texts of a pair with a tab between them.")
INPUT = flags.DEFINE_string("input", None, "A file of texts, one a line, or of JSON objects; '-' for standard input.")
OUTPUT = flags.DEFINE_string("output", "-", "Where the answers go; '-' for standard output.")
STEP = flags.DEFINE_integer("step", None, "Checkpoint to use; by default the newest.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 32, "Texts at a time.", lower_bound=1)


def main() -> None:
    values, workdir = command.start()
    if (TEXT.value is None) == (INPUT.value is None):
        raise UserError("give either --text or --input")
    task, params = load_predictor(values, workdir, STEP.value)
    with contextlib.ExitStack() as stack:
        lines: Iterable[str]
        if TEXT.value is not None:
            lines = [TEXT.value]
        else:
            lines = sys.stdin if INPUT.value == "-" else stack.enter_context(opened(str(INPUT.value)))
        output = sys.stdout if OUTPUT.value == "-" else stack.enter_context(output_file(Path(OUTPUT.value)))
        for answer in answers(task, params, lines, BATCH_SIZE.value if TEXT.value is None else 1):
            output.write(json.dumps(answer, ensure_ascii=False) + "\n")


def answers(task: Task, params: Params, lines: Iterable[str], batch_size: int) -> Iterator[dict[str, Any]]:
    """The inputs of the lines with what the task says to each. Raises UserError as `parsed` and the task do."""
    inputs = parsed(lines, task.input_fields)
    while batch := list(itertools.islice(inputs, batch_size)):
        # A full batch every time, so that there is one compiled program.
        padded = batch + [batch[-1]] * (batch_size - len(batch))
        for given, answer in zip(batch, task.predict(params, padded), strict=False):
            yield {**given, **answer}


def output_file(path: Path) -> contextlib.AbstractContextManager[TextIO]:
    """The file to write. Raises UserError where there is no such folder."""
    if not path.parent.is_dir():
        raise UserError(f"{path}: no such folder; make it, or write elsewhere")
    return whole_file(path)


def opened(path: str):
    """The file, to be read. Raises UserError where there is none."""
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file; name a file of texts, or '-'")
    return Path(path).open(encoding="utf-8")


def parsed(lines: Iterable[str], fields: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """The inputs: plain lines, whose fields are separated by tabs, or JSON objects. Empty lines are passed over.

    Raises:
      UserError: a line that is not UTF-8, or without one of the fields; or nothing but empty lines.
    """
    is_empty = True
    try:
        for number, line in enumerate(lines, 1):
            line = line.rstrip("\r\n")
            if not line.strip():
                continue
            try:
                values = json.loads(line) if line.startswith("{") else dict(zip(fields, line.split("\t"), strict=True))
            except ValueError:
                raise UserError(
                    f"line {number}: neither a JSON object nor {len(fields)} text(s) separated by tabs; mend it"
                ) from None
            for field in fields:
                if field not in values:
                    raise UserError(f"line {number}: no field {field!r}, only {', '.join(values)}; name it so")
                if not isinstance(values[field], str):
                    raise UserError(
                        f"line {number}: field {field!r} is {values[field]!r}, not a text; put it in quotes"
                    )
                if any("\ud800" <= character <= "\udfff" for character in values[field]):
                    raise UserError(f"line {number}: not UTF-8; convert it")
            is_empty = False
            yield values
        if is_empty:
            raise UserError("there is no text in the input; give some")
    except UnicodeDecodeError as error:
        raise UserError(f"input is not UTF-8 ({error.reason} at byte {error.start}); convert it") from None


if __name__ == "__main__":
    cli.run(main)
