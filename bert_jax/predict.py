"""Predicts with a run: fills [MASK]s with a pretrained one, labels texts with a fine-tuned one. JSON lines come out.

python -m bert_jax.predict --workdir=runs/y --text "..."
python -m bert_jax.predict --workdir=runs/y --input FILE|- [--output FILE]

A line holds the fields of the input and those of the answer, which replace input fields of the same name. With a run that
labels words, --input=a.conll is read for the words in its first column, and --output=b.conll repeats its lines with a column
more, their tags.

Exit codes: 0, 2 for bad input, 130 when interrupted, 141 when nobody reads the answers any more (`| head`).
"""

import contextlib
import itertools
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from absl import flags

from bert_jax.cli import command_flags
from bert_jax.cli.main import run_command
from bert_jax.cli.progress import Progress
from bert_jax.data.datasets.conll import is_columns, with_predictions
from bert_jax.data.inputs import json_line, output_file, parse_lines, read_inputs
from bert_jax.errors import UserError
from bert_jax.files import same_path
from bert_jax.predictor import BATCH_SIZE as DEFAULT_BATCH_SIZE
from bert_jax.predictor import Predictor
from bert_jax.run import load_predictor, use_compilation_cache
from bert_jax.train.loop import TrainConfig

TEXT = flags.DEFINE_string("text", None, "A text to predict for; the two texts of a pair with a tab between them.")
INPUT = flags.DEFINE_string(
    "input",
    None,
    "A file of texts or JSON objects, one a line, or .tsv or .csv with a header, or .conll, words in columns; '-': stdin.",
)
OUTPUT = flags.DEFINE_string("output", "-", "Where the answers go, as JSON lines or, .conll, in columns; '-': stdout.")
STEP = flags.DEFINE_integer(
    "step",
    None,
    "Checkpoint to use; by default the newest, of fine-tuned runs the best.",
)
BATCH_SIZE = flags.DEFINE_integer("batch_size", DEFAULT_BATCH_SIZE, "Texts at a time.", lower_bound=1)

flags.adopt_module_key_flags(command_flags)  # for --help


def main() -> None:
    values, workdir = command_flags.start_job()
    if (TEXT.value is None) == (INPUT.value is None):
        raise UserError("give either --text or --input")
    check_columns(values.task, INPUT.value, OUTPUT.value)
    use_compilation_cache(values.train.get("compilation_cache", TrainConfig.compilation_cache))
    predictor = Predictor(*load_predictor(values, workdir, STEP.value))
    if INPUT.value not in (None, "-") and same_path(INPUT.value, OUTPUT.value):
        raise UserError(f"--output={OUTPUT.value}: is the input as well; name another file")
    with contextlib.ExitStack() as stack:
        given = parse_lines([str(TEXT.value)], predictor.input_fields, "--text")
        if INPUT.value is not None:
            given = stack.enter_context(read_inputs(INPUT.value, predictor.input_fields))
        found = answers(predictor, given, BATCH_SIZE.value)
        if OUTPUT.value == "-":  # a bar would run through the answers
            sys.stdout.writelines(map(json_line, found))
            return
        output = stack.enter_context(output_file(Path(OUTPUT.value)))
        found = counted(found, stack.enter_context(Progress("predicted", of="inputs")))
        if is_columns(OUTPUT.value):
            output.writelines(with_predictions(str(INPUT.value), (answer["tags"] for answer in found)))
        else:
            output.writelines(map(json_line, found))


def check_columns(task: str, input_path: str | None, output_path: str) -> None:
    """Raises UserError where columns are to be read or written, and cannot be."""
    is_read = input_path is not None and is_columns(input_path)
    if is_read and task != "tokens":
        raise UserError(
            f"--input={input_path}: words in columns are for runs that label words, and the run's task is {task}"
        )
    if is_columns(output_path) and not is_read:
        raise UserError(
            f"--output={output_path}: repeats the lines of an --input that is .conll as well; name one, or .jsonl"
        )


def answers(predictor: Predictor, given: Iterable[dict[str, Any]], batch_size: int) -> Iterator[dict[str, Any]]:
    """The inputs with what the run says to each, whose fields replace those of the same name.

    Raises:
      UserError: as the task does.
    """
    given, asked = itertools.tee(given)
    for values, answer in zip(given, predictor.stream(asked, batch_size), strict=True):
        yield values | answer


def counted(found: Iterable[dict[str, Any]], progress: Progress) -> Iterator[dict[str, Any]]:
    for answer in found:
        progress.count()
        yield answer


if __name__ == "__main__":
    run_command(main)
