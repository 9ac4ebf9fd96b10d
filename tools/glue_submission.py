"""Predicts the test sets of GLUE with fine-tuned runs and writes a zip file for the leaderboard.

python tools/glue_submission.py --runs=runs/glue --glue_dir=GLUE --output=submission.zip

`--glue_dir` has the value of data.dir: the folder of official folders, tfds, or tfds:DATA_DIR. `--runs` has a run of each
task, in folders CoLA, SST-2, ..., as made by `configs/finetune/glue.py:all`; of several seeds, the one with the best score on
the development set is used. The diagnostic set, AX, is predicted with the run of MNLI. The zip has eleven TSV files (index,
prediction); tasks without a run are an error, or left out with --partial.
"""

import zipfile
from collections.abc import Iterator
from pathlib import Path

from absl import flags

from bert_jax.cli.main import run_command
from bert_jax.data.datasets import glue
from bert_jax.data.inputs import output_file
from bert_jax.errors import UserError, plain
from bert_jax.predictor import Predictor
from bert_jax.run_folder.default_checkpoint import default_evaluation
from bert_jax.run_folder.folder import exists, flattened, read_config
from bert_jax.tasks.glue import FIELDS

BATCH_SIZE = 256  # texts at a time
HIGHEST_SCORE = 5.0  # of STS-B


def define_flags() -> None:
    flags.DEFINE_string("runs", "", "folder with a run for each task")
    flags.DEFINE_string("glue_dir", "", "folder with GLUE's official folders; or tfds, or tfds:DATA_DIR")
    flags.DEFINE_string("output", "", "zip file to write")
    flags.DEFINE_bool("partial", False, "leave out tasks without a run")


def main() -> None:
    if missing := [f"--{name}" for name in ("runs", "glue_dir", "output") if not flags.FLAGS[name].value]:
        raise UserError(f"{' and '.join(missing)}: missing; see the docstring of tools/glue_submission.py")
    runs = Path(flags.FLAGS.runs)
    folders = {name: best_run(runs / name, task) for name, task in glue.TASKS.items()}
    missing = [name for name, folder in folders.items() if folder is None]
    if len(missing) == len(folders):
        raise UserError(f"{runs}: contains no run of a GLUE task; use the --workdir of glue.py:all")
    if missing and not flags.FLAGS.partial:
        raise UserError(f"{runs}: no runs of {', '.join(missing)}; fine-tune them, or use --partial")
    written = []
    output = output_file(Path(flags.FLAGS.output), binary=True)
    with output as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as pack:
        for name, folder in folders.items():
            for file_name, content in predictions(folder, name, flags.FLAGS.glue_dir) if folder else ():
                pack.writestr(file_name, content)
                written.append(file_name)
    missing += ["AX"] if "MNLI" in missing else []
    left_out = f"; without {', '.join(missing)}" if missing else ""
    print(f"{plain(flags.FLAGS.output)}: {len(written)} files{left_out}")


def best_run(folder: Path, task: glue.GlueTask) -> Path | None:
    """Returns the run in a folder, or the best of its seeds; None if there is no run."""
    if exists(folder):
        return folder
    seeds = [path for path in sorted(folder.glob("seed_*")) if exists(path)]
    return max(seeds, key=lambda path: default_evaluation(path)[1].get(task.scores[0], -1.0), default=None)


def predictions(folder: Path, name: str, directory: str) -> Iterator[tuple[str, str]]:
    """Yields (file name, content) for the test sets of a run. Raises UserError if it is of another task."""
    config = read_config(folder)
    if config["task"] != "glue" or flattened(config).get("data.name") != name:
        raise UserError(f"{folder}: not a run of GLUE's {name}; fine-tune one with configs/finetune/glue.py:{name}")
    predictor = Predictor.load(folder)
    sets = [(glue.TASKS[name], *entry) for entry in glue.TASKS[name].submissions]
    if name == "MNLI":
        sets += [(glue.AX, *entry) for entry in glue.AX.submissions]
    for glue_task, split, file_name in sets:
        rows = glue.read_split(directory, glue_task, split)
        lines = ["index\tprediction\n"]
        inputs = [dict(zip(FIELDS, row.texts, strict=False)) for row in rows]
        for row, answer in zip(rows, predictor.predict(inputs, BATCH_SIZE), strict=True):
            lines.append(f"{row.name}\t{as_submitted(answer, glue_task, folder)}\n")
        yield file_name, "".join(lines)


def as_submitted(answer: dict, task: glue.GlueTask, folder: Path) -> str:
    """Returns a label as in the official files, or a score with three decimals. Raises UserError for other labels."""
    if not task.labels and "score" in answer:
        return f"{min(max(answer['score'], 0.0), HIGHEST_SCORE):.3f}"
    if answer.get("label") not in task.labels:
        known = ", ".join(task.labels) or "numbers"
        problem = f"predicts other labels than those of GLUE's {task.folder} ({known})"
        raise UserError(f"{folder}: {problem}; fine-tune it again")
    return answer["label"]


if __name__ == "__main__":
    define_flags()
    run_command(main)
