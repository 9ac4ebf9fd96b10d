"""Options shared by the fine-tuning tasks, checks that they fit the encoder, and defaults that depend on the data."""

import dataclasses
import logging
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bert_jax.config import inherited, to_dict
from bert_jax.data.tokenizer.tokenizer import Tokenizer
from bert_jax.errors import UserError, listed
from bert_jax.model.config import EncoderConfig
from bert_jax.run_folder import folder as run_folder
from bert_jax.run_folder.checkpoints import CheckpointConfig
from bert_jax.tasks.base import TaskConfig, check_sizes, model_of_checkpoint, model_origin, origin_tokenizer
from bert_jax.train.loop import TrainConfig
from bert_jax.train.optimizers import OptimizerConfig

logger = logging.getLogger(__name__)
# Options of the model that concern its head, and so may differ from those of the encoder's run.
HEAD_OPTIONS = {"classifier", "classifier_pooling", "scalar_mix"}
_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")
MIX = "encoder/mix/weights"  # path of a parameter (see model/encoder.py, `LayerMix`)


@dataclasses.dataclass(frozen=True)
class FineTuningConfig(TaskConfig):
    """Options with the defaults of Devlin et al. 2019, section 4.1 and appendix A.3, except for the optimizer.

    AdamW with bias correction, which google-research/bert lacks, is more stable on small tasks (Zhang et al. 2021, section 4).
    """

    from_scratch: bool = False  # use model and tokenizer of init_from, which is required, but random weights
    # That of the run in init_from; dropout, dtype, classifier and the like, and fewer num_layers may be set.
    model: EncoderConfig = inherited(EncoderConfig())
    reinit_layers: int = 0  # last layers that, like the pooler, get random weights (Zhang et al. 2021, section 5)
    seeds: int = 1  # number of runs, in folders of their own, with seeds from train.seed on
    num_epochs: float = 3.0  # sets train.num_steps if that is 0
    warmup_ratio: float = 0.1  # share of the steps; sets optimizer.warmup_steps if that is 0
    classifier_dropout: float = 0.1  # before the last layer of the head
    calibrated: bool = False  # choose a temperature on the held-out data for the probabilities of predict
    # batch_size counts examples, eval_batch_size rows, which hold several; eval_examples is ignored: all are used.
    train: TrainConfig = TrainConfig(num_steps=0, batch_size=32, log_every=10, eval_every=0, eval_batch_size=32)
    optimizer: OptimizerConfig = OptimizerConfig(name="adamw", learning_rate=5e-5, warmup_steps=0, schedule="linear")
    checkpoint: CheckpointConfig = CheckpointConfig(best_metric="", prefer_best=True)  # '': the task's first score

    def __post_init__(self):
        if not 0 < self.num_epochs < float("inf"):
            raise ValueError(f"num_epochs={self.num_epochs} must be a number above 0")
        for field, highest in (("warmup_ratio", 1.0), ("classifier_dropout", 0.99)):
            if not 0 <= getattr(self, field) <= highest:
                raise ValueError(f"{field}={getattr(self, field)} must be from 0 to {highest}")


def tokenizer_for(config: Any, workdir: Path) -> Tokenizer:
    """Loads the tokenizer of the run in `workdir` or, for a new run, of the encoder, after checking that the options fit it.

    Raises:
      UserError: there is no encoder, or options of the model, its layers or sizes do not fit it.
    """
    origin = model_origin(to_dict(config), workdir)
    if origin is None:
        raise UserError("init_from is empty; set it to the folder of a pretrained run (even with from_scratch)")
    encoder, model = to_dict(model_of_checkpoint(origin)), to_dict(config.model)
    takes_first_layers = model["num_layers"] < encoder["num_layers"] and not encoder["num_layer_groups"]
    free = HEAD_OPTIONS | ({"num_layers"} if takes_first_layers else set())
    if other := [name for name in run_folder.differing_model_options(encoder, model) if name not in free]:
        options = listed([f"model.{name}={model[name]}" for name in other])
        originals = listed([f"{name} is {encoder[name]}" for name in other])
        raise UserError(f"{options}: the model is that of {origin}, where {originals}; leave the options out")
    most_layers = 0 if model["num_layer_groups"] else model["num_layers"]
    if not 0 <= config.reinit_layers <= most_layers:
        why = ", as layers share weights" if model["num_layer_groups"] else ""
        raise UserError(f"reinit_layers={config.reinit_layers} must be from 0 to {most_layers}{why}")
    trainable = config.optimizer.trainable
    if model["scalar_mix"] and not re.search(trainable, MIX):
        raise UserError(f"model.scalar_mix: optimizer.trainable={trainable!r} leaves it out; add '|mix/' to that")
    tokenizer = origin_tokenizer(origin)
    check_sizes(config.model, tokenizer, config.data.sequence_length)
    return tokenizer


def temperature_for(workdir: Path) -> float:
    """Reads the temperature of the run in `workdir`; 1 if it is not calibrated or does not exist."""
    return run_folder.read_value(workdir, run_folder.TEMPERATURE, 1.0)


def labels_for(workdir: Path, training_file: str) -> list[str]:
    """Reads the labels of the run in `workdir`; empty if they must be read from the training file."""
    labels = run_folder.read_labels(workdir)
    if not labels and run_folder.exists(workdir):
        logger.warning("%s: %s is missing; using the labels in %s", workdir, run_folder.LABELS, training_file)
    return labels


def in_order(labels: Iterable[str]) -> list[str]:
    """Returns the distinct labels: numbers in numeric order, then other texts in lexicographic order."""
    return sorted(set(labels), key=lambda label: (0, float(label), label) if is_number(label) else (1, 0.0, label))


def is_number(label: str) -> bool:
    """Returns whether a label is written as a number: `3`, `-1`, `2.5`."""
    return bool(_NUMBER.fullmatch(label))


def split_path(data: Any, split: str) -> str:
    """Returns the path of a split's file. Raises UserError if the config has none, or the file does not exist."""
    if not (path := getattr(data, split)):
        raise UserError(f"data.{split} is empty; set --config.data.{split} to a file")
    if not Path(path).is_file():
        raise UserError(f"data.{split}={path}: no such file; set --config.data.{split} to an existing one")
    return path
