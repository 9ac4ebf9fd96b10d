"""A small BERT for a laptop, trained on the English documentation of the installed Python packages.

launch/quickstart.sh

Hardware: 2 CPU cores (as 4 virtual devices: 2 x data, 2 x fsdp).
"""

from bert_jax.checkpoint.store import CheckpointConfig
from bert_jax.config import to_config_dict
from bert_jax.data.pipeline import DataConfig
from bert_jax.model.config import EncoderConfig
from bert_jax.parallel.mesh import ParallelConfig
from bert_jax.tasks.pretraining import Config
from bert_jax.train.loop import TrainConfig
from bert_jax.train.optimizers import OptimizerConfig


def get_config():
    return to_config_dict(
        Config(
            model=EncoderConfig(
                vocab_size=8192,
                hidden_size=128,
                num_layers=3,
                num_heads=4,
                intermediate_size=512,
                max_positions=128,
                dropout=0.0,
                attention_dropout=0.0,
            ),
            objectives=("mlm", "nsp"),
            data=DataConfig(sequence_length=64),
            train=TrainConfig(
                num_steps=1200, batch_size=64, log_every=1, eval_every=200, eval_batch_size=64, eval_examples=512
            ),
            optimizer=OptimizerConfig(name="adamw", learning_rate=1e-3, warmup_steps=100, schedule="linear"),
            parallel=ParallelConfig(data=2, fsdp=2),
            checkpoint=CheckpointConfig(every=200),
        )
    )
