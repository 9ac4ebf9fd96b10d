"""Predicts the test sets of GLUE with fine-tuned runs, and packs them as the leaderboard wants them.

python tools/glue_submission.py --runs=runs/glue --glue_dir=GLUE --output=submission.zip

`--glue_dir` is what the runs have as data.dir: the folder of official folders, or tfds, or tfds:DATA_DIR.
`--runs` holds a run for each task, in folders CoLA, SST-2, ..., as `configs/finetune/glue.py:all` makes them; of several seeds
the one with the best first score on the development set is taken. The diagnostic set, AX, is predicted by the run of MNLI. The
zip has eleven files with a header and a line (index, prediction) for each test example; tasks without a run are left out with
--partial, and an error without it.
"""

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

from absl import flags

from bert_jax.cli import main as cli
from bert_jax.data.datasets import glue
from bert_jax.data.inputs import output_file
from bert_jax.errors import UserError, plain
from bert_jax.predictor import Predictor
from bert_jax.run_folder import folder as run_folder
from bert_jax.run_folder.default_checkpoint import default_evaluation
from bert_jax.tasks.glue import FIELDS

BATCH_SIZE = 256  # texts at a time
HIGHEST_SCORE = 5.0  # of STS-B


def define_flags() -> None:
    """Not at import: other programs have flags of the same names."""
    flags.DEFINE_string("runs", "", "folder with a run for each task")
    flags.DEFINE_string("glue_dir", "", "folder with GLUE's official folders; or tfds, or tfds:DATA_DIR")
    flags.DEFINE_string("output", "", "the zip file to write")
    flags.DEFINE_bool("partial", False, "leave out the tasks that have no run")


def main() -> None:
    if missing := [f"--{name}" for name in ("runs", "glue_dir", "output") if not flags.FLAGS[name].value]:
        raise UserError(f"{' and '.join(missing)}: missing; see the head of tools/glue_submission.py")
    runs = Path(flags.FLAGS.runs)
    folders = {name: best_run(runs / name, task) for name, task in glue.TASKS.items()}
    missing = [name for name, folder in folders.items() if folder is None]
    if len(missing) == len(folders):
        raise UserError(f"{runs}: holds no run of a task of GLUE; name the folder that glue.py:all was given")
    if missing and not flags.FLAGS.partial:
        raise UserError(f"{runs}: no runs of {', '.join(missing)}; fine-tune on them, or give --partial")
    written = []
    with (
        output_file(Path(flags.FLAGS.output), binary=True) as file,
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as pack,
    ):
        for name, folder in folders.items():
            if folder is not None:
                for file_name, content in predictions(folder, name, flags.FLAGS.glue_dir):
                    pack.writestr(file_name, content)
                    written.append(file_name)
    missing += ["AX"] if "MNLI" in missing else []
    left_out = f"; without {', '.join(missing)}" if missing else ""
    print(f"{plain(flags.FLAGS.output)}: {len(written)} files{left_out}")


def best_run(folder: Path, task: glue.GlueTask) -> Path | None:
    """The run in a folder, or the best of its seeds; None where there is none."""
    if run_folder.exists(folder):
        return folder
    seeds = [path for path in sorted(folder.glob("seed_*")) if run_folder.exists(path)]
    return max(seeds, key=lambda path: default_evaluation(path)[1].get(task.scores[0], -1.0), default=None)


def predictions(folder: Path, name: str, directory: str) -> Iterator[tuple[str, str]]:
    """(file, content) of the test sets that a run predicts. Raises UserError where it is one of another task."""
    config = run_folder.read_config(folder)
    if config["task"] != "glue" or run_folder.flattened(config).get("data.name") != name:
        raise UserError(f"{folder}: not a run of GLUE's {name}; make one with configs/finetune/glue.py:{name}")
    predictor = Predictor.load(folder)
    sets = [(glue.TASKS[name], *entry) for entry in glue.TASKS[name].submissions]
    if name == "MNLI":
        sets += [(glue.AX, *entry) for entry in glue.AX.submissions]
    for glue_task, split, file_name in sets:
        rows = glue.read_split(directory, glue_task, split)
        content = io.StringIO("index\tprediction\n")
        content.seek(0, io.SEEK_END)
        inputs = [dict(zip(FIELDS, row.texts, strict=False)) for row in rows]
        for row, answer in zip(rows, predictor.predict(inputs, BATCH_SIZE), strict=True):
            content.write(f"{row.name}\t{as_submitted(answer, glue_task, folder)}\n")
        yield file_name, content.getvalue()


def as_submitted(answer: dict, task: glue.GlueTask, folder: Path) -> str:
    """A label as it stands in the official files, or a number with three decimals. Raises UserError for any other label."""
    if not task.labels and "score" in answer:
        return f"{min(max(answer['score'], 0.0), HIGHEST_SCORE):.3f}"
    if answer.get("label") not in task.labels:
        known = ", ".join(task.labels) or "numbers"
        raise UserError(f"{folder}: predicts other labels than GLUE's {task.folder} has ({known}); fine-tune it again")
    return answer["label"]


if __name__ == "__main__":
    define_flags()
    cli.run(main)
