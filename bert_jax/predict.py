"""Predicts with a run, which fills masks, labels texts or words, or answers questions; writes JSON lines.

python -m bert_jax.predict --workdir=runs/y --text "..."
python -m bert_jax.predict --workdir=runs/y --input FILE|- [--output FILE]

From file to file, the answers are first written in parts next to the output, so that the same command continues an interrupted
job; with --distributed, several processes share the parts.

A line has the fields of the input and those of the answer, which replace input fields of the same name. With a run that labels
words, the words may be in the first column of --input=a.conll, and --output=b.conll repeats its lines with the tags in an
additional column.

Exit codes: 0, 2 for invalid input, 130 when interrupted, 141 when the output is closed (`| head`).
"""

import contextlib
import itertools
import sys
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from absl import flags

from bert_jax.cli import command_flags
from bert_jax.cli.main import run_command
from bert_jax.cli.progress import Progress
from bert_jax.data.datasets.conll import is_columns, with_predictions
from bert_jax.data.inputs import json_line, output_file, parse_lines, read_inputs
from bert_jax.errors import UserError
from bert_jax.files import resolved, same_path
from bert_jax.parts import can_be_parted, write_in_parts, written
from bert_jax.predictor import BATCH_SIZE as DEFAULT_BATCH_SIZE
from bert_jax.predictor import Predictor
from bert_jax.run import use_compilation_cache
from bert_jax.run_folder.checkpoints import CheckpointStore
from bert_jax.run_folder.default_checkpoint import default_or_latest_step
from bert_jax.train.loop import TrainConfig
from bert_jax.trained import load_predictor

TEXT = flags.DEFINE_string("text", None, "A text, or the two texts of a pair separated by a tab.")
INPUT = flags.DEFINE_string(
    "input",
    None,
    "File with a text or JSON object per line, .tsv or .csv with a header, or .conll with words in columns; '-' for stdin.",
)
OUTPUT = flags.DEFINE_string("output", "-", "File for the answers: JSON lines or, if .conll, columns; '-' for stdout.")
STEP = flags.DEFINE_integer("step", None, "Checkpoint; by default the best of a fine-tuned run, the latest of others.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", DEFAULT_BATCH_SIZE, "Number of texts per batch.", lower_bound=1)
PART_SIZE = flags.DEFINE_integer("part_size", 4096, "Number of inputs of a part of the output.", lower_bound=1)

flags.adopt_module_key_flags(command_flags)  # for --help


def main() -> None:
    values, workdir = command_flags.start_job()
    if (TEXT.value is None) == (INPUT.value is None):
        raise UserError("give either --text or --input")
    check_columns(values.task, INPUT.value, OUTPUT.value)
    use_compilation_cache(values.train.get("compilation_cache", TrainConfig.compilation_cache))
    predictor = Predictor(*load_predictor(values, workdir, STEP.value))
    if INPUT.value not in (None, "-") and same_path(INPUT.value, OUTPUT.value):
        raise UserError(f"--output={OUTPUT.value}: is the input file; name another one")
    with contextlib.ExitStack() as stack:
        if INPUT.value is None:
            inputs = parse_lines([str(TEXT.value)], predictor.input_fields, "--text")
        else:
            inputs = stack.enter_context(read_inputs(INPUT.value, predictor.input_fields))
        if OUTPUT.value == "-":  # without a progress bar between the answers
            sys.stdout.writelines(map(json_line, answers(predictor, inputs, BATCH_SIZE.value)))
            return
        progress = stack.enter_context(Progress("predicted", of="inputs"))

        def counted_answers(inputs: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
            return counted(answers(predictor, inputs, BATCH_SIZE.value), progress)

        output, source = Path(OUTPUT.value), INPUT.value or "-"
        if can_be_parted(Path(source), output):
            origin = {"run": run_state(values, workdir)}
            write_in_parts(
                resolved(output), origin, inputs, counted_answers, PART_SIZE.value, partial(lines_of, source)
            )
        else:
            stack.enter_context(output_file(output)).writelines(lines_of(source, output, counted_answers(inputs)))


def run_state(values: Any, workdir: Path) -> list[Any]:
    """Returns the folder of a run and the checkpoint that predicts, as JSON values."""
    step = STEP.value or default_or_latest_step(workdir, values.to_dict(), CheckpointStore(workdir).steps())
    return [written(workdir), step]


def lines_of(source: str, output: Path, results: Iterator[dict[str, Any]]) -> Iterable[str]:
    """Returns the lines of an output file."""
    if is_columns(str(output)):
        return with_predictions(source, (result["tags"] for result in results))
    return map(json_line, results)


def check_columns(task: str, input_path: str | None, output_path: str) -> None:
    """Raises UserError if columns cannot be read or written."""
    is_read = input_path is not None and is_columns(input_path)
    if is_read and task != "tokens":
        raise UserError(f"--input={input_path}: columns are for runs that label words, but this run's task is {task}")
    if is_columns(output_path) and not is_read:
        raise UserError(f"--output={output_path}: columns need an --input that is .conll, too; name one, or use .jsonl")


def answers(predictor: Predictor, inputs: Iterable[dict[str, Any]], batch_size: int) -> Iterator[dict[str, Any]]:
    """Yields each input with the fields of its answer. Raises UserError as the task does."""
    inputs, to_predict = itertools.tee(inputs)
    for values, answer in zip(inputs, predictor.stream(to_predict, batch_size), strict=True):
        yield values | answer


def counted(results: Iterable[dict[str, Any]], progress: Progress) -> Iterator[dict[str, Any]]:
    for result in results:
        progress.count()
        yield result


if __name__ == "__main__":
    run_command(main)
