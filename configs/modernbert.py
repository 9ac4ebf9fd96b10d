"""ModernBERT's encoder: Warner et al. 2024, section 2 and appendix A; sizes of the released models.

    python -m bert_jax.pretrain --config=configs/modernbert.py:base --workdir=runs/modern --config.data.corpus=corpora/mine

The argument is `base` or `large`. Norms before the layers, rotary positions, GeGLU, no biases, attention to all positions in
every third layer and to 64 on each side in the others; 30% of the tokens are masked, and there is no next-sentence prediction.
As published: computation in bfloat16, and 50,368 rows in the embedding, a multiple of 64.

Not as published: AdamW instead of StableAdamW; a constant learning rate after the warm-up, without decay; one batch size; one
phase, on 1,024 tokens, with the rotary base of the second one, which is on 8,192 tokens (160,000).

Corpus: published with 2 T tokens of web text, code and papers; byte-level BPE.
Hardware: published with 8 H100 GPUs, 8 days (base). Not measured here.
Score: published, not measured here: GLUE dev average of base 88.4, large 90.4.
"""

from typing import Any

from bert_jax.config import sizes_entry, to_config_dict
from bert_jax.data.pretraining.stream import DataConfig
from bert_jax.model.config import EncoderConfig
from bert_jax.tasks.pretraining import Config
from bert_jax.train.loop import TrainConfig
from bert_jax.train.optimizers import OptimizerConfig

# Model, learning rate, batch size, warm-up (3 G tokens for base, 2 G for large).
SIZES: dict[str, tuple[dict[str, Any], float, int, int]] = {
    "base": ({"hidden_size": 768, "num_layers": 22, "num_heads": 12, "intermediate_size": 1152}, 8e-4, 4608, 640),
    "large": ({"hidden_size": 1024, "num_layers": 28, "num_heads": 16, "intermediate_size": 2624}, 5e-4, 4928, 400),
}


def get_config(size: str = "base"):
    model, learning_rate, batch_size, warmup_steps = sizes_entry(SIZES, size)
    config = to_config_dict(
        Config(
            model=EncoderConfig(
                vocab_size=50_368,
                max_positions=8192,
                num_token_types=0,
                positions="rope",
                norm_position="pre",
                first_attention_norm=False,
                norm_epsilon=1e-5,
                gated_mlp=True,
                use_bias=False,
                global_attention_every=3,
                local_window=64,
                pooler=False,
                head_activation="gelu",
                classifier="transform",
                classifier_pooling="mean",
                dropout=0.0,
                attention_dropout=0.0,
                dtype="bfloat16",
                **model,
            ),
            objectives=("mlm",),
            data=DataConfig(sequence_length=1024),
            train=TrainConfig(num_steps=360_000, batch_size=batch_size),
            optimizer=OptimizerConfig(
                name="adamw",
                learning_rate=learning_rate,
                warmup_steps=warmup_steps,
                schedule="constant",
                b2=0.98,
                weight_decay=1e-5,
            ),
        )
    )
    config.options.mlm.mlm_probability = 0.3
    return config
