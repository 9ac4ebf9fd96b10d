"""Runs everything on this machine: corpus, tokenizer, pretraining that is stopped and resumed, fine-tuning, report.

    launch/quickstart.sh [--workdir=runs/quickstart] [--objectives=mlm] [--seeds=3]

Each stage prints its commands, which you can run yourself. Completed stages are skipped, so after an interruption the same
command continues. Sizes and steps are those of configs/quickstart.py and configs/quickstart_tokens.py. With --seeds=3 all
is done three times, with different samples of labelled sentences, and the scores are averaged.
"""

import ast
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags
from rich.console import Console
from rich.table import Table

from bert_jax.cli.main import run_command
from bert_jax.errors import UserError
from bert_jax.files import read_json, read_text, write_json, write_text
from configs import quickstart as pretraining_config
from tools.lib import quickstart_commands as commands
from tools.lib import quickstart_summary
from tools.lib.quickstart_summary import State
from tools.lib.run_files import literal

MESHES = {"one_device": {}, "two_by_two": {"data": 2, "fsdp": 2}}  # folder: section `parallel` of the config
STEPS_BEFORE_STOP, STEPS_AFTER_STOP = 10, 20  # replayed without interruption
VARIANTS = {"from_scratch": "scratch", "finetuned": "finetuned"}  # folder: variant of the config
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


class Options(NamedTuple):
    """Flags of a quickstart."""

    objectives: str
    pretrain: Sequence[str]  # changes to configs/quickstart.py: SECTION.FIELD=VALUE
    finetune: Sequence[str]  # changes to configs/quickstart_tokens.py
    task: Sequence[str]  # flags of tools/python_docs_task.py, without the dashes
    seed: int


def define_flags() -> None:
    # Not at import, because commands in forked processes import this file and have the same flags.
    flags.DEFINE_string("workdir", "runs/quickstart", "folder for all outputs")
    flags.DEFINE_string("objectives", "mlm", "pretraining objectives: mlm, alone or with nsp or sop")
    flags.DEFINE_multi_string("pretrain", [], "a change to configs/quickstart.py: SECTION.FIELD=VALUE")
    flags.DEFINE_multi_string("finetune", [], "a change to configs/quickstart_tokens.py: SECTION.FIELD=VALUE")
    flags.DEFINE_multi_string("task", [], "a flag of tools/python_docs_task.py: NAME=VALUE")
    flags.DEFINE_integer("seed", 0, "seed of the labelled sentences, initialisation, masks and order", lower_bound=0)
    help_of_seeds = "number of seeds; with more than one, everything is run for each, in folders of WORKDIR"
    flags.DEFINE_integer("seeds", 1, help_of_seeds, lower_bound=1)


