"""Pretrains an encoder within a time budget, evaluates it on held-out text and on GLUE, and writes a record of the run.

    python tools/cramming.py --budget=1h --source='text:texts/*.txt' --glue_dir=GLUE --workdir=runs/1h

The recipe is configs/cramming.py. With --corpus instead of --source, the corpus is one that tools/prepare_corpus.py made. The
budget counts only pretraining: reading the corpus, compilation, steps, evaluation and checkpoints; not the tokenizer and the
corpus, the short runs that measure how many steps fit, nor fine-tuning. If interrupted, the same command continues; as
starting again takes time, such a run may exceed its budget, and the record says so. At the end
it prints a row for the table in docs/results.md; WORKDIR/record.json goes to docs/records/.
"""

import ast
import difflib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from absl import flags
from ml_collections import ConfigDict

from bert_jax.cli.main import run_command
from bert_jax.data.corpus.format import Corpus
from bert_jax.data.corpus.index import TOKENIZER_FOLDER, read_index
from bert_jax.data.datasets import glue
from bert_jax.data.tokenizer.files import holds_tokenizer
from bert_jax.data.tokenizer.tokenizer import Tokenizer
from bert_jax.errors import UserError, listed
from bert_jax.files import write_json
from bert_jax.library import load
from bert_jax.model.attention.attend import check_attention
from bert_jax.model.build import count
from bert_jax.parallel import hosts
from bert_jax.parallel.batches import check_batch_size
from bert_jax.parallel.mesh import ParallelConfig, batch_shards, make_mesh
from bert_jax.run import run_training
from bert_jax.run_folder.provenance import commit
from bert_jax.train.loop import EXIT_STOPPED, Stopped
from bert_jax.train.step import Training
from bert_jax.train.writers.base import Row
from configs import cramming as recipe
from configs.finetune import glue as finetuning_recipe
from configs.sheets.transfer import GLUE
from tools.lib import cramming_budget, cramming_records
from tools.lib.corpus_flag import check_corpus_flag
from tools.lib.cramming_budget import tokens_per_step
from tools.lib.cramming_records import Record
from tools.lib.cramming_state import State
from tools.lib.step_of_config import losses_of, of_phase, pretraining_config

ROOT = Path(__file__).resolve().parents[1]
VOCABULARY_MULTIPLE = 128  # rows of the embedding, for matrix units
# Initial weights of fine-tuned encoders, and what they change in configs/finetune/glue.py.
INITIAL_WEIGHTS = {"pretrained": {}, "scratch": {"from_scratch": True}}


class Options(NamedTuple):
    """Flags that determine the result."""

    budget: str
    source: str
    corpus: str
    glue_dir: str
    tasks: Sequence[str]
    seeds: int
    pretrain: Sequence[str]
    finetune: Sequence[str]


def define_flags() -> None:
    flags.DEFINE_string("budget", None, "time for pretraining: a number and a unit, s, m, h or d, e.g. 10m, 1h, 1d")
    flags.DEFINE_string(
        "source", "", "text of a new tokenizer and corpus: text:GLOB, jsonl:GLOB[:FIELD] or python-docs"
    )
    flags.DEFINE_string("corpus", "", "folder made by tools/prepare_corpus.py, instead of --source")
    flags.DEFINE_string("glue_dir", "", "folder with GLUE's official folders")
    flags.DEFINE_list("tasks", list(GLUE), "tasks of GLUE; empty for none")
    flags.DEFINE_integer("seeds", 1, "fine-tuned runs of each task", lower_bound=1)
    flags.DEFINE_string("workdir", None, "folder for all outputs")
    flags.DEFINE_multi_string("pretrain", [], "a change to configs/cramming.py: SECTION.FIELD=VALUE")
    flags.DEFINE_multi_string("finetune", [], "a change to configs/finetune/glue.py: SECTION.FIELD=VALUE")


