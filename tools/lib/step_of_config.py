"""The training step of a pretraining config and a batch for it, without a corpus."""

from types import SimpleNamespace

import jax
import numpy as np

from bert_jax import random_numbers
from bert_jax.objectives import mlm
from bert_jax.objectives.losses import Losses, build_model
from bert_jax.parallel.batches import check_batch_size, local_rows, to_devices
from bert_jax.parallel.mesh import batch_sharding, batch_shards
from bert_jax.tasks.pretraining import Config
from bert_jax.train.step import Training


def training_of_config(config: Config, mesh: jax.sharding.Mesh) -> tuple[Training, mlm.Objective]:
    """Returns the training of a config for the objective mlm alone; to be called under its mesh."""
    size = config.model.vocab_size
    # As much of a tokenizer as masking needs.
    vocabulary = SimpleNamespace(vocab_size=size, mask_id=0, special_ids=np.arange(1), word_starts=np.ones(size, bool))
    objective = mlm.Objective(config.options["mlm"], vocabulary)
    losses = Losses(build_model(config.model, {"mlm": objective}), {"mlm": objective})
    return Training.of(losses, config, mesh), objective


def random_batch(config: Config, objective: mlm.Objective, mesh: jax.sharding.Mesh) -> dict[str, jax.Array]:
    """Returns a batch like those of training: full rows of random tokens, masked."""
    size, accumulation, length = config.train.batch_size, config.train.accumulation_steps, config.data.sequence_length
    check_batch_size(size, accumulation, batch_shards(mesh))
    rng = np.random.default_rng(config.train.seed)
    ids = rng.integers(1, config.model.vocab_size, (size, length), dtype=np.int32)
    whole = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    whole |= {"example_weights": np.ones(size, np.float32)}
    batch = objective.corrupt(whole, random_numbers.row_keys(config.train.seed, np.arange(size)))
    sharding = batch_sharding(mesh)
    rows = local_rows(size, accumulation, sharding)
    return to_devices({name: array[rows] for name, array in batch.items()}, rows, size, accumulation, sharding)
