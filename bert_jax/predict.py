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

from absl import flags

from bert_jax import cli, command
from bert_jax.errors import UserError
from bert_jax.run import load_predictor

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
        output = sys.stdout if OUTPUT.value == "-" else stack.enter_context(Path(OUTPUT.value).open("w"))
        inputs = parsed(lines, task.input_fields)
        while batch := list(itertools.islice(inputs, BATCH_SIZE.value)):
            # A full batch every time, so that there is one compiled program.
            padded = batch + [batch[-1]] * (BATCH_SIZE.value - len(batch)) if INPUT.value is not None else batch
            for given, answer in zip(batch, task.predict(params, padded), strict=False):
                output.write(json.dumps({**given, **answer}, ensure_ascii=False) + "\n")


def opened(path: str):
    """The file, to be read. Raises UserError where there is none."""
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file; name a file of texts, or '-'")
    return Path(path).open(encoding="utf-8")


def parsed(lines: Iterable[str], fields: tuple[str, ...]) -> Iterator[dict[str, str]]:
    """The inputs: plain lines, whose fields are separated by tabs, or JSON objects. Empty lines are passed over.

    Raises:
      UserError: a line that is not UTF-8, or without one of the fields.
    """
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
            if missing := [field for field in fields if field not in values]:
                raise UserError(f"line {number}: no field {missing[0]!r}, only {', '.join(values)}; name it so")
            yield values
    except UnicodeDecodeError as error:
        raise UserError(f"input is not UTF-8 ({error.reason} at byte {error.start}); convert it") from None


if __name__ == "__main__":
    cli.run(main)
