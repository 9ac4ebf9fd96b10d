"""The training step of a pretraining config without its corpus: losses and batches as a run would have them, of random text."""

import dataclasses
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, cast

import jax
import numpy as np
from jax.sharding import Mesh

from bert_jax import random_numbers
from bert_jax.config import from_dict
from bert_jax.data.joining import join_rows
from bert_jax.errors import UserError
from bert_jax.objectives import base as objectives_lib
from bert_jax.objectives.losses import Losses, build_model
from bert_jax.parallel.batches import HostBatch, check_batch_size, local_rows, to_devices
from bert_jax.parallel.mesh import batch_sharding, batch_shards
from bert_jax.tasks.pretraining import Config

PAD, CLS, SEP, MASK = range(4)  # ids of the stand-in for a tokenizer


def pretraining_config(values: Any) -> Config:
    """Returns the config of a ConfigDict. Raises UserError if it is of another task, or has invalid options."""
    if (task := values.get("task")) != "pretraining":
        raise UserError(
            f"config.task={task!r}: only steps of pretraining can be had without data; use configs/bert_base.py"
        )
    return from_dict(Config(), values)


def of_phase(config: Config, phase: int | None = None) -> Config:
    """Returns a config whose single phase is that of this number; by default the one with the longest sequences.

    Raises:
      UserError: there is no such phase, or its sequences are longer than the model allows.
    """
    phases = config.resolved_phases
    if phase is None:
        phase = max(range(len(phases)), key=lambda number: phases[number].sequence_length)
    if not 0 <= phase < len(phases):
        known = f"phases 0 to {len(phases) - 1}" if len(phases) > 1 else "a single phase, 0"
        raise UserError(f"--phase={phase}: the config has {known}")
    chosen, model = phases[phase], config.model
    if not 8 <= chosen.sequence_length <= model.max_positions:
        raise UserError(
            f"sequence_length={chosen.sequence_length} must be from 8 to model.max_positions={model.max_positions}"
        )
    return dataclasses.replace(
        config,
        phases=(),
        model=dataclasses.replace(model, rope_theta=chosen.rope_theta),
        options=config.options_of(chosen),
        data=dataclasses.replace(config.data, sequence_length=chosen.sequence_length),
        train=dataclasses.replace(
            config.train, batch_size=chosen.batch_size, accumulation_steps=chosen.accumulation_steps
        ),
    )


def vocabulary_of(size: int) -> SimpleNamespace:
    """Returns a vocabulary whose tokens are all words (see objectives/base.py, `Vocabulary`)."""
    return SimpleNamespace(
        vocab_size=size, mask_id=MASK, special_ids=np.arange(MASK + 1), word_starts=np.ones(size, bool)
    )


def losses_of(config: Config) -> Losses:
    """Returns the losses of a config's objectives.

    Raises:
      UserError: an objective needs the pooler, which the model does not have, or reads another model.
    """
    objectives = objectives_lib.load(config.objectives, config.options, vocabulary_of(config.model.vocab_size))
    if not config.model.pooler and any(objective.makes_pairs for objective in objectives.values()):
        raise UserError(f"objectives {', '.join(objectives)}: those on pairs need model.pooler=True")
    if with_frozen := [name for name, objective in objectives.items() if objective.frozen]:
        raise UserError(f"objective {with_frozen[0]} reads another model, which is not supported here; leave it out")
    return Losses(build_model(config.model, objectives), objectives)


def host_rows(config: Config, losses: Losses, rows: np.ndarray) -> HostBatch:
    """Returns rows [n, L] like those of training, by their numbers: full, of random tokens, corrupted by the objectives."""
    count, length = len(rows), config.data.sequence_length
    rng = np.random.default_rng(config.train.seed)
    objectives = cast(Mapping[str, objectives_lib.Objective], losses.objectives)
    has_pairs = any(objective.makes_pairs for objective in objectives.values())
    tokens = length - 3 if has_pairs else length - 2
    sizes = [tokens - tokens // 2, tokens // 2] if has_pairs else [tokens]
    separators = SimpleNamespace(pad_id=PAD, cls_id=CLS, sep_id=SEP, separators_between=1)
    segments = [
        (rng.integers(MASK + 1, config.model.vocab_size, count * size, dtype=np.int32), np.full(count, size))
        for size in sizes
    ]
    batch: HostBatch = join_rows(separators, length, *segments)  # type: ignore[arg-type]
    coin = rng.random(count) < 0.5
    notes = {"is_other_document": coin, "is_swapped": coin, "progress": np.zeros(count)}
    batch |= notes
    keys = random_numbers.row_keys(config.train.seed, rows)
    for name, objective in objectives.items():
        batch = objective.corrupt(batch, random_numbers.fold_in(keys, name))
    return {name: array for name, array in batch.items() if name not in notes}


def abstract_batch(config: Config, losses: Losses, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes of a batch [A, B, ...], split over a mesh.

    Raises:
      UserError: the batch does not divide into microbatches, or those over the devices.
    """
    size, accumulation = config.train.batch_size, config.train.accumulation_steps
    check_batch_size(size, accumulation, batch_shards(mesh))
    return {
        name: jax.ShapeDtypeStruct(
            (accumulation, size // accumulation, *array.shape[1:]), array.dtype, sharding=batch_sharding(mesh)
        )
        for name, array in host_rows(config, losses, np.arange(1)).items()
    }


def random_batch(config: Config, losses: Losses, mesh: Mesh) -> dict[str, jax.Array]:
    """Returns a batch [A, B, ...] on the devices of a mesh. Raises UserError as `abstract_batch`."""
    size, accumulation = config.train.batch_size, config.train.accumulation_steps
    check_batch_size(size, accumulation, batch_shards(mesh))
    sharding = batch_sharding(mesh)
    rows = local_rows(size, accumulation, sharding)
    return to_devices(host_rows(config, losses, rows), rows, size, accumulation, sharding)
