"""What tests of several tools share."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def run_with_average(tiny_config, tmp_path_factory) -> Path:
    """A run of 4 steps with a moving average, and checkpoints of steps 2, 3 (the best one then) and 4. To be read only."""
    from bert_jax.run import run_training

    workdir = tmp_path_factory.mktemp("with_average") / "run"
    settings = {"objectives": ("mlm",), "train.ema_decay": 0.9, "train.eval_every": 3, "model.dropout": 0.1}
    run_training(tiny_config(**settings, **{"checkpoint.keep_last": 9, "optimizer.learning_rate": 0.05}), workdir)
    return workdir
