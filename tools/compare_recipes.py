"""Pretrains the same encoder by several recipes on the same text, fine-tunes each, and writes what came out.

    python tools/compare_recipes.py --config=configs/sheets/recipes.py --workdir=runs/recipes --config.data=DATA

The experiments of the sheet, a recipe with a seed each, run one after the other; each leaves a JSON file among the records of
the repository. One whose record is there is not run again, unless its recipe changed. If interrupted, the same command
continues; a run whose folder is gone, e.g. on another machine, begins anew.

    --list          shows what is done, what is left and how long it will take, and runs nothing
    --only=REGEX    runs the experiments whose names (NAME_SEED) match
    --sheet         writes the page of results, README.md and its plots next to the records, and runs nothing

For each experiment: a run of pretraining; the evaluation of its checkpoints, all on the same held-out rows (full windows,
standard masks); the operations of a step, counted; fine-tuning on each task. The runs are deleted as soon as no other
experiment needs them. A student whose teacher's run is gone has its teacher trained again.
"""

import os
import platform
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from absl import flags
from ml_collections import config_flags

from bert_jax.cli.main import run_command
from bert_jax.data.corpus.format import Corpus
from bert_jax.data.datasets import glue
from bert_jax.errors import UserError, listed, plain
from bert_jax.files import read_json, write_json
from bert_jax.library import load
from bert_jax.model.build import count
from bert_jax.run_folder.default_checkpoint import default_evaluation
from bert_jax.run_folder.folder import EVALUATION, get_config
from bert_jax.run_folder.provenance import commit
from tools import experiment_sheet
from tools.lib import recipes_page
from tools.lib.cramming_budget import tokens_per_step
from tools.lib.cramming_records import today
from tools.lib.encoder_speed import texts_per_second
from tools.lib.logged_process import ROOT, run_logged
from tools.lib.recipes_corpus import corpus_hash, padding_share, prepare_corpora
from tools.lib.recipes_records import (
    Point,
    Record,
    Records,
    expected_minutes,
    read_records,
    record_path,
    rounded,
    write_record,
)
from tools.lib.recipes_sheet import (
    Experiment,
    evaluation_command,
    experiments_of,
    pretraining_command,
    students_of,
    teacher_of,
)
from tools.lib.run_files import Row
from tools.lib.traced_flops import config_flops

LOG, SECONDS = "log.txt", "seconds.json"  # in the folder of an experiment
REMEDY = "remove the folder, and start again"


def define_flags() -> None:
    config_flags.DEFINE_config_file("config", None, "A file of configs/sheets/.")
    flags.DEFINE_string("workdir", None, "Folder of tokenizer, corpora and runs.")
    flags.DEFINE_string("only", "", "Regex of the experiments to run, searched in NAME_SEED.")
    flags.DEFINE_bool("list", False, "Show what is done and what is left, and run nothing.")
    flags.DEFINE_bool("sheet", False, "Write the page of results from the records, and run nothing.")


