"""ALBERT: Lan et al. 2020, section 4.1 and appendix A.4; sizes and (no) dropout of version 2 are google-research/albert's.

    python -m bert_jax.pretrain --config=configs/albert.py:base --workdir=runs/albert --config.data.corpus=corpora/mine

The argument is `base`, `large`, `xlarge` or `xxlarge`. One set of layer weights, tables of width 128, sentence-order
prediction, LAMB, no dropout. (The published masks are of n-grams; these are of single tokens, or with whole_word_mask of whole
words.)

Hardware: published with 64 to 512 TPU v3 chips. Not measured here.
Score: published for version 2, which trained for many more steps than these 125k of the paper; not measured here: base, MNLI
84.6, SST-2 92.9.
"""

from typing import Any

from bert_jax.config import sizes_entry, to_config_dict
from bert_jax.data.pretraining.stream import DataConfig
from bert_jax.model.config import EncoderConfig
from bert_jax.tasks.pretraining import Config
from bert_jax.train.loop import TrainConfig
from bert_jax.train.optimizers import OptimizerConfig

SIZES: dict[str, dict[str, Any]] = {
    "base": {"hidden_size": 768, "num_layers": 12, "num_heads": 12, "intermediate_size": 3072},
    "large": {"hidden_size": 1024, "num_layers": 24, "num_heads": 16, "intermediate_size": 4096},
    "xlarge": {"hidden_size": 2048, "num_layers": 24, "num_heads": 16, "intermediate_size": 8192},
    "xxlarge": {"hidden_size": 4096, "num_layers": 12, "num_heads": 64, "intermediate_size": 16384},
}


def get_config(size: str = "base"):
    return to_config_dict(
        Config(
            model=EncoderConfig(
                vocab_size=30_000,
                embedding_size=128,
                num_layer_groups=1,
                activation="gelu_tanh",
                dropout=0.0,
                attention_dropout=0.0,
                **sizes_entry(SIZES, size),
            ),
            objectives=("mlm", "sop"),
            data=DataConfig(sequence_length=512),
            train=TrainConfig(num_steps=125_000, batch_size=4096),
            optimizer=OptimizerConfig(
                name="lamb", learning_rate=1.76e-3, warmup_steps=3125, schedule="linear", clip_norm=1.0
            ),
        )
    )
