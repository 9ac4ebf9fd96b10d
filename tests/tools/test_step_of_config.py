"""A training step without a corpus has the arrays of a run."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from bert_jax.errors import UserError
from bert_jax.parallel.mesh import ParallelConfig, batch_sharding, make_mesh
from bert_jax.tasks import base as tasks
from bert_jax.tasks.pretraining import Config, PhaseConfig
from tools.lib import step_of_config


@pytest.mark.parametrize("objectives", [("mlm",), ("mlm", "nsp"), ("mlm", "sop")])
def test_batches_are_those_of_a_run(objectives, tiny_config):
    task = tasks.create(
        tiny_config(objectives=objectives, **{"train.batch_size": 16, "train.accumulation_steps": 2}), Path("no-folder")
    )
    mesh = make_mesh(ParallelConfig())
    phase = task.training.phases()[0]
    of_run = task.training.batch(phase, np.arange(16), 0)
    losses = step_of_config.losses_of(task.config)
    abstract = step_of_config.abstract_batch(task.config, losses, mesh)
    batch = step_of_config.random_batch(task.config, losses, mesh)
    assert set(abstract) == set(batch) == set(of_run)
    for name, array in batch.items():
        assert array.shape == abstract[name].shape == (2, 8, *of_run[name].shape[1:])
        assert array.dtype == abstract[name].dtype == of_run[name].dtype
        assert array.sharding == abstract[name].sharding == batch_sharding(mesh)
    assert np.asarray(batch["mlm_weights"]).mean() > 0.9 * np.asarray(of_run["mlm_weights"]).mean()
    assert jax.tree.map(np.shape, losses.model.abstract) == jax.tree.map(np.shape, task.losses.model.abstract)


def phase(until_step: int, batch_size: int, accumulation_steps: int, length: int) -> PhaseConfig:
    return PhaseConfig(until_step, 0.0, batch_size, accumulation_steps, length)


def test_phases():
    config = Config(phases=(phase(10, 8, 2, 64), phase(20, 4, 1, 512)))
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, num_steps=20))
    chosen = step_of_config.of_phase(config)
    assert (chosen.train.batch_size, chosen.data.sequence_length) == (4, 512), "the longest sequences"
    first = step_of_config.of_phase(config, 0)
    assert (first.train.batch_size, first.train.accumulation_steps, first.data.sequence_length) == (8, 2, 64)
    with pytest.raises(UserError, match="--phase=2: the config has phases 0 to 1"):
        step_of_config.of_phase(config, 2)
    short = dataclasses.replace(config, model=dataclasses.replace(config.model, max_positions=128))
    with pytest.raises(UserError, match=r"sequence_length=512 must be from 8 to model.max_positions=128"):
        step_of_config.of_phase(short)
    no_pooler = dataclasses.replace(config, model=dataclasses.replace(config.model, pooler=False))
    with pytest.raises(UserError, match=r"need model.pooler=True"):
        step_of_config.losses_of(no_pooler)
