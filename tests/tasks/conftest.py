"""What the tests of fine-tuning tasks share: a function that trains the tiny pretrained run."""

from collections.abc import Callable
from pathlib import Path

import pytest

from bert_jax import run
from bert_jax.config import to_config_dict


@pytest.fixture
def train(tiny_bert, tmp_path, monkeypatch) -> Callable[..., tuple[dict[str, float], Path]]:
    """`train(config, **{'num_epochs': 2.0})`: the last evaluation, and the run folder."""
    monkeypatch.setattr(run, "measured_matmul_flops", lambda *_: 1e9)
    settings = {"init_from": str(tiny_bert), "data.sequence_length": 16, "train.batch_size": 8, "train.log_every": 1}
    settings |= {"train.eval_batch_size": 4, "train.compilation_cache": False, "optimizer.learning_rate": 3e-3}

    def trained(config, name: str = "run", **changes):
        values = to_config_dict(config)
        values.update_from_flattened_dict(settings | changes)
        return run.run_training(values.lock(), tmp_path / name), tmp_path / name

    return trained
