"""Options that fine-tuning tasks share, what they need of the encoder, and what those that depend on the data come to."""

import dataclasses
import logging
import re
from pathlib import Path
from typing import Any, TypeVar

from bert_jax.config import inherited, to_dict
from bert_jax.data.tokenizer.tokenizer import Tokenizer
from bert_jax.errors import UserError, listed
from bert_jax.model.config import EncoderConfig
from bert_jax.parallel.mesh import ParallelConfig
from bert_jax.run_folder import folder as run_folder
from bert_jax.run_folder.checkpoints import CheckpointConfig
from bert_jax.tasks.base import check_sizes, load_tokenizer, model_of_run, model_origin
from bert_jax.train.loop import TrainConfig
from bert_jax.train.optimizers import OptimizerConfig

logger = logging.getLogger(__name__)
# Options of the model that say what heads read, and so may differ from those of the encoder's run.
OF_THE_HEAD = {"classifier", "classifier_pooling", "scalar_mix"}
MIX = "encoder/mix/weights"  # path of a parameter (see model/encoder.py, `LayerMix`)


@dataclasses.dataclass(frozen=True)
class FineTuningConfig:
    """The defaults are those of Devlin et al. 2019, section 4.1 and appendix A.3, but for the optimizer: AdamW with bias
    correction, where google-research/bert has none, makes small tasks more stable (Zhang et al. 2021, section 4)."""

    task: str = ""
    init_from: str = ""  # run folder of a pretrained encoder; its model and tokenizer are taken
    from_scratch: bool = False  # take model and tokenizer of init_from, but not the weights
    # Of the run in init_from; dropout, dtype, classifier and the like, and fewer num_layers may be set.
    model: EncoderConfig = inherited(EncoderConfig())
    reinit_layers: int = 0  # the last layers that, with the pooler, start anew (Zhang et al. 2021, section 5)
    seeds: int = 1  # runs, each with another seed, in folders of their own; from train.seed on
    num_epochs: float = 3.0  # sets train.num_steps where that is 0
    warmup_ratio: float = 0.1  # of the steps; sets optimizer.warmup_steps where that is 0
    classifier_dropout: float = 0.1  # before the last layer of the head
    calibrated: bool = False  # choose a temperature by the held-out data, for the probabilities of predict
    # batch_size counts examples, eval_batch_size rows, which hold several; eval_examples is not read: it is all of them.
    train: TrainConfig = TrainConfig(num_steps=0, batch_size=32, log_every=10, eval_every=0, eval_batch_size=32)
    optimizer: OptimizerConfig = OptimizerConfig(name="adamw", learning_rate=5e-5, warmup_steps=0, schedule="linear")
    parallel: ParallelConfig = ParallelConfig()
    checkpoint: CheckpointConfig = CheckpointConfig(best_metric="", prefer_best=True)  # '': the task's first score

    def __post_init__(self):
        if not 0 < self.num_epochs < float("inf"):
            raise ValueError(f"num_epochs={self.num_epochs} must be a number above 0")
        for field, highest in (("warmup_ratio", 1.0), ("classifier_dropout", 0.99)):
            if not 0 <= getattr(self, field) <= highest:
                raise ValueError(f"{field}={getattr(self, field)} must be from 0 to {highest}")


C = TypeVar("C", bound=FineTuningConfig)


def tokenizer_for(config: Any, workdir: Path) -> Tokenizer:
    """The tokenizer of the encoder to be fine-tuned, or of the run that `workdir` holds.

    Raises:
      UserError: there is no run to take the model from, a setting would make it another model, or the sizes do not fit.
    """
    origin = model_origin(to_dict(config), workdir)
    if origin is None:
        raise UserError("init_from is empty; set it to the folder of a pretrained run (even with from_scratch)")
    theirs, ours = to_dict(model_of_run(origin)), to_dict(config.model)
    takes_first_layers = ours["num_layers"] < theirs["num_layers"] and not theirs["num_layer_groups"]
    free = OF_THE_HEAD | ({"num_layers"} if takes_first_layers else set())
    if other := [name for name in run_folder.differing_model_options(theirs, ours) if name not in free]:
        here = listed([f"model.{name}={ours[name]}" for name in other])
        there = listed([f"{name} is {theirs[name]}" for name in other])
        raise UserError(f"{here}: the model is that of {origin}, where {there}; leave the options out")
    if not 0 <= config.reinit_layers <= config.model.num_layers or (
        config.reinit_layers and config.model.num_layer_groups
    ):
        raise UserError(
            f"reinit_layers={config.reinit_layers}: 0 to {config.model.num_layers}, of layers that share no weights"
        )
    trainable = config.optimizer.trainable
    if config.model.scalar_mix and not re.search(trainable, MIX):
        raise UserError(f"model.scalar_mix: optimizer.trainable={trainable!r} leaves it out; add '|mix/' to that")
    tokenizer = load_tokenizer(origin)
    check_sizes(config.model, tokenizer, config.data.sequence_length)
    return tokenizer


def temperature_for(workdir: Path) -> float:
    """What the run in `workdir` divides its logits by for probabilities; 1 where it is not calibrated, or there is none."""
    return run_folder.read_value(workdir, run_folder.TEMPERATURE, 1.0)


def labels_for(workdir: Path, training_file: str) -> list[str]:
    """Returns the labels of the run in `workdir`; empty if they are still to be read from the training file."""
    labels = run_folder.read_labels(workdir)
    if not labels and run_folder.exists(workdir):
        logger.warning(
            "%s: %s is missing; its labels are taken to be those of %s", workdir, run_folder.LABELS, training_file
        )
    return labels


def split_path(data: Any, split: str) -> str:
    """The file of a split. Raises UserError where the config names none, or one that is not there."""
    if not (path := getattr(data, split)):
        raise UserError(f"data.{split} is empty; set --config.data.{split} to a file")
    if not Path(path).is_file():
        raise UserError(f"data.{split}={path}: no such file; set --config.data.{split} to one that is there")
    return path


def resolved(config: C, num_examples: int, first_score: str) -> C:
    """The config with steps instead of epochs and shares, and a score to choose the best checkpoint by.

    Args:
      config: of the task.
      num_examples: of the training data; not read where the steps are given.
      first_score: the score that matters most.
    """
    train, optimizer, checkpoint = config.train, config.optimizer, config.checkpoint
    steps_of_epoch = -(-num_examples // train.batch_size)
    num_steps = train.num_steps or max(1, round(config.num_epochs * steps_of_epoch))
    changes: dict[str, Any] = {
        "train": dataclasses.replace(train, num_steps=num_steps),
        "optimizer": dataclasses.replace(
            optimizer, warmup_steps=optimizer.warmup_steps or round(config.warmup_ratio * num_steps)
        ),
        "checkpoint": dataclasses.replace(checkpoint, best_metric=checkpoint.best_metric or f"eval/{first_score}"),
    }
    return dataclasses.replace(config, **changes)
