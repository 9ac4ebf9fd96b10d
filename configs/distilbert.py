"""DistilBERT's model: Sanh et al. 2019, trained as a masked language model.

    python -m bert_jax.pretrain --config=configs/distilbert.py --workdir=runs/distilbert --config.data.corpus=corpora/mine

Six layers of BERT-base's size, without token types and pooler. Learning rate, clipping and the missing weight decay are as
published.

Not as published: there is no distillation yet (the published model also learns from BERT-base's predictions, and starts from
its layers); steps and warm-up; computation in bfloat16; 30,592 rows for 30,522 tokens (see configs/bert_base.py).

Corpus: as for BERT-base.
Hardware: published with 8 V100 GPUs, 90 hours. Not measured here.
Score: published, not measured here: GLUE dev macro score 77.0.
"""

from bert_jax.config import to_config_dict
from bert_jax.data.pretraining.stream import DataConfig
from bert_jax.model.config import EncoderConfig
from bert_jax.tasks.pretraining import Config
from bert_jax.train.loop import TrainConfig
from bert_jax.train.optimizers import OptimizerConfig


def get_config():
    return to_config_dict(
        Config(
            model=EncoderConfig(
                vocab_size=30_592,
                hidden_size=768,
                num_layers=6,
                num_heads=12,
                intermediate_size=3072,
                max_positions=512,
                num_token_types=0,
                pooler=False,
                classifier="relu",
                dtype="bfloat16",
            ),
            objectives=("mlm",),
            data=DataConfig(sequence_length=512),
            train=TrainConfig(num_steps=100_000, batch_size=4096),
            optimizer=OptimizerConfig(
                name="adamw", learning_rate=5e-4, warmup_steps=5000, schedule="linear", weight_decay=0.0, clip_norm=5.0
            ),
        )
    )
