"""Predicts with a run: fills [MASK]s with a pretrained one, labels texts with a fine-tuned one. JSON lines come out.

python -m bert_jax.predict --workdir=runs/y --text "..."
python -m bert_jax.predict --workdir=runs/y --input FILE|- [--output FILE]

A line holds the fields of the input and those of the answer, which replace input fields of the same name.
"""

import contextlib
import itertools
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from absl import flags

from bert_jax import cli, command
from bert_jax.errors import UserError
from bert_jax.inputs import opened, output_file, parsed
from bert_jax.predictor import Predictor
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
    predictor = Predictor(*load_predictor(values, workdir, STEP.value))
    with contextlib.ExitStack() as stack:
        lines: Iterable[str]
        if TEXT.value is not None:
            lines = [TEXT.value]
        else:
            lines = sys.stdin if INPUT.value == "-" else stack.enter_context(opened(str(INPUT.value)))
        found = answers(predictor, lines, BATCH_SIZE.value)
        if OUTPUT.value == "-":  # a bar would run through the answers
            sys.stdout.writelines(json.dumps(answer, ensure_ascii=False) + "\n" for answer in found)
            return
        output = stack.enter_context(output_file(Path(OUTPUT.value)))
        progress = stack.enter_context(cli.Progress("predicted", of="inputs"))
        for answer in found:
            output.write(json.dumps(answer, ensure_ascii=False) + "\n")
            progress.count(sum(len(str(answer[field]).encode()) for field in predictor.input_fields))


def answers(predictor: Predictor, lines: Iterable[str], batch_size: int) -> Iterator[dict[str, Any]]:
    """The inputs of the lines with what the run says to each, whose fields replace those of the same name.

    Raises:
      UserError: as `parsed` and the task do.
    """
    given, asked = itertools.tee(parsed(lines, predictor.input_fields))
    for values, answer in zip(given, predictor.stream(asked, batch_size), strict=True):
        yield values | answer


if __name__ == "__main__":
    cli.run(main)
