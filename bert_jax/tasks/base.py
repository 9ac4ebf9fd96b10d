"""The interface of tasks: pretraining and each kind of fine-tuning provide their data, model, losses and predictions.

A task is one file of this folder with two classes: `Config`, whose field `task` is the file's name, and `Task`.
"""

import dataclasses
import importlib
import logging
import pkgutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

import numpy as np

import bert_jax.tasks
from bert_jax.config import from_dict
from bert_jax.data.tokenizer.tokenizer import Tokenizer
from bert_jax.errors import UserError
from bert_jax.files import write_json
from bert_jax.formats import huggingface
from bert_jax.model.build import Params
from bert_jax.model.config import EncoderConfig
from bert_jax.objectives.losses import Losses
from bert_jax.parallel.batches import HostBatch
from bert_jax.parallel.mesh import ParallelConfig
from bert_jax.run_folder import folder as run_folder
from bert_jax.run_folder.checkpoints import CheckpointConfig, CheckpointStore
from bert_jax.run_folder.default_checkpoint import default_or_latest_step
from bert_jax.tasks.common.prediction import Answer, Prepared
from bert_jax.tasks.common.training import TrainingData
from bert_jax.train.loop import TrainConfig
from bert_jax.train.optimizers import OptimizerConfig
from bert_jax.train.schedules import RatePiece
from bert_jax.train.writers.base import Row

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class TaskConfig:
    """Options of all tasks."""

    task: str = ""  # name of a file in tasks/; set by the config file
    init_from: str = ""  # to take parameters from: a run folder or a model in Hugging Face's format; '' for random ones
    init_layers: tuple[int, ...] = ()  # its layers, from 0, that the layers start from; (): the first ones
    init_growth: str = ""  # how a deeper or wider encoder is filled: see growing.py, `GROWTHS`
    model: EncoderConfig = EncoderConfig()
    train: TrainConfig = TrainConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    parallel: ParallelConfig = ParallelConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()

    @property
    def rate_pieces(self) -> tuple[RatePiece, ...]:
        """Steps with a learning rate of their own, in their order."""
        return ()

    def inheriting(self, folder: Path, model: EncoderConfig) -> Self:
        """Returns this config with the options `model`; tasks may take more defaults from the run or model in `folder`."""
        del folder
        return dataclasses.replace(self, model=model)

    def model_at(self, step: int) -> EncoderConfig:
        """Returns the options of the model in a step, counted from 0; they differ only where a run has phases."""
        del step
        return self.model


class Evaluator(Protocol):
    """The held-out batches, and the scores of the model's outputs for them."""

    @property
    def others(self) -> Mapping[str, "Evaluator"]:
        """Evaluators of further held-out data by name, whose metrics are reported as NAME/metric."""

    def validate(self) -> None:
        """Raises UserError if the data is missing or does not fit the run; called before anything is written."""

    def batches(self, rows: np.ndarray, batch_size: int) -> Iterator[HostBatch]:
        """Yields these rows of the held-out batches."""

    def score_outputs(self, outputs: list[dict[str, np.ndarray]], tunes: bool) -> tuple[Row, dict[str, Any]]:
        """Returns the scores that are not sums over examples, and files for the run folder: text or JSON values by name.

        Args:
          outputs: model outputs for each held-out batch.
          tunes: whether settings of prediction, such as a threshold, are chosen by these outputs and returned among the files;
            otherwise those of the run are used.
        """


class Initialization(NamedTuple):
    """What a new run takes from the run in `init_from`."""

    parts: tuple[str, ...]  # of the parameters: 'encoder', 'heads'
    reinit_layers: int = 0  # number of last layers of the encoder that, like the pooler, are not taken


class Task(Protocol):
    """The model of a run with its training, evaluation and prediction."""

    tokenizer: Tokenizer

    @property
    def config(self) -> Any:
        """Config without open options, as used in training and stored in the run folder."""

    @property
    def losses(self) -> Losses:
        """The model and its training losses."""

    @property
    def initialization(self) -> Initialization: ...

    @property
    def files(self) -> dict[str, Any]:
        """Files for the run folder that prediction needs and that are known before training, e.g. labels."""

    @property
    def training(self) -> TrainingData: ...

    @property
    def evaluator(self) -> Evaluator: ...

    @property
    def input_fields(self) -> tuple[str, ...]:
        """Names of the texts that an input of `predict` must hold."""

    @property
    def row_length(self) -> int: ...

    def prepare(self, inputs: list[dict[str, Any]]) -> Prepared: ...

    def compute(self, params: Params, batch: Any) -> Any: ...

    def predict(self, params: Params, inputs: list[dict[str, Any]]) -> list[Answer]:
        """Returns an answer for each input, as JSON values. For these four see common/prediction.py, `Prediction`."""

    @classmethod
    def create(cls, config: Any, workdir: Path) -> "Task":
        """Creates the task of the run in `workdir`, or of a new one."""


