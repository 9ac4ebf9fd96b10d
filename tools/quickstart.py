"""The whole way on this machine: corpus, tokenizer, pretraining that is stopped and goes on, evaluation, fine-tuning, report.

    launch/quickstart.sh [--workdir=runs/quickstart] [--objectives=mlm,nsp]

Every stage is a command that is printed and that you can give yourself. Stages that are complete are passed over, so the
same command goes on with a quickstart that was interrupted. Sizes and steps are those of configs/quickstart.py and
configs/quickstart_text.py.
"""

import ast
import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import flags
from rich.console import Console

from bert_jax import cli
from bert_jax.errors import UserError
from bert_jax.files import write_json
from configs import quickstart as pretraining_config
from tools.quickstart_lib import ENVIRONMENT, Commands, copy_newest_checkpoint, last_step, metric_rows, same_losses
from tools.quickstart_summary import show_summary, write_notes

_WORKDIR = flags.DEFINE_string("workdir", "runs/quickstart", "folder for everything that the quickstart makes")
_OBJECTIVES = flags.DEFINE_string("objectives", "mlm,nsp", "what to pretrain on: mlm, with nsp or sop")
_PRETRAIN = flags.DEFINE_multi_string("pretrain", [], "a change to configs/quickstart.py: SECTION.FIELD=VALUE")
_FINETUNE = flags.DEFINE_multi_string("finetune", [], "a change to configs/quickstart_text.py: SECTION.FIELD=VALUE")
_DOCSTRINGS = flags.DEFINE_string("docstrings", "", "a JSONL file of {module, name, text} instead of Python's own")

STATE_FILE = "quickstart.json"
STEPS_BEFORE_STOP, STEPS_AFTER_STOP = 10, 20  # that are replayed, uninterrupted
TASKS = {"from_scratch": "scratch", "frozen": "frozen", "finetuned": "finetuned"}  # folder: variant of the config
FILL_MASKS = [
    "Returns the [MASK] of the array.",
    "If [MASK], the input is copied.",
    "Raised when the file does [MASK] exist.",
    "This function is deprecated and will be [MASK] in a future version.",
    "The default [MASK] is None.",
    "Create a new figure, or activate an [MASK] figure.",
]
SHOWN_PREDICTIONS = 6
console = Console(highlight=False)