class Quickstart:
    """The stages, one method each; the state is in quickstart.json."""

    def __init__(self, workdir: Path, options: Options):
        """Raises UserError if the folder holds a quickstart with other options."""
        self.workdir, self.options = workdir, options
        self.run, self.corpus, self.data = workdir / "pretrain", workdir / "corpus", workdir / "data"
        self.config = changed_config(options)
        self.commands = commands.Commands(console)
        workdir.mkdir(parents=True, exist_ok=True)
        self.state_file, self.state = workdir / "quickstart.json", State(options._asdict())
        if self.state_file.exists():
            self.state = read_json(self.state_file, State, "use another --workdir")
        if self.state.settings != options._asdict():
            raise UserError(f"{workdir}: started with {self.state.settings}; use the same flags or another --workdir")

    def stages(self) -> dict[str, Callable[[], None]]:
        """Returns {title: stage}; the titles are keys in the state file."""
        return {
            "Read the documentation of this Python": self.read_documentation,
            "Train a tokenizer, prepare the corpus": self.prepare_corpus,
            "The same steps on one device and on a 2x2 mesh": self.compare_meshes,
            "Pretrain, and be interrupted half-way": self.pretrain_and_stop,
            "Resume from the checkpoint": self.resume,
            "Replay the interruption, uninterrupted": self.replay,
            "Fill masks": self.fill_masks,
            "Which words are code? A linear model": lambda: self.linear("words"),
            "Which words are code? The encoder, not pretrained": lambda: self.finetune("from_scratch"),
            "Which words are code? The pretrained encoder, frozen": lambda: self.linear("features"),
            "Which words are code? The pretrained encoder, fine-tuned": lambda: self.finetune("finetuned"),
            "Predict": self.predict,
        }

    def run_all(self) -> None:
        """Runs the incomplete stages and writes the report."""
        stages = self.stages()
        environment = " ".join(f"{name}={value}" for name, value in commands.ENVIRONMENT.items())
        console.print(f"[dim]commands run with {environment}")
        for number, (title, stage) in enumerate(stages.items(), 1):
            done = self.state.seconds.get(title)
            note = "" if done is None else f"[dim] · complete, {done:.0f} s"
            console.print(f"\n[bold cyan]{number}/{len(stages)}[/] [bold]{title}[/]{note}")
            if done is None:
                start = time.monotonic()
                stage()
                seconds = time.monotonic() - start
                self.state.seconds[title] = round(seconds, 1)
                write_json(self.state_file, self.state)
                console.print(f"[dim]{seconds:.0f} s")
        quickstart_summary.write_notes(self.workdir, self.state)
        self.commands.run("tools/report.py", f"--workdir={self.run}")
        quickstart_summary.show_summary(self.workdir, console)

    def read_documentation(self) -> None:
        sizes = [f"--held_out={pretraining_config.HELD_OUT}", f"--seed={self.options.seed}"]
        changes = [f"--{change}" for change in self.options.task]
        self.commands.run("tools/python_docs_task.py", f"--output={self.data}", *sizes, *changes)

    def prepare_corpus(self) -> None:
        tokenizer, source = f"{self.workdir}/tokenizer", f"--source=jsonl:{self.data}/documents.jsonl"
        size = f"--vocab_size={self.config.model.vocab_size}"
        self.commands.run("tools/train_tokenizer.py", source, size, "--cased", f"--output={tokenizer}")
        options = f"--tokenizer={tokenizer}", f"--output={self.corpus}", f"--held_out={pretraining_config.HELD_OUT}"
        self.commands.run("tools/prepare_corpus.py", source, *options, "--workers=2")

    def compare_meshes(self) -> None:
        """Runs a few steps twice; on any mesh the examples are the same, and the losses up to rounding."""
        measured = []
        for name, sizes in MESHES.items():
            changes = {"train.num_steps": pretraining_config.COMPARED_STEPS, "train.eval_examples": 64}
            changes |= {f"parallel.{axis}": size for axis, size in sizes.items()}
            options = [f"--config.{option}={value}" for option, value in changes.items()]
            environment = commands.FOUR_DEVICES if sizes else {}
            self.commands.run(*self.pretrain(self.workdir / name), *options, environment=environment)
            measured.append(commands.losses(self.workdir / name))
        one, other = measured
        self.state.meshes = [(step, one[step], other[step]) for step in sorted(one.keys() & other.keys())]
        quickstart_summary.show_meshes(self.state.meshes, console)

    def pretrain_and_stop(self) -> None:
        num_steps = self.config.train.num_steps
        # A little after the checkpoint half-way, so that the replay starts before the stop.
        half = num_steps // 2 + min(STEPS_BEFORE_STOP, num_steps // 20)
        code = self.commands.run_until(half, self.run, *self.pretrain(self.run))
        if code == 0:
            raise UserError(f"{self.run}: finished before it could be interrupted; use more train.num_steps")
        self.state.stopped = stopped = commands.last_step(self.run)
        console.print(f"SIGTERM: saved at step {stopped}, exit code {code}")
        self.state.replayed_from = commands.copy_latest_checkpoint(self.run, self.workdir / "replay", before=stopped)

    def resume(self) -> None:
        self.commands.run(*self.pretrain(self.run))
        if "mlm" in self.config.objectives:
            self.commands.run("tools/unigram_baseline.py", f"--workdir={self.run}")

    def replay(self) -> None:
        folder, stop = self.workdir / "replay", self.state.stopped
        last = min(stop + STEPS_AFTER_STOP, self.config.train.num_steps)
        console.print(f"copy of the run, from the checkpoint of step {self.state.replayed_from} to step {last}")
        self.commands.run_until(last, folder, *self.pretrain(folder))
        self.state.compared, self.state.identical = compared, identical = commands.same_losses(self.run, folder)
        console.print(f"{identical} of {compared} losses identical to the last bit")

    def fill_masks(self) -> None:
        if "mlm" in self.config.objectives:
            texts = self.workdir / "fill_mask.txt"
            write_text(texts, "".join(f"{text}\n" for text in FILL_MASKS))
            output = f"--output={self.run}/fill_mask.jsonl"
            self.commands.run("-m", "bert_jax.predict", f"--workdir={self.run}", f"--input={texts}", output)

    def pretrain(self, folder: Path) -> list[str]:
        """Returns the command that starts or resumes the run in a folder."""
        changes = (f"objectives={self.options.objectives}", f"train.seed={self.options.seed}", *self.options.pretrain)
        options = [f"--config.data.corpus={self.corpus}", *(f"--config.{change}" for change in changes)]
        return ["-m", "bert_jax.pretrain", f"--workdir={folder}", "--config=configs/quickstart.py", *options]

    @property
    def task_files(self) -> list[str]:
        files = {"train": f"{self.data}/train.conll", "validation": f"{self.data}/validation.conll"}
        return [f"--config.init_from={self.run}", *(f"--config.data.{part}={file}" for part, file in files.items())]

    def linear(self, over: str) -> None:
        """Fits a linear model over the words, or over the last layer of the pretrained encoder."""
        command = ["tools/linear_models.py", f"--over={over}", f"--output={self.workdir}/{over}"]
        self.commands.run(*command, "--config=configs/quickstart_tokens.py", *self.task_files)

    def finetune(self, name: str) -> None:
        config = f"--config=configs/quickstart_tokens.py:{VARIANTS[name]}"
        changes = [f"--config.{change}" for change in (f"train.seed={self.options.seed}", *self.options.finetune)]
        folder = f"--workdir={self.workdir / name}"
        self.commands.run("-m", "bert_jax.finetune", folder, config, *changes, *self.task_files)
        console.print(f"held-out F1 {quickstart_summary.held_out_f1(self.workdir / name):.3f}")

    def predict(self) -> None:
        """Tags some of the held-out sentences, spread over the file."""
        held_out = read_text(self.data / "validation.conll").strip().split("\n\n")
        shown = held_out[:: max(1, len(held_out) // SHOWN_PREDICTIONS)][:SHOWN_PREDICTIONS]
        inputs, output = self.workdir / "shown.conll", f"--output={self.workdir}/predictions.conll"
        write_text(inputs, "\n\n".join(shown) + "\n")
        folder = self.workdir / "finetuned"
        self.commands.run("-m", "bert_jax.predict", f"--workdir={folder}", f"--input={inputs}", output)


def changed_config(options: Options) -> Any:
    """Returns the config of configs/quickstart.py with the changes in the options."""
    config = pretraining_config.get_config()
    config.objectives = tuple(options.objectives.split(","))
    for change in options.pretrain:
        name, _, value = change.partition("=")
        config.update_from_flattened_dict({name: ast.literal_eval(value)})
    return config


def run_seeds(workdir: Path, options: Options, seeds: int) -> None:
    """Runs everything for each seed, in WORKDIR/seed_N, and writes means and deviations to WORKDIR/scores.json."""
    folders = []
    for seed in range(options.seed, options.seed + seeds):
        console.rule(f"seed {seed}")
        Quickstart(workdir / f"seed_{seed}", options._replace(seed=seed)).run_all()
        folders.append(workdir / f"seed_{seed}")
    scores = quickstart_summary.over_seeds(folders)
    write_json(workdir / "scores.json", scores)
    table = Table(f"{seeds} seeds", "mean", "standard deviation", "each")
    for name, statistics in scores.items():
        each = " ".join(f"{score:.3f}" for score in statistics["seeds"])
        table.add_row(literal(name), f"{statistics['mean']:.3f}", f"{statistics['std']:.3f}", each)
    console.print(table)


def main() -> None:
    start, values = time.monotonic(), flags.FLAGS
    options = Options(values.objectives, values.pretrain, values.finetune, values.task, values.seed)
    # SystemExit also ends the running command.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        if values.seeds > 1:
            run_seeds(Path(values.workdir), options, values.seeds)
        else:
            Quickstart(Path(values.workdir), options).run_all()
    except KeyboardInterrupt:
        console.print("\ninterrupted; the same command continues from here")
        sys.exit(128 + signal.SIGINT)
    console.print(f"[dim]{time.monotonic() - start:.0f} s in all")
    if values.seeds == 1:
        folder = values.workdir
        console.print("\nTo try both models on a page: launch/setup.sh --serve; source .venv/bin/activate; then")
        console.print(
            f"python -m bert_jax.serve --workdir={folder}/pretrain --workdir={folder}/finetuned", soft_wrap=True
        )


if __name__ == "__main__":
    define_flags()
    run_command(main)