def create(values: Any, workdir: Path) -> Task:
    """Creates the task of a ConfigDict or of the contents of a run's config.json.

    Raises:
      UserError: unknown, missing or invalid options, or data that the task refuses.
    """
    if "task" not in values:
        raise UserError("config.task: missing; start from a file in configs/")
    values = run_folder.with_paths_from("", values if isinstance(values, dict) else values.to_dict())
    files = [file.name for file in pkgutil.iter_modules(bert_jax.tasks.__path__) if not file.ispkg]
    name, names = values["task"], sorted({*files} - {"base"})
    if name not in names:
        raise UserError(f"config.task={name!r}: no such task; choose one of {', '.join(names)}")
    module = importlib.import_module(f"bert_jax.tasks.{name}")
    default = module.Config()
    if run_folder.exists(workdir):
        default = default.inheriting(workdir, model_of_run(workdir))
    elif origin := model_origin(values, workdir):
        default = default.inheriting(origin, model_of_checkpoint(origin))
    return module.Task.create(from_dict(default, values), workdir)


def model_origin(values: Mapping[str, Any], workdir: Path) -> Path | None:
    """Returns the folder of the run whose model options are the default: `workdir`, else `init_from`, if it is set.

    Raises:
      UserError: `init_from` holds neither a run nor a model.
    """
    if run_folder.exists(workdir):
        return workdir
    return run_folder.origin(values["init_from"]) if values.get("init_from") else None


def model_of_run(folder: Path) -> EncoderConfig:
    """Reads the options of the model of a run, those at the end of its training. Raises UserError if the folder holds none."""
    return from_dict(EncoderConfig(), run_folder.read_config(folder)["model"], "config.model")


def generator_folder(folder: Path) -> Path | None:
    """Returns the folder of the generator of an ELECTRA in Hugging Face's format, `generator/` in that of the discriminator."""
    generator = folder / "generator"
    is_pair = run_folder.exists(generator) and not run_folder.is_run(generator)
    return generator if is_pair and "rtd" in huggingface.inspect(folder).heads else None


def model_of_checkpoint(folder: Path) -> EncoderConfig:
    """Reads the options of the model of a run, at its default checkpoint, or of a model in Hugging Face's format.

    Raises:
      UserError: the folder holds neither.
    """
    if not run_folder.is_run(folder):
        return huggingface.inspect(folder).model.config
    config = run_folder.read_config(folder)
    steps = CheckpointStore(folder).steps() if config.get("phases") else []
    if not steps:
        return model_of_run(folder)
    options = run_folder.model_after(config, default_or_latest_step(folder, config, steps))
    return from_dict(EncoderConfig(), options, "config.model")


def save_tokenizer(tokenizer: Tokenizer, workdir: Path) -> None:
    """Writes the tokenizer of a new run and, in a file of its own, the fingerprint that `load_tokenizer` checks."""
    tokenizer.save(workdir / run_folder.TOKENIZER)
    write_json(workdir / run_folder.FINGERPRINT, tokenizer.fingerprint)


def tokenizer_folder(folder: Path) -> Path:
    """Returns where the tokenizer of a run or of a model in Hugging Face's format is."""
    return folder / run_folder.TOKENIZER if run_folder.is_run(folder) else folder


def origin_tokenizer(folder: Path) -> Tokenizer:
    """Loads the tokenizer of a run or of a model in Hugging Face's format. Raises UserError as `load_tokenizer`."""
    return load_tokenizer(folder) if run_folder.is_run(folder) else Tokenizer.load(folder)


def load_tokenizer(workdir: Path) -> Tokenizer:
    """Loads the tokenizer of a run.

    Raises:
      UserError: as `Tokenizer.load`, or it is not the one that the run was trained with (unknown for older runs).
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

    The remedy is named if the model is new, because only an untrained position table allows another offset.
    """
    skipped = model.position_offset - 1
    if skipped < 0 or skipped == tokenizer.pad_id:
        return
    token, padding = (
        f"{number} ({tokenizer.tokens([number])[0] if number < tokenizer.vocab_size else 'no token'})"
        for number in (skipped, tokenizer.pad_id)
    )
    logger.warning(
        "positions do not count the token %s, which the model takes for padding, while the tokenizer pads with %s%s",
        token,
        padding,
        f"; for this new model, set --config.model.position_offset={tokenizer.pad_id + 1}" if is_new else "",
    )


def check_sizes(model: EncoderConfig, tokenizer: Tokenizer, sequence_length: int, section: str = "data") -> None:
    """Raises UserError if the model's tables are too small for the tokenizer or the sequences."""
    if tokenizer.vocab_size > model.vocab_size:
        raise UserError(
            f"model.vocab_size={model.vocab_size} is less than the tokenizer's {tokenizer.vocab_size} tokens; "
            f"set it to {-(-tokenizer.vocab_size // 128) * 128}"
        )
    if sequence_length <= (special := tokenizer.num_special_tokens(2)):
        raise UserError(
            f"{section}.sequence_length={sequence_length}: {special} special tokens leave no space for text; use more"
        )
    if sequence_length > model.max_positions:
        option, most = f"{section}.sequence_length", model.max_positions
        flag = f"--config.{option}" if section == "data" else option
        raise UserError(
            f"{option}={sequence_length} exceeds the position table, model.max_positions={most}; "
            f"set {flag}={most} or less (or, for a new model, more positions)"
        )
