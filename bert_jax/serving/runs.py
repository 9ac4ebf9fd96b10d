"""Runs as they are served: what each is for, and its programs."""

import dataclasses
from pathlib import Path
from typing import Any

from bert_jax.errors import UserError, listed
from bert_jax.predictor import Predictor
from bert_jax.serving.embedding import Embedding
from bert_jax.serving.examples import examples_of
from bert_jax.serving.explaining import Explanation
from bert_jax.serving.scheduler import Program
from bert_jax.tasks import pretraining, qa, tokens
from bert_jax.tasks.common.prediction import Prediction
from bert_jax.tasks.finetuning.texts import TextTask

PREDICT, EMBED, EXPLAIN = "predict", "embed", "explain"
# What a run is for, in Hugging Face's terms; those of tasks of your own are their names.
KINDS = {
    TextTask: "text-classification",
    tokens.Task: "token-classification",
    qa.Task: "question-answering",
    pretraining.Task: "fill-mask",
}


@dataclasses.dataclass(frozen=True)
class ServedRun:
    """A run with its programs, by the name of the operation."""

    name: str
    kind: str
    predictor: Predictor
    programs: dict[str, Program]
    examples: list[dict[str, str]] = dataclasses.field(default_factory=list)  # inputs to try

    @property
    def problem(self) -> str:
        """What a run on texts predicts: 'classification', 'multi_label' or 'regression'; '' for others."""
        task = self.predictor.task
        return task.problem if isinstance(task, TextTask) else ""

    @property
    def labels(self) -> list[str]:
        return getattr(self.predictor.task, "labels", [])

    @property
    def mask(self) -> str:
        """The token that marks what to fill in; '' for runs that fill no masks."""
        tokenizer = self.predictor.task.tokenizer
        return tokenizer.tokens([tokenizer.mask_id])[0] if self.kind == "fill-mask" else ""

    @property
    def shortest_input(self) -> dict[str, Any]:
        """The shortest valid input."""
        return dict.fromkeys(self.predictor.input_fields, self.mask or "a")

    def compile(self) -> None:
        """Compiles all programs for all their shapes."""
        masks = [self.shortest_input | {"text": f"{self.mask} " * 9}] if self.mask else []
        for name, program in self.programs.items():
            inputs = [{"text": "a"}] if name == EMBED else [self.shortest_input, *masks]
            program.compile([program.prediction.prepare([values]).items[0] for values in inputs])

    def describe(self) -> dict[str, Any]:
        """Returns what clients need to know, as JSON values."""
        return {
            "name": self.name,
            "kind": self.kind,
            "problem": self.problem,
            "fields": list(self.predictor.input_fields),
            "labels": self.labels,
            "mask": self.mask,
            "max_tokens": self.predictor.task.row_length,
            "operations": list(self.programs),
            "examples": self.examples,
        }


def load_run(name: str, folder: Path, batch_tokens: int) -> ServedRun:
    """Loads a run for serving under a name. Raises UserError if the folder holds no run, or is damaged."""
    predictor = Predictor.load(folder)
    task, params = predictor.task, predictor.params
    kind = next((kind for base, kind in KINDS.items() if isinstance(task, base)), task.config.task)
    if not isinstance(task, Prediction):
        raise UserError(f"{folder}: the task {kind} cannot be served: it is no tasks.common.prediction.Prediction")
    predictions: dict[str, Prediction] = {
        PREDICT: task,
        EMBED: Embedding(task.losses.model, task.tokenizer, task.row_length),
    }
    if isinstance(task, TextTask):
        predictions[EXPLAIN] = Explanation(task)
    if isinstance(task, pretraining.Task) and "mlm" not in (task.generator or task.losses.model).heads:
        del predictions[PREDICT]
    programs = {
        name: Program(prediction, params, batch_tokens if name != EXPLAIN else 1)
        for name, prediction in predictions.items()
    }
    return ServedRun(name, kind, predictor, programs, examples_of(folder, predictor.input_fields))


def load_runs(workdirs: list[str], batch_tokens: int) -> dict[str, ServedRun]:
    """Loads runs by name from values of --workdir (see `named_folder`).

    Raises:
      UserError: as `load_run`, or two runs have the same name.
    """
    named = [named_folder(workdir) for workdir in workdirs]
    names = [name for name, _ in named]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        problem = f"--workdir: several runs are named {listed(twice)}, and are served under their names"
        raise UserError(f"{problem}; give one another name, --workdir=NAME=FOLDER")
    return {name: load_run(name, folder, batch_tokens) for name, folder in named}


def named_folder(workdir: str) -> tuple[str, Path]:
    """Returns the name and the folder in NAME=FOLDER, or in FOLDER alone, whose name is that of the folder.

    What stands before a '=' is a part of the folder if it has a '/', or if there is such a folder.

    Raises:
      UserError: the name or the folder is empty.
    """
    name, equals, folder = workdir.partition("=")
    if not equals or "/" in name or Path(workdir).exists():
        return Path(workdir).resolve().name, Path(workdir)
    if not name.strip() or not folder:
        raise UserError(f"--workdir={workdir}: lacks a name or a folder; give --workdir=NAME=FOLDER")
    return name, Path(folder)
