"""ELECTRA's models: Clark et al. 2020, appendix A, table 6, trained as masked language models.

    python -m bert_jax.pretrain --config=configs/electra.py:small_generator --workdir=runs/electra \\
        --config.data.corpus=corpora/mine

The argument is `small`, `base` or `large` for the discriminator, with `_generator` for its generator (sizes as released:
google-research/electra).

Not as published: there is no replaced token detection yet, so that both learn to predict masked tokens; computation in
bfloat16; 30,592 rows for 30,522 tokens (see configs/bert_base.py).

Corpus: small and base as for BERT-base.
Hardware: published: small on one V100 GPU, 4 days. Not measured here.
Score: published, not measured here: GLUE dev average of small 79.9, base 85.1.
"""

from typing import Any

from bert_jax.config import sizes_entry, to_config_dict
from bert_jax.data.pretraining.stream import DataConfig
from bert_jax.model.config import EncoderConfig
from bert_jax.tasks.pretraining import Config
from bert_jax.train.loop import TrainConfig
from bert_jax.train.optimizers import OptimizerConfig

# Model of the discriminator; sequence length, batch size, steps, learning rate, mlm_probability.
SIZES: dict[str, tuple[dict[str, Any], tuple]] = {
    "small": (
        {"hidden_size": 256, "num_layers": 12, "num_heads": 4, "intermediate_size": 1024, "embedding_size": 128},
        (128, 128, 1_000_000, 5e-4, 0.15),
    ),
    "base": (
        {"hidden_size": 768, "num_layers": 12, "num_heads": 12, "intermediate_size": 3072},
        (512, 256, 766_000, 2e-4, 0.15),
    ),
    "large": (
        {"hidden_size": 1024, "num_layers": 24, "num_heads": 16, "intermediate_size": 4096},
        (512, 2048, 400_000, 2e-4, 0.25),
    ),
}
# Differences of the generators, which are narrower (except `small`), but have the discriminator's embedding tables.
GENERATORS: dict[str, dict[str, Any]] = {
    "small": {},
    "base": {"hidden_size": 256, "num_heads": 4, "intermediate_size": 1024, "embedding_size": 768},
    "large": {"hidden_size": 256, "num_heads": 4, "intermediate_size": 1024, "embedding_size": 1024},
}


def get_config(name: str = "small"):
    size, _, part = name.partition("_")
    model, (sequence_length, batch_size, num_steps, learning_rate, mlm_probability) = sizes_entry(SIZES, size)
    if part:
        model = model | sizes_entry({f"{name}_generator": changes for name, changes in GENERATORS.items()}, name)
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
            objectives=("mlm",),
            data=DataConfig(sequence_length=sequence_length),
            train=TrainConfig(num_steps=num_steps, batch_size=batch_size),
            optimizer=OptimizerConfig(
                name="bert_adam", learning_rate=learning_rate, warmup_steps=10_000, schedule="linear_from_start"
            ),
        )
    )
    config.options.mlm.update(mlm_probability=mlm_probability, mask_replace_prob=0.85, random_replace_prob=0.0)
    return config
