"""A small encoder for a laptop, pretrained on the English documentation of Python and its packages: what the quickstart trains.

    launch/quickstart.sh

It has BERT's layers, but with norms before them and rotary positions: in a run as short as this one, BERT's own learn little
more than the frequencies of words (see docs/results.md).

Hardware: 2 CPU cores, 2 minutes. Score: measured, held-out accuracy of masked language modelling 0.31 (docs/results.md).
"""

from bert_jax.config import to_config_dict
from bert_jax.data.pretraining.stream import DataConfig
from bert_jax.model.config import EncoderConfig
from bert_jax.run_folder.checkpoints import CheckpointConfig
from bert_jax.tasks.pretraining import Config
from bert_jax.train.loop import TrainConfig
from bert_jax.train.optimizers import OptimizerConfig

HELD_OUT = 0.1  # share of the modules that neither pretraining nor fine-tuning sees
COMPARED_STEPS = 20  # compared between one device and a mesh


def get_config():
    return to_config_dict(
        Config(
            model=EncoderConfig(
                vocab_size=8192,
                hidden_size=128,
                num_layers=2,
                num_heads=4,
                intermediate_size=512,
                max_positions=128,
                positions="rope",
                norm_position="pre",
                dropout=0.0,
                attention_dropout=0.0,
            ),
            objectives=("mlm",),
            data=DataConfig(sequence_length=64),
            train=TrainConfig(
                num_steps=2800, batch_size=32, log_every=1, eval_every=350, eval_batch_size=64, eval_examples=1024
            ),
            optimizer=OptimizerConfig(name="adamw", learning_rate=3e-3, b2=0.98, warmup_steps=100, schedule="linear"),
            checkpoint=CheckpointConfig(every=350),
        )
    )
