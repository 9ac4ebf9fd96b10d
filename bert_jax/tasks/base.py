"""What a task is: pretraining and each kind of fine-tuning give the runner their examples, model and losses.

A task is one file of this folder: a frozen `Config`, whose field `task` is the file's name, and a `Task` class.
"""

import dataclasses
import importlib
import logging
import pkgutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

import bert_jax.tasks
from bert_jax.config import from_dict
from bert_jax.data.tokenizer.tokenizer import Tokenizer
from bert_jax.errors import UserError
from bert_jax.files import write_json
from bert_jax.model.build import Params
from bert_jax.model.config import EncoderConfig
from bert_jax.objectives.losses import Losses
from bert_jax.parallel.batches import HostBatch
from bert_jax.parallel.mesh import ParallelConfig
from bert_jax.run_folder import folder as run_folder
from bert_jax.run_folder.checkpoints import CheckpointConfig
from bert_jax.train.loop import TrainConfig
from bert_jax.train.optimizers import OptimizerConfig
from bert_jax.train.phases import Phase
from bert_jax.train.writers.base import Row

logger = logging.getLogger(__name__)


class Config(Protocol):
    """The options that every task has; all of them frozen dataclasses."""

    task: str
    model: EncoderConfig
    train: TrainConfig
    optimizer: OptimizerConfig
    parallel: ParallelConfig
    checkpoint: CheckpointConfig
    init_from: str  # run folder to take parameters from; '' for fresh ones


class TrainingData(Protocol):
    """The batches that a run is trained on, by step."""

    @property
    def summary(self) -> str:
        """One line about the data, for the log."""

    @property
    def predicted_share(self) -> float:
        """Positions for which there is a product with the vocabulary / positions, to count operations."""

    @property
    def workers(self) -> int:
        """Processes that make batches; 0: threads of this one."""

    @property
    def prefetch(self) -> int:
        """Batches made ahead."""

    def validate(self) -> None:
        """Raises UserError if data are missing or do not fit the run; called before anything is written."""

    def phases(self, shards: int) -> list[Phase]:
        """Returns the shapes of the batches of all steps; the rows of a microbatch divide over `shards` devices.

        Raises:
          UserError: the config's batches do not.
        """

    def batch(self, phase: Phase, rows: np.ndarray, step: int) -> HostBatch:
        """Returns some `rows` of the batch of a step: the same whoever asks, in whatever order."""

    def describe(self, step: int) -> str:
        """Returns which examples a batch holds, for messages."""

    def meaning_of_batch_size(self, before: int, step: int) -> str:
        """Returns what changing the batch size from `before` to the config's at `step` means for the examples seen."""


class Evaluator(Protocol):
    """The held-out batches, and what the outputs for them are worth."""

    def validate(self) -> None:
        """Raises UserError if data are missing or do not fit the run; called before anything is written."""

    def batches(self, rows: np.ndarray, batch_size: int) -> Iterator[HostBatch]:
        """Yields this process's `rows` of the held-out batches."""

    def scores(self, outputs: list[dict[str, np.ndarray]], tunes: bool) -> tuple[Row, dict[str, Any]]:
        """Returns scores that are not sums over examples, and files for the run folder: text or JSON values, by name.

        Args:
          outputs: for each of the held-out batches.
          tunes: what prediction needs besides the parameters, e.g. a threshold, is chosen by these outputs, and is among the
            files; otherwise it is that of the run.
        """