class Quickstart:
    """The stages, in order, each a method; its state is the file `quickstart.json`."""

    def __init__(
        self, workdir: Path, objectives: str, overrides: list[str], task_overrides: list[str], docstrings: str
    ):
        """Raises UserError: the folder holds a quickstart with other settings."""
        self.workdir = workdir
        self.run, self.corpus, self.data = workdir / "pretrain", workdir / "corpus", workdir / "data"
        self.docstrings = docstrings
        self.overrides = [f"--config.{change}" for change in (f"objectives={objectives}", *overrides)]
        self.task_overrides = [f"--config.{change}" for change in task_overrides]
        files = {part: f"{self.data}/{part}.jsonl" for part in ("train", "validation")}
        self.task_files = [f"--config.init_from={self.run}"]
        self.task_files += [f"--config.data.{part}={file}" for part, file in files.items()]
        self.config = changed_config(objectives, overrides)
        self.commands = Commands(console)
        settings = {"objectives": objectives, "pretrain": overrides, "finetune": task_overrides}
        workdir.mkdir(parents=True, exist_ok=True)
        state_file = workdir / STATE_FILE
        self.state: dict[str, Any] = (
            json.loads(state_file.read_text(encoding="utf-8"))
            if state_file.exists()
            else {"settings": settings, "seconds": {}}
        )
        if self.state["settings"] != settings:
            raise UserError(f"{workdir}: begun with {self.state['settings']}; give the same or another --workdir")

    def stages(self) -> dict[str, Callable[[], None]]:
        """Title: stage. The titles are the keys in the state file."""
        return {
            "Read the documentation of this Python": self.read_documentation,
            "Train a tokenizer": self.train_tokenizer,
            "Prepare the corpus": self.prepare_corpus,
            "Look at the untrained model": self.look_at_untrained,
            "Pretrain, and be interrupted half-way": self.pretrain_and_stop,
            "Go on from the checkpoint": self.resume,
            "Replay the interruption, uninterrupted": self.replay,
            "Evaluate on held-out modules": self.evaluate,
            "Fill masks": self.fill_masks,
            "Which package? The classical way": self.linear,
            "Which package? Without pretraining": lambda: self.finetune("from_scratch"),
            "Which package? With the pretrained encoder, frozen": lambda: self.finetune("frozen"),
            "Which package? With the pretrained encoder": lambda: self.finetune("finetuned"),
            "Predict": self.predict,
        }

    def go(self) -> None:
        """Runs the stages that are not complete yet, then reports."""
        stages = self.stages()
        console.print(f"[dim]commands run with {' '.join(f'{name}={value}' for name, value in ENVIRONMENT.items())}")
        for number, (title, stage) in enumerate(stages.items(), 1):
            done = self.state["seconds"].get(title)
            note = "" if done is None else f"[dim] · complete, {done:.0f} s"
            console.print(f"\n[bold cyan]{number}/{len(stages)}[/] [bold]{title}[/]{note}")
            if done is None:
                start = time.monotonic()
                stage()
                self.finished(title, time.monotonic() - start)
        write_notes(self.workdir, self.state)
        self.commands.run("tools/report.py", f"--workdir={self.run}")
        show_summary(self.workdir, console)

    def finished(self, title: str, seconds: float) -> None:
        """Remembers that a stage is complete."""
        self.state["seconds"][title] = round(seconds, 1)
        write_json(self.workdir / STATE_FILE, self.state)
        console.print(f"[dim]{seconds:.0f} s")

    @property
    def has_mlm(self) -> bool:
        return "mlm" in self.config.objectives

    # ------------------------------------------------------------------------------------------------------------ data

    def read_documentation(self) -> None:
        sizes = [
            f"--held_out={pretraining_config.HELD_OUT}",
            f"--num_labels={pretraining_config.NUM_LABELS}",
            f"--most_per_label={pretraining_config.MOST_PER_LABEL}",
        ]
        source = [f"--docstrings={self.docstrings}"] if self.docstrings else []
        self.commands.run("tools/python_docs_task.py", f"--output={self.data}", *sizes, *source)

    def train_tokenizer(self) -> None:
        size = f"--vocab_size={self.config.model.vocab_size}"
        source = f"--source=jsonl:{self.data}/documents.jsonl"
        self.commands.run("tools/train_tokenizer.py", source, size, f"--output={self.workdir}/tokenizer")

    def prepare_corpus(self) -> None:
        self.commands.run(
            "tools/prepare_corpus.py",
            f"--source=jsonl:{self.data}/documents.jsonl",
            f"--tokenizer={self.workdir}/tokenizer",
            f"--output={self.corpus}",
            f"--held_out={pretraining_config.HELD_OUT}",
            "--workers=2",
        )

    # ----------------------------------------------------------------------------------------------------- pretraining

    def look_at_untrained(self) -> None:
        """The first step has learning rate 0, as warm-up begins there: after it the parameters are still the initial ones."""
        folder = self.workdir / "untrained"
        self.commands.run(*self.pretrain(folder), "--config.train.num_steps=1")
        self.predict_masks(folder)

    def pretrain_and_stop(self) -> None:
        num_steps = self.config.train.num_steps
        # A little later than half-way, where there is a checkpoint: the replay is to begin before the stop.
        half = num_steps // 2 + min(STEPS_BEFORE_STOP, num_steps // 20)
        code = self.commands.run_until(half, self.run, *self.pretrain(self.run))
        if code == 0:
            raise UserError(f"{self.run}: was complete before it could be interrupted; use more train.num_steps")
        stopped = last_step(self.run)
        console.print(f"SIGTERM: saved at step {stopped}, exit code {code}")
        replayed_from = copy_newest_checkpoint(self.run, self.workdir / "replay", before=stopped)
        self.state |= {"stopped": stopped, "replayed_from": replayed_from}

    def resume(self) -> None:
        self.commands.run(*self.pretrain(self.run))

    def replay(self) -> None:
        folder, stop = self.workdir / "replay", self.state["stopped"]
        last = min(stop + STEPS_AFTER_STOP, self.config.train.num_steps)
        console.print(f"a copy of the run, from its checkpoint of step {self.state['replayed_from']} to step {last}")
        self.commands.run_until(last, folder, *self.pretrain(folder))
        compared, identical = same_losses(self.run, folder)
        self.state |= {"compared": compared, "identical": identical}
        console.print(f"{identical} of {compared} losses identical to the last bit")

    def evaluate(self) -> None:
        self.commands.run("-m", "bert_jax.evaluate", f"--workdir={self.run}")
        if self.has_mlm:
            self.commands.run("tools/unigram_baseline.py", f"--workdir={self.run}")

    def fill_masks(self) -> None:
        self.predict_masks(self.run)

    def predict_masks(self, folder: Path) -> None:
        if self.has_mlm:
            texts = self.workdir / "fill_mask.txt"
            texts.write_text("".join(f"{text}\n" for text in FILL_MASKS))
            output = f"--output={folder}/fill_mask.jsonl"
            self.commands.run("-m", "bert_jax.predict", f"--workdir={folder}", f"--input={texts}", output)

    def pretrain(self, folder: Path) -> list[str]:
        """The command that trains, or goes on training, the run in a folder."""
        config = ["--config=configs/quickstart.py", f"--config.data.corpus={self.corpus}", *self.overrides]
        return ["-m", "bert_jax.pretrain", f"--workdir={folder}", *config]

    # -------------------------------------------------------------------------------------------------------- the task

    def linear(self) -> None:
        command = ["tools/linear_models.py", "--over=words", f"--output={self.workdir}/linear"]
        self.commands.run(*command, "--config=configs/quickstart_text.py", *self.task_files)

    def finetune(self, name: str) -> None:
        folder = self.workdir / name
        self.commands.run(
            "-m",
            "bert_jax.finetune",
            f"--workdir={folder}",
            f"--config=configs/quickstart_text.py:{TASKS[name]}",
            *self.task_files,
            *self.task_overrides,
        )
        console.print(f"held-out accuracy {metric_rows(folder)[-1]['eval/accuracy']:.1%}")

    def predict(self) -> None:
        rows = [json.loads(line) for line in (self.data / "validation.jsonl").read_text(encoding="utf-8").splitlines()]
        shown = rows[:: max(1, len(rows) // SHOWN_PREDICTIONS)][:SHOWN_PREDICTIONS]
        inputs, folder = self.workdir / "predict.jsonl", self.workdir / "finetuned"
        inputs.write_text("".join(json.dumps({name: row[name] for name in ("text", "module")}) + "\n" for row in shown))
        output = f"--output={self.workdir}/predictions.jsonl"
        self.commands.run("-m", "bert_jax.predict", f"--workdir={folder}", f"--input={inputs}", output)


def changed_config(objectives: str, overrides: list[str]) -> Any:
    """configs/quickstart.py with changes 'section.field=value'."""
    config = pretraining_config.get_config()
    config.objectives = tuple(objectives.split(","))
    for change in overrides:
        name, _, value = change.partition("=")
        config.update_from_flattened_dict({name: ast.literal_eval(value)})
    return config


def main() -> None:
    start = time.monotonic()
    settings = (_OBJECTIVES.value, _PRETRAIN.value, _FINETUNE.value, _DOCSTRINGS.value)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # an exception: it ends the command too
    try:
        Quickstart(Path(_WORKDIR.value), *settings).go()
    except KeyboardInterrupt:
        console.print("\ninterrupted; the same command goes on from here")
        sys.exit(128 + signal.SIGINT)
    console.print(f"[dim]{time.monotonic() - start:.0f} s in all")


if __name__ == "__main__":
    cli.run(main)
