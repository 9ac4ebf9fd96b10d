"""A small encoder for CPUs, which the quickstart pretrains on the English documentation of Python and its packages.

    launch/quickstart.sh

or, on a corpus of your own, with a vocabulary of at most 8,192 tokens:

    python -m bert_jax.pretrain --config=configs/quickstart.py --workdir=runs/small --config.data.corpus=corpora/mine

The layers are BERT's, but with norms before them and rotary positions: in such a short run, BERT's own layers learn little more
than the frequencies of words (see docs/results.md). Computation is in float32, which is faster than bfloat16 on CPUs.

Hardware: 2 CPU cores, 2 minutes. Score: measured, held-out accuracy of masked language modelling 0.31 (docs/results.md).
"""

from bert_jax.config import to_config_dict
from bert_jax.data.pretraining.stream import DataConfig
from bert_jax.model.config import EncoderConfig
from bert_jax.run_folder.checkpoints import CheckpointConfig
from bert_jax.tasks.pretraining import Config
from bert_jax.train.loop import TrainConfig
from bert_jax.train.optimizers import OptimizerConfig

HELD_OUT = 0.1  # fraction of the modules, which neither pretraining nor fine-tuning sees
COMPARED_STEPS = 20  # whose losses on one device and on a mesh are compared


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
