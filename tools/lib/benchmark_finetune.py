"""The sides of `tools/benchmark.py finetune`: steps of fine-tuning on a GLUE task."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bert_jax.parallel.mesh import make_mesh
from bert_jax.tasks import glue
from bert_jax.tasks.base import model_of_run
from bert_jax.tasks.common.training import training_batches
from bert_jax.train.step import Training

BATCHES = 8  # of a run, that the turns go through


def glue_task(name: str, directory: str, init_from: str, batch_size: int) -> Any:
    """Returns the task as a run of BERT's recipe has it."""
    config = glue.Config(init_from=init_from, model=model_of_run(Path(init_from)))
    config = dataclasses.replace(
        config,
        data=glue.DataConfig(name=name, dir=directory),
        train=dataclasses.replace(config.train, batch_size=batch_size),
    )
    return glue.Task.create(config, Path("no-run"))


def our_finetuning(task: Any, timed: Callable[[Callable[[int], Any]], Callable[[], float]]) -> Callable[[], float]:
    """Turns of the step that a run of this task takes, on its first batches."""
    config = task.config
    mesh = make_mesh(config.parallel)
    jax.set_mesh(mesh)
    batches = [batch for batch, _ in zip(training_batches(task.training, mesh, 0), range(BATCHES), strict=False)]
    training = Training.of(task.losses, config, mesh)
    state = training.make_state()
    step = training.jitted_step.lower(state, {}, batches[0]).compile()

    def run_step(number: int) -> Any:
        nonlocal state
        state, metrics = step(state, {}, batches[number % len(batches)])
        return metrics

    return timed(run_step)


def padding(task: Any) -> tuple[float, float]:
    """Shares of positions that hold no token: in our rows, and in random batches that are padded to their longest example."""
    plan, batch_size = task.training.plan, task.config.train.batch_size
    lengths, shape = plan.lengths, plan.shape(1)
    order = np.random.default_rng(0).permutation(len(lengths))
    batches = [lengths[order[start : start + batch_size]] for start in range(0, len(order), batch_size)]
    padded = sum(len(batch) * batch.max() for batch in batches)
    positions = plan.batches_per_epoch * shape.rows * shape.length
    return 1 - lengths.sum() / positions, 1 - lengths.sum() / padded
