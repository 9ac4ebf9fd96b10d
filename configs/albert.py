"""ALBERT: Lan et al. 2020, section 4.1 and appendix A.4; sizes, and no dropout, as in google-research/albert, version 2.

    python -m bert_jax.pretrain --config=configs/albert.py:base --workdir=runs/albert --config.data.corpus=corpora/mine

The argument is `base`, `large`, `xlarge` or `xxlarge`. All layers share one set of weights; embedding tables of width 128,
n-grams of up to three words are masked, sentence-order prediction, LAMB, no dropout.

Not as published: n-grams end at special tokens, so none spans two segments; pairs start in windows of the corpus, as in
configs/bert_base.py; computation in bfloat16; 30,080 rows for 30,000 tokens, a multiple of 128 (see there).

Corpus: as for BERT-base; unigram (SentencePiece), lower case, 30,000 tokens.

Hardware: published with 64 to 512 TPU v3 chips. Not measured here.
Score: published for version 2, which was trained for many more steps than the 125,000 of the paper, not measured here: MNLI and
SST-2 of base 84.6 and 92.9, large 86.5 and 94.9, xlarge 87.9 and 95.4, xxlarge 90.6 and 96.8.
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
    config = to_config_dict(
        Config(
            model=EncoderConfig(
                vocab_size=30_080,
                embedding_size=128,
                num_layer_groups=1,
                max_positions=512,
                activation="gelu_tanh",
                dropout=0.0,
                attention_dropout=0.0,
                dtype="bfloat16",
                **sizes_entry(SIZES, size),
            ),
            objectives=("mlm", "sop"),
            data=DataConfig(sequence_length=512),
            train=TrainConfig(num_steps=125_000, batch_size=4096),
            optimizer=OptimizerConfig(
                name="lamb", learning_rate=1.76e-3, warmup_steps=3125, schedule="linear_from_start", clip_norm=1.0
            ),
        )
    )
    config.options.mlm.masking = "ngram"
    return config