class Answers(Protocol):
    """What `predict` needs."""

    @property
    def input_fields(self) -> tuple[str, ...]:
        """What an input must hold."""

    def predict(self, params: Params, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Returns one JSON-like answer for each input, which holds the `input_fields`."""


class Initialization(NamedTuple):
    """What a new run takes from the run in `init_from`."""

    parts: tuple[str, ...]  # of the parameters: 'encoder', 'heads'
    reinit_layers: int = 0  # the last layers of the encoder that, with the pooler, are not taken


class Task(Protocol):
    """What is trained, on what, and how it is evaluated and used."""

    tokenizer: Tokenizer

    @property
    def config(self) -> Any:
        """Resolved: what training from here on reads, and what the run folder keeps."""

    @property
    def losses(self) -> Losses:
        """The model, and what it is trained for."""

    @property
    def initialization(self) -> Initialization:
        """What is taken from `init_from`."""

    @property
    def files(self) -> dict[str, Any]:
        """For the run folder: what prediction needs besides the parameters and is known before training, e.g. labels."""

    @property
    def training(self) -> TrainingData: ...

    @property
    def evaluator(self) -> Evaluator: ...

    @property
    def answers(self) -> Answers: ...

    @classmethod
    def create(cls, config: Any, workdir: Path) -> "Task":
        """Returns the task of a new run, or of the one whose folder `workdir` is."""


def module(name: str):
    """The file of a task. Raises UserError for an unknown one."""
    files = [found.name for found in pkgutil.iter_modules(bert_jax.tasks.__path__) if not found.ispkg]
    names = sorted(set(files) - {"base"})
    if name not in names:
        raise UserError(f"config.task={name!r}: no such task; there are {', '.join(names)}")
    return importlib.import_module(f"bert_jax.tasks.{name}")


def create(values: Any, workdir: Path) -> Task:
    """The task that a ConfigDict, or the contents of a run's config.json, describes.

    Raises:
      UserError: a config with unknown, missing or ill-typed options, or whatever the task finds wrong.
    """
    if "task" not in values:
        raise UserError("config.task: missing; start from a file in configs/")
    values = run_folder.with_paths_from("", values if isinstance(values, dict) else values.to_dict())
    task = module(values["task"])
    default = task.Config()
    if origin := model_origin(values, workdir):
        default = dataclasses.replace(default, model=model_of_run(origin))
    return task.Task.create(from_dict(default, values), workdir)


def model_origin(values: Mapping[str, Any], workdir: Path) -> Path | None:
    """Returns the run whose model options a config takes by default: the one in `workdir`, else `init_from`, if that is set.

    Raises:
      UserError: `init_from` is not a run folder.
    """
    if run_folder.exists(workdir):
        return workdir
    return run_folder.origin(values["init_from"]) if values.get("init_from") else None


def model_of_run(folder: Path) -> EncoderConfig:
    """The model of a run folder. Raises UserError where it holds no run."""
    return from_dict(EncoderConfig(), run_folder.read_config(folder)["model"], "config.model")


def save_tokenizer(tokenizer: Tokenizer, workdir: Path) -> None:
    """Writes the tokenizer of a new run into its folder, and outside the tokenizer's folder what `load_tokenizer` checks."""
    tokenizer.save(workdir / run_folder.TOKENIZER)
    write_json(workdir / run_folder.FINGERPRINT, tokenizer.fingerprint)


def load_tokenizer(workdir: Path) -> Tokenizer:
    """Returns the tokenizer of a run.

    Raises:
      UserError: as `Tokenizer.load`, or it is not the one that the run was trained with. (Older runs do not tell.)
    """
    folder = workdir / run_folder.TOKENIZER
    tokenizer = Tokenizer.load(folder)
    expected = run_folder.read_value(workdir, run_folder.FINGERPRINT, tokenizer.fingerprint)
    if tokenizer.fingerprint != expected:
        raise UserError(
            f"{folder}: not the tokenizer of this run (the fingerprint is {tokenizer.fingerprint}, not {expected}); "
            f"put the run's own back, or remove {run_folder.FINGERPRINT} if both make the same ids of every text"
        )
    return tokenizer


def warn_of_padding(model: EncoderConfig, tokenizer: Tokenizer, is_new: bool = False) -> None:
    """Warns if positions skip another token than the tokenizer's padding (see `EncoderConfig.position_offset`).

    Args:
      model: of the run.
      tokenizer: of the run.
      is_new: whether the position table is still untrained, so that the offset can be changed.
    """
    passed = model.position_offset - 1
    if passed < 0 or passed == tokenizer.pad_id:
        return
    token, padding = (
        f"{number} ({tokenizer.tokens([number])[0] if number < tokenizer.vocab_size else 'no token'})"
        for number in (passed, tokenizer.pad_id)
    )
    logger.warning(
        "positions do not count the token %s, which the model takes for padding, while the tokenizer pads with %s%s",
        token,
        padding,
        f"; for this new model, set --config.model.position_offset={tokenizer.pad_id + 1}" if is_new else "",
    )


def check_sizes(model: EncoderConfig, tokenizer: Tokenizer, sequence_length: int) -> None:
    """Raises UserError where the model's tables are too small for the tokenizer or the sequences."""
    if tokenizer.vocab_size > model.vocab_size:
        raise UserError(
            f"model.vocab_size={model.vocab_size} is less than the tokenizer's {tokenizer.vocab_size} tokens; "
            f"set it to {-(-tokenizer.vocab_size // 128) * 128}"
        )
    if sequence_length <= (special := tokenizer.num_special_tokens(2)):
        raise UserError(
            f"data.sequence_length={sequence_length} leaves no room next to {special} special tokens; use more"
        )
    if sequence_length > model.max_positions:
        raise UserError(
            f"data.sequence_length={sequence_length} exceeds the position table, model.max_positions={model.max_positions}; "
            f"set --config.data.sequence_length={model.max_positions} or less (or, for a new model, more positions)"
        )
