"""Predicts with a run: fills [MASK]s with a pretrained one, labels texts with a fine-tuned one. JSON lines come out.

python -m bert_jax.predict --workdir=runs/y --text "..."
python -m bert_jax.predict --workdir=runs/y --input FILE|- [--output FILE]

A line holds the fields of the input and those of the answer, which replace input fields of the same name. From a .conll file,
whose first column is read, to another the words' tags go into a column of their own.
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
from bert_jax.data.conll import with_predictions
from bert_jax.data.inputs import COLUMNS, output_file, parsed, read_inputs
from bert_jax.errors import UserError
from bert_jax.files import same_path
from bert_jax.predictor import BATCH_SIZE as DEFAULT_BATCH_SIZE
from bert_jax.predictor import Predictor
from bert_jax.progress import Progress
from bert_jax.run import load_predictor

TEXT = flags.DEFINE_string("text", None, "A text to predict for; the two texts of a pair with a tab between them.")
INPUT = flags.DEFINE_string(
    "input",
    None,
    "A file of texts or JSON objects, one a line, or .tsv or .csv with a header, or .conll; '-': stdin.",
)
OUTPUT = flags.DEFINE_string("output", "-", "Where the answers go; '-' for standard output.")
STEP = flags.DEFINE_integer(
    "step",
    None,
    "Checkpoint to use; by default the newest, of fine-tuned runs the best.",
)
BATCH_SIZE = flags.DEFINE_integer("batch_size", DEFAULT_BATCH_SIZE, "Texts at a time.", lower_bound=1)

flags.adopt_module_key_flags(command)  # for --help


def main() -> None:
    values, workdir = command.start()
    if (TEXT.value is None) == (INPUT.value is None):
        raise UserError("give either --text or --input")
    predictor = Predictor(*load_predictor(values, workdir, STEP.value))
    if INPUT.value not in (None, "-") and same_path(INPUT.value, OUTPUT.value):
        raise UserError(f"--output={OUTPUT.value}: is the input as well; name another file")
    with contextlib.ExitStack() as stack:
        given = parsed([str(TEXT.value)], predictor.input_fields, "--text")
        if INPUT.value is not None:
            given = stack.enter_context(read_inputs(INPUT.value, predictor.input_fields))
        found = answers(predictor, given, BATCH_SIZE.value)
        if OUTPUT.value == "-":  # a bar would run through the answers
            sys.stdout.writelines(map(as_json, found))
            return
        output = stack.enter_context(output_file(Path(OUTPUT.value)))
        found = counted(found, stack.enter_context(Progress("predicted", of="inputs")))
        output.writelines(in_columns(INPUT.value, found) if OUTPUT.value.endswith(COLUMNS) else map(as_json, found))


def answers(predictor: Predictor, given: Iterable[dict[str, Any]], batch_size: int) -> Iterator[dict[str, Any]]:
    """The inputs with what the run says to each, whose fields replace those of the same name.

    Raises:
      UserError: as the task does.
    """
    given, asked = itertools.tee(given)
    for values, answer in zip(given, predictor.stream(asked, batch_size), strict=True):
        yield values | answer


def as_json(answer: dict[str, Any]) -> str:
    return json.dumps(answer, ensure_ascii=False) + "\n"


def in_columns(path: str | None, found: Iterable[dict[str, Any]]) -> Iterator[str]:
    """The lines of the input file with a column more, the tags.

    Raises:
      UserError: the file has no columns, or the run labels no words.
    """

    def tags(answer: dict[str, Any]) -> list[str]:
        if "tags" not in answer:
            raise UserError(
                f"{COLUMNS} files hold words and tags, and the run gives none; name an --output of another kind"
            )
        return answer["tags"]

    if path is None or not path.endswith(COLUMNS):
        raise UserError(f"tags go into a {COLUMNS} file from another one alone; name an --output of another kind")
    return with_predictions(path, map(tags, found))


def counted(found: Iterable[dict[str, Any]], progress: Progress) -> Iterator[dict[str, Any]]:
    for answer in found:
        progress.count()
        yield answer


if __name__ == "__main__":
    cli.run(main)