class ReferenceRun:
    """The stages, one method each; the state is in cramming.json."""

    def __init__(self, workdir: Path, options: Options):
        """Raises UserError for invalid options, or if the folder holds a run with other ones."""
        self.workdir, self.options, self.run = workdir, options, workdir / "pretrain"
        self.budget = recipe.seconds_of(options.budget)
        check(options)
        self.state_file = workdir / "cramming.json"
        self.state = State.of(self.state_file, options._asdict())
        self.corpus = Path(options.corpus or workdir / "corpus")
        self.platform = make_mesh(ParallelConfig()).devices.flat[0].platform
        self.check_step()  # before anything is prepared
        for task in options.tasks:
            self.finetuning_config(task, {})

    def run_all(self) -> Record:
        """Runs the incomplete stages; returns the record."""
        self.workdir.mkdir(parents=True, exist_ok=True)
        if self.options.source:
            self.prepare_corpus()
        self.calibrate()
        self.pretrain()
        self.finetune()
        return self.record()

    def config(self, num_steps: int) -> ConfigDict:
        """Returns the config of pretraining for some steps; its vocabulary is that of the corpus, once that exists."""
        config = recipe.get_config(f"{self.options.budget},{self.platform},{num_steps}")
        config.data.corpus = str(self.corpus)
        if holds_tokenizer(self.corpus / TOKENIZER_FOLDER):
            size = Tokenizer.load(self.corpus / TOKENIZER_FOLDER).vocab_size
            config.model.vocab_size = -(-size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
        return changed(config, "--pretrain", self.options.pretrain)

    def check_step(self) -> None:
        """Raises UserError for changes to pretraining that are invalid, or that these devices cannot train."""
        config = of_phase(pretraining_config(self.config(1)))
        mesh, train = make_mesh(config.parallel), config.train
        with jax.set_mesh(mesh):
            check_batch_size(train.batch_size, train.accumulation_steps, batch_shards(mesh))
            check_attention(config.model, config.data.sequence_length)
            Training.of(losses_of(config), config, mesh)

    def prepare_corpus(self) -> None:
        """Trains a tokenizer and prepares the corpus; not a part of the budget."""
        tokenizer, source = self.workdir / "tokenizer", f"--source={self.options.source}"
        if not holds_tokenizer(tokenizer):
            size = self.config(1).model.vocab_size
            run_tool("train_tokenizer.py", source, f"--vocab_size={size}", f"--output={tokenizer}")
        # A finished corpus stays as it is.
        run_tool(
            "prepare_corpus.py",
            source,
            f"--tokenizer={tokenizer}",
            f"--output={self.corpus}",
            f"--workers={len(os.sched_getaffinity(0))}",
        )
        check_held_out(self.corpus, "use a --source with more documents, and another --workdir")

    def calibrate(self) -> None:
        """Measures how many steps fit into the budget; not a part of it."""
        if self.state.rates is None:
            print(f"short runs, to measure how many steps fit into {self.options.budget}", flush=True)
            rates = cramming_budget.measure(self.config(1), self.workdir / "calibration", self.budget)
            self.state.num_steps = cramming_budget.steps_within(rates, self.budget)
            self.state.rates = rates
            self.state.save(self.state_file)
        rates = self.state.rates
        print(f"{self.state.num_steps:,} steps of {rates.step:.3f} s, and {rates.rest:.1f} s for the rest", flush=True)

    def pretrain(self) -> None:
        if not self.state.held_out:
            assert self.state.rates is not None
            config = self.config(self.state.num_steps)
            config.checkpoint.every = cramming_budget.steps_between_checkpoints(self.state.rates)
            with self.state.timed(self.state_file, self.run):
                held_out = run_training(config.lock(), self.run)
            self.state.held_out, self.state.date, self.state.commit = held_out, cramming_records.today(), commit()
            self.state.save(self.state_file)
        share = self.state.used_seconds / self.budget
        used = f"pretraining took {self.state.used_seconds:.1f} s, {share:.1%} of the budget"
        print(f"{used}{': EXCEEDED' if share > 1 else ''}", flush=True)

    def finetune(self) -> None:
        """Fine-tunes the encoder, and the same one with random weights, on each task with each seed."""
        start = time.monotonic()
        for weights, changes in INITIAL_WEIGHTS.items():
            for task in self.options.tasks:
                for seed in range(self.options.seeds):
                    name = f"{weights}/{task}/seed_{seed}"
                    if name not in self.state.scores:
                        self.state.scores[name] = self.finetune_once(name, task, changes | {"train.seed": seed})
                        self.state.save(self.state_file)
                    print(f"{name}: {GLUE[task]} {self.state.scores[name][GLUE[task]]:.3f}", flush=True)
        if self.state.scores:
            print(f"fine-tuning took {time.monotonic() - start:.0f} s", flush=True)

    def finetuning_config(self, task: str, changes: dict[str, Any]) -> ConfigDict:
        """Returns the config of fine-tuning on a task; the changes come before those in --finetune."""
        config = finetuning_recipe.get_config(task)
        changes = recipe.FINETUNING[self.platform] | recipe.FINETUNING_OF_TASKS[self.platform].get(task, {}) | changes
        changes |= {"data.dir": self.options.glue_dir, "init_from": str(self.run)}
        config.update_from_flattened_dict(changes)
        return changed(config, "--finetune", self.options.finetune)

    def finetune_once(self, name: str, task: str, changes: dict[str, Any]) -> Row:
        folder = self.workdir / "glue" / name
        scores = run_training(self.finetuning_config(task, changes).lock(), folder)
        shutil.rmtree(folder / "checkpoints")
        return scores

    def record(self) -> Record:
        """Returns the record, and writes it to WORKDIR/record.json."""
        config, encoder = self.config(self.state.num_steps), load(self.run)
        model, steps = config.model, self.state.num_steps
        by_weights: dict[str, dict[str, list[float]]]
        by_weights = {weights: {task: [] for task in self.options.tasks} for weights in INITIAL_WEIGHTS}
        for name, scores in self.state.scores.items():
            weights, task, _ = name.split("/")
            by_weights[weights][task].append(float(scores[GLUE[task]]))
        record = Record(
            date=self.state.date,
            machine=cramming_records.machine(),
            budget=self.options.budget,
            budget_seconds=self.budget,
            used_seconds=self.state.used_seconds,
            encoder=f"{model.num_layers} layers of {model.hidden_size}, {model.dtype}",
            parameters=count(encoder.params),
            steps=steps,
            tokens=steps * tokens_per_step(config),
            corpus_tokens=Corpus.open(self.corpus, "train").num_tokens,
            loss=self.state.held_out["mlm/loss"],
            accuracy=self.state.held_out["mlm/accuracy"],
            glue=by_weights["pretrained"],
            glue_scratch=by_weights["scratch"],
            commit=self.state.commit,
            jax=jax.__version__,
        )
        write_json(self.workdir / "record.json", record)
        return record


def check(options: Options) -> None:
    """Raises UserError for flags that do not fit together, or name folders and tasks that do not exist."""
    if bool(options.source) == bool(options.corpus):
        raise UserError("set either --source, to prepare a corpus, or --corpus, a prepared one")
    if options.corpus:
        check_corpus_flag(options.corpus)
        check_held_out(options.corpus, "prepare it again with a larger --held_out of tools/prepare_corpus.py")
    if unknown := [task for task in options.tasks if task not in GLUE]:
        raise UserError(f"--tasks={listed(unknown)}: no such task here; choose from {', '.join(GLUE)}")
    available = glue.available(options.glue_dir) if options.glue_dir else []
    if missing := [task for task in options.tasks if task not in available]:
        remedy = "set it to the folder with GLUE's official folders, or choose others with --tasks"
        raise UserError(f"--glue_dir={options.glue_dir}: has no {listed(missing)}; {remedy}")


def check_held_out(corpus: str | Path, remedy: str) -> None:
    """Raises UserError if no document of a corpus is held out for evaluation."""
    if "validation" not in read_index(Path(corpus))["splits"]:
        raise UserError(f"{corpus}: too few documents, none is held out for evaluation; {remedy}")


def changed(config: ConfigDict, flag: str, changes: Sequence[str]) -> ConfigDict:
    """Makes changes SECTION.FIELD=VALUE of a flag to a config and returns it. Raises UserError if one is invalid."""
    config.lock()
    for change in changes:
        name, equals, text = change.partition("=")
        if not equals:
            raise UserError(f"{flag}={change}: write SECTION.FIELD=VALUE")
        *sections, field = name.split(".")
        section, option = config, config
        for part in [*sections, field]:
            section, names = option, list(option) if isinstance(option, ConfigDict) else []
            if part not in names:
                close = difflib.get_close_matches(part, names, cutoff=0.5) or names
                hint = f"choose from {listed(close)}" if close else "write SECTION.FIELD=VALUE"
                raise UserError(f"{flag}={change}: no such option {part!r}; {hint}")
            option = section[part]
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = text
        try:
            section[field] = value
        except (KeyError, TypeError):
            kind = type(option).__name__
            raise UserError(f"{flag}={change}: needs a value of type {kind}, such as {option!r}") from None
    return config


def run_tool(name: str, *arguments: str) -> None:
    """Runs a program of tools/ in a separate process. Raises UserError if it fails."""
    print(f"$ python tools/{name} {' '.join(arguments)}", flush=True)
    code = subprocess.run([sys.executable, str(ROOT / "tools" / name), *arguments], check=False).returncode
    if code:
        raise UserError(f"tools/{name}: exit code {code}; see above, fix it, and start again")


def main() -> None:
    values = flags.FLAGS
    if not values.budget:
        raise UserError("--budget is missing; set it to a time such as 10m, 1h or 1d")
    recipe.seconds_of(values.budget)
    if not values.workdir:
        raise UserError("--workdir is missing; set it to a folder for all outputs")
    hosts.start("")
    chosen: dict[str, Any] = {name: values[name].value for name in Options._fields}
    try:
        record = ReferenceRun(Path(values.workdir).absolute(), Options(**chosen)).run_all()
    except Stopped:
        remedy = "the same command continues, but starting again takes some of the budget"
        print(f"stopped and saved; {remedy}", file=sys.stderr)
        sys.exit(EXIT_STOPPED)
    print(f"\n{values.workdir}/record.json:")
    print("\n".join(cramming_records.markdown([record])))


if __name__ == "__main__":
    define_flags()
    run_command(main)
