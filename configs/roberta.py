"""RoBERTa as published: Liu et al. 2019, section 3 and appendix A; sizes and tables of the released models (fairseq).

    python -m bert_jax.pretrain --config=configs/roberta.py:base --workdir=runs/roberta --config.data.corpus=corpora/mine

The argument is `base` or `large`. Full windows of 512 tokens, new masks in every epoch, no next-sentence prediction, weight
decay on all parameters, no clipping. As in fairseq, the number of predictions is rounded at random, <s> and </s> can be
masked, and random replacements are never special tokens.

Not as published: windows are cut anywhere, not between sentences; bfloat16 instead of float16 for the computation, and 50,304
rows for 50,265 tokens, a multiple of 128 (see configs/bert_base.py).

Corpus: published with 160 GB of text; byte-level BPE, 50,265 tokens.
Hardware: published with 1,024 V100 GPUs, about one day for the first 100k steps of large (base: not found). Not measured here.
Score: published (fairseq), not measured here, GLUE dev: base, MNLI 87.6, SST-2 94.8, RTE 78.7; large, MNLI 90.2, SST-2 96.4,
RTE 86.6, and SQuAD v1.1 F1 94.6.
"""

from typing import Any

from bert_jax.config import sizes_entry, to_config_dict
from bert_jax.data.pretraining.stream import DataConfig
from bert_jax.model.config import EncoderConfig
from bert_jax.tasks.pretraining import Config
from bert_jax.train.loop import TrainConfig
from bert_jax.train.optimizers import OptimizerConfig

# Model, learning rate, warm-up.
SIZES: dict[str, tuple[dict[str, Any], float, int]] = {
    "base": ({"hidden_size": 768, "num_layers": 12, "num_heads": 12, "intermediate_size": 3072}, 6e-4, 24_000),
    "large": ({"hidden_size": 1024, "num_layers": 24, "num_heads": 16, "intermediate_size": 4096}, 4e-4, 30_000),
}


def get_config(size: str = "base"):
    model, learning_rate, warmup_steps = sizes_entry(SIZES, size)
    config = to_config_dict(
        Config(
            model=EncoderConfig(
                vocab_size=50_304,
                max_positions=512,
                position_offset=2,
                num_token_types=1,
                norm_epsilon=1e-5,
                pooler=False,
                head_activation="gelu",
                classifier="tanh",
                dtype="bfloat16",
                **model,
            ),
            objectives=("mlm",),
            data=DataConfig(sequence_length=512),
            train=TrainConfig(num_steps=500_000, batch_size=8192),
            optimizer=OptimizerConfig(
                name="adamw",
                learning_rate=learning_rate,
                warmup_steps=warmup_steps,
                schedule="linear",
                b2=0.98,
                no_decay="$^",  # matches nothing
                clip_norm=0.0,
            ),
        )
    )
    config.options.mlm.update(count="stochastic", random_from="text", mask_special=True)
    return config
