"""The sides of `tools/benchmark.py finetune`: steps of fine-tuning on a GLUE task."""

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bert_jax.parallel.mesh import make_mesh
from bert_jax.tasks import glue
from bert_jax.tasks.base import model_of_run
from bert_jax.tasks.common.steps import training_batches
from bert_jax.train.training import Training
from tools.lib.benchmark_sides import Side, steps_in_turns

BATCHES = 8  # of a run, that the turns go through


def glue_task(name: str, directory: str, init_from: str, batch_size: int) -> Any:
    """Returns the task as a run of BERT's recipe has it."""
    data, model = glue.DataConfig(name=name, dir=directory), model_of_run(Path(init_from))
    train = dataclasses.replace(glue.Config().train, batch_size=batch_size)
    return glue.Task.create(glue.Config(init_from=init_from, model=model, data=data, train=train), Path("no-run"))


def our_finetuning(task: Any, steps_per_turn: int) -> Side:
    """Returns turns of the step that a run of this task takes, on its first batches."""
    mesh = make_mesh(task.config.parallel)
    jax.set_mesh(mesh)
    batches = list(itertools.islice(training_batches(task, mesh, 0), BATCHES))
    return steps_in_turns(Training.of(task.losses, task.config, mesh), batches, steps_per_turn)


def padding(task: Any) -> tuple[float, float]:
    """Returns the shares of positions without a token: in our rows, and in random batches padded to their longest example."""
    plan, batch_size = task.training.plan, task.config.train.batch_size
    lengths, shape = plan.lengths, plan.shape(1)
    order = np.random.default_rng(0).permutation(len(lengths))
    batches = [lengths[order[start : start + batch_size]] for start in range(0, len(order), batch_size)]
    padded = sum(len(batch) * batch.max() for batch in batches)
    positions = plan.batches_per_epoch * shape.rows * shape.length
    return 1 - lengths.sum() / positions, 1 - lengths.sum() / padded