class Comparison:
    """The experiments of a sheet, their records, and the folder of their runs."""

    def __init__(self, sheet: dict[str, Any], workdir: Path):
        """Raises UserError for an inconsistent sheet or a damaged record."""
        if sheet["data"]:
            sheet = sheet | {"data": str(Path(sheet["data"]).absolute())}  # fine-tuning runs in another folder
        self.sheet, self.workdir = sheet, workdir
        self.experiments = experiments_of(sheet)
        self.folder = ROOT / sheet["records"] if sheet["records"] else workdir / "records"
        self.records: Records = read_records(self.folder, self.experiments)

    def missing(self, only: str = "") -> list[Experiment]:
        """Returns the experiments without a record whose names match. Raises UserError for an invalid regex."""
        try:
            chosen = [experiment for experiment in self.experiments if re.search(only, experiment.key)]
        except re.error as error:
            raise UserError(f"--only={only}: an invalid regex ({error}); use e.g. '^bert'") from None
        if not chosen:
            names = listed(sorted({experiment.name for experiment in self.experiments}))
            raise UserError(f"--only={only}: matches no experiment; there are {names}")
        return [experiment for experiment in chosen if experiment.key not in self.records]

    def status(self, only: str = "") -> list[str]:
        """Returns a line for each experiment, and the time that those without a record will take."""
        lines, minutes, left = [], 0.0, {experiment.key for experiment in self.missing(only)}
        for experiment in self.experiments:
            record, needed = self.records.get(experiment.key), self.minutes(experiment)
            if record:
                state = f"done on {record.date}, {record.commit[:8] or 'no commit'}"
            elif experiment.key in left:
                state, minutes = f"{needed:.0f} minutes", minutes + needed
            else:
                state = "left, not chosen"
            lines.append(f"{experiment.key:24} {state}")
        return [*lines, f"{len(self.records)} of {len(self.experiments)} are done; {minutes / 60:.1f} hours are left"]

    def minutes(self, experiment: Experiment) -> float:
        return expected_minutes(experiment, self.records, self.sheet["minutes"])

    # --------------------------------------------------------------------------------------------- running experiments

    def run_all(self, only: str) -> None:
        """Runs the chosen experiments without a record. Raises UserError, at the end, if some of them failed."""
        data = self.sheet["data"]
        if not data or not Path(data).is_dir():
            raise UserError(
                f"data={data!r}: no such folder; set --config.data to the folder with text/, glue/ and ner/"
            )
        left, failed = self.missing(only), list[Experiment]()
        if left:
            source = self.sheet["corpus"]
            corpora = prepare_corpora(source, source["source"].replace("{data}", data), self.workdir)
            self.check_corpora(corpora)
        for number, experiment in enumerate(left, 1):
            minutes = sum(map(self.minutes, left[number - 1 :]))
            print(f"{number} of {len(left)}: {plain(experiment.key)}; {minutes / 60:.1f} hours are left", flush=True)
            try:
                self.run(experiment, corpora)
            except UserError as error:  # the others can still be run
                print(f"failed: {error}", file=sys.stderr, flush=True)
                failed.append(experiment)
        self.write_page()
        if failed:
            log = failed[0].folder(self.workdir) / LOG
            raise UserError(f"{len(failed)} experiments failed; see {log}, and start again")

    def check_corpora(self, corpora: dict[str, Path]) -> None:
        """Raises UserError if records are of another corpus, as on a machine with other data."""
        hashes = {name: corpus_hash(folder) for name, folder in corpora.items()}
        for experiment in self.experiments:
            record = self.records.get(experiment.key)
            if record and record.corpus != hashes[experiment.corpus]:
                raise UserError(
                    f"{record_path(self.folder, experiment)}: of corpus {record.corpus}, but {corpora[experiment.corpus]} is "
                    f"{hashes[experiment.corpus]}, so results would not compare; use the same data, or remove the records"
                )

    def run(self, experiment: Experiment, corpora: dict[str, Path]) -> None:
        """Runs an experiment, writes its record, and deletes runs that are no longer needed. Raises UserError if it fails."""
        self.pretrain(experiment, corpora)
        run, folder = experiment.run(self.workdir), experiment.folder(self.workdir)
        curve = list[Point]()
        if experiment.is_pretrained:
            self.timed(experiment, "evaluation", evaluation_command(experiment, self.workdir))
            rows = read_json(run / EVALUATION, dict[int, Row], REMEDY)
            curve = [Point(step, rounded(row)) for step, row in sorted(rows.items())]
            steps = experiment.pretraining().train.num_steps
            if not curve or curve[-1].step != steps:
                raise UserError(f"{run}: checkpoint {steps} was not evaluated; {REMEDY}")
        scores = {}
        for cell in experiment.cells(self.workdir, self.sheet["data"]):
            place = folder / "tasks" / cell.task
            if not (place / experiment_sheet.RESULT).exists():
                experiment_sheet.run_cell(cell, place)
            outcome = read_json(place / experiment_sheet.RESULT, experiment_sheet.Outcome, REMEDY)
            scores[cell.task] = rounded(outcome.scores)
            self.note_seconds(experiment, cell.task, outcome.seconds)
        config = experiment.pretraining()
        record = Record(
            name=experiment.name,
            seed=experiment.seed,
            digest=experiment.digest,
            settings=experiment.settings_of_pretraining,
            date=today(),
            commit=commit(),
            versions={"python": platform.python_version(), "jax": jax.__version__},
            cores=len(os.sched_getaffinity(0)),
            seconds=self.seconds(experiment),
            corpus=corpus_hash(corpora[experiment.corpus]),
            corpus_tokens=Corpus.open(corpora[experiment.corpus], "train").num_tokens,
            parameters=count(load(run).params["encoder"]),
            steps=config.train.num_steps if experiment.is_pretrained else 0,
            tokens_per_step=tokens_per_step(config),
            padding=padding_share(get_config(str(run)), run),
            flops_per_step=config_flops(get_config(str(run)), run),
            curve=curve,
            held_out=rounded(default_evaluation(run)[1]) if experiment.is_pretrained else {},
            scores=scores,
            speed=self.speed(experiment),
        )
        write_record(self.folder, experiment, record)
        self.records[experiment.key] = record
        self.delete_runs()

    def pretrain(self, experiment: Experiment, corpora: dict[str, Path]) -> None:
        """Pretrains, after the teacher, unless the run is complete. Raises UserError if it fails."""
        folder, teacher = experiment.folder(self.workdir), teacher_of(experiment, self.experiments)
        if teacher:
            self.pretrain(teacher, corpora)
        if "pretraining" not in self.seconds(experiment):
            folder.mkdir(parents=True, exist_ok=True)
            place = teacher.run(self.workdir) if teacher else None
            command = pretraining_command(experiment, self.workdir, corpora[experiment.corpus], place)
            self.timed(experiment, "pretraining", command, lambda: experiment.run(self.workdir).exists())

    def timed(
        self, experiment: Experiment, name: str, command: list[str], is_resumed: Callable[[], bool] = lambda: False
    ) -> None:
        """Runs a command of an experiment unless it is complete, and notes its time. Raises UserError if it fails."""
        if name not in self.seconds(experiment):
            resumed, start = is_resumed(), os.times()
            run_logged(command, experiment.folder(self.workdir) / LOG)
            end = os.times()
            # CPU time: other work on the machine does not count. That of a part is meaningless.
            seconds = end.children_user + end.children_system - start.children_user - start.children_system
            self.note_seconds(experiment, name, None if resumed else seconds)

    def seconds(self, experiment: Experiment) -> dict[str, float | None]:
        """Reads how long the complete parts of an experiment took: CPU time and, of tasks, time."""
        path = experiment.folder(self.workdir) / SECONDS
        return read_json(path, dict[str, float | None], REMEDY) if path.exists() else {}

    def note_seconds(self, experiment: Experiment, name: str, seconds: float | None) -> None:
        rounded = None if seconds is None else round(seconds, 1)
        write_json(experiment.folder(self.workdir) / SECONDS, self.seconds(experiment) | {name: rounded})

    def speed(self, experiment: Experiment) -> dict[str, float] | None:
        """Returns texts per second of a student and its teacher, for the texts of a task of GLUE."""
        teacher, task = teacher_of(experiment, self.experiments), self.sheet["speed_task"]
        if not teacher or not task:
            return None
        rows = glue.read_split(Path(self.sheet["data"]) / "glue", glue.task_of(task), "dev")
        runs = [one.run(self.workdir) for one in (experiment, teacher)]
        student_rate, teacher_rate = texts_per_second(runs, [text for row in rows for text in row.texts])
        return {"student": student_rate, "teacher": teacher_rate}

    def delete_runs(self) -> None:
        """Deletes the runs of finished experiments that are not the teachers of unfinished ones."""
        for experiment in self.experiments:
            students = students_of(experiment, self.experiments)
            if experiment.key in self.records and all(student.key in self.records for student in students):
                shutil.rmtree(experiment.folder(self.workdir), ignore_errors=True)

    def write_page(self) -> None:
        """Writes README.md and plots next to the records."""
        recipes_page.write(self.folder, self.experiments, self.records)
        print(f"{plain(str(self.folder))}/README.md: {len(self.records)} of {len(self.experiments)} experiments")


def main() -> None:
    values = flags.FLAGS
    if not values.workdir or values.config is None:
        raise UserError("--workdir or --config is missing; set a folder, and a file of configs/sheets/")
    comparison = Comparison(values.config.to_dict(), Path(values.workdir).absolute())
    if values.list:
        print("\n".join(comparison.status(values.only)))
    elif values.sheet:
        comparison.write_page()
    else:
        comparison.run_all(values.only)


if __name__ == "__main__":
    define_flags()
    run_command(main)
