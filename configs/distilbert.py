"""DistilBERT's model: Sanh et al. 2019, trained as a masked language model.

    python -m bert_jax.pretrain --config=configs/distilbert.py --workdir=runs/distilbert --config.data.corpus=corpora/mine

Six of BERT-base's layers, without token types and pooler. The published one learns from BERT-base's predictions as well as from
the masked tokens and starts from its layers; that is not here yet. Its rate of 5e-4, clipping at 5 and no weight decay are; the
steps and the warm-up are ours.

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
            model=EncoderConfig(num_layers=6, num_token_types=0, pooler=False, classifier="relu"),
            objectives=("mlm",),
            data=DataConfig(sequence_length=512),
            train=TrainConfig(num_steps=100_000, batch_size=4096),
            optimizer=OptimizerConfig(
                name="adamw", learning_rate=5e-4, warmup_steps=5000, schedule="linear", weight_decay=0.0, clip_norm=5.0
            ),
        )
    )
