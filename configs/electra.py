"""ELECTRA: Clark et al. 2020, section 2 and table 6; google-research/electra.

    python -m bert_jax.pretrain --config=configs/electra.py:small --workdir=runs/electra --config.data.corpus=corpora/mine

The argument is `small`, `base` or `large`. A generator of 1/4 (base: 1/3) of the discriminator's width shares its embeddings
and fills 15% (large: 25%) of the positions, of which 85% are masked and 15% shown; the discriminator tells which tokens were
replaced. Losses have weights 1 and 50. Checkpoints hold both models, tools/convert_checkpoint.py exports both, and what is
fine-tuned is the discriminator. The released small model is that of appendix A with a generator as wide as the discriminator
(--config.options.rtd.generator_size=1), on sequences of 512 tokens.

Not as published: an example is one segment, always full (the original cuts nine of ten in two, with token types, and shortens
one in twenty); the positions of an example are distinct (drawn with replacement in the original); in warm-up the rate rises
linearly (in the original times the decay, 0.99 at its end); computation in bfloat16; 30,592 rows for 30,522 tokens (see
configs/bert_base.py).

Corpus: small and base as for BERT-base; large 33 G tokens, with web text.
Hardware: published: small on one V100 GPU, 4 days; base on 16 TPU v3 chips, 4 days (large: not found). Not measured
here.
Score: published, not measured here: GLUE dev average of small 79.9, base 85.1; large, after 1,750,000 steps, MNLI 90.9, SST-2
96.9.
"""

from typing import Any

from bert_jax.config import sizes_entry, to_config_dict
from bert_jax.data.pretraining.stream import DataConfig
from bert_jax.model.config import EncoderConfig
from bert_jax.tasks.pretraining import Config
from bert_jax.train.loop import TrainConfig
from bert_jax.train.optimizers import OptimizerConfig

# Model; sequence length, batch size, steps, learning rate; masked share, generator's size.
SIZES: dict[str, tuple[dict[str, Any], tuple, tuple[float, float]]] = {
    "small": (
        {"hidden_size": 256, "num_layers": 12, "num_heads": 4, "intermediate_size": 1024, "embedding_size": 128},
        (128, 128, 1_000_000, 5e-4),
        (0.15, 1 / 4),
    ),
    "base": (
        {"hidden_size": 768, "num_layers": 12, "num_heads": 12, "intermediate_size": 3072},
        (512, 256, 766_000, 2e-4),
        (0.15, 1 / 3),
    ),
    "large": (
        {"hidden_size": 1024, "num_layers": 24, "num_heads": 16, "intermediate_size": 4096},
        (512, 2048, 400_000, 2e-4),
        (0.25, 1 / 4),
    ),
}


def get_config(size: str = "small"):
    model, (sequence_length, batch_size, num_steps, learning_rate), (masked, generator) = sizes_entry(SIZES, size)
    config = to_config_dict(
        Config(
            model=EncoderConfig(
                vocab_size=30_592,
                max_positions=512,
                pooler=False,
                head_activation="gelu",
                classifier="gelu",
                dtype="bfloat16",
                **model,
            ),
            objectives=("rtd",),
            data=DataConfig(sequence_length=sequence_length),
            train=TrainConfig(num_steps=num_steps, batch_size=batch_size),
            optimizer=OptimizerConfig(
                name="bert_adam", learning_rate=learning_rate, warmup_steps=10_000, schedule="linear_from_start"
            ),
        )
    )
    config.options.rtd.update(mlm_probability=masked, generator_size=generator)
    return config
