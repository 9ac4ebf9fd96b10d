"""BERT-base, uncased, as published: Devlin et al. 2019, section 3 and appendix A.2.

    python -m bert_jax.pretrain --config=configs/bert_base.py --workdir=runs/base --config.data.corpus=corpora/mine
    python -m bert_jax.pretrain --config=configs/bert_base.py:512 --workdir=runs/base_512 \\
        --config.data.corpus=corpora/mine --config.init_from=runs/base

The first command trains on sequences of 128 tokens for 90% of the steps, the second on 512 for the rest, from the result of
the first. (The published run is one schedule over both. Here each phase has its own: the second starts at the rate that the
published schedule has after 90% of its steps, with a short warm-up, for Adam's moments start from zero.)

Corpus: English Wikipedia and BooksCorpus, 3.3 G words, and a lower-casing vocabulary of 30,522 tokens.
Hardware: published with 4 Cloud TPUs (16 TPU chips), 4 days. Not measured here.
Score: published, not measured here: GLUE test average 79.6 (MNLI-m 84.6, SST-2 93.5), SQuAD v1.1 dev F1 88.5.
"""

from bert_jax.config import sizes_entry, to_config_dict
from bert_jax.data.pretraining.stream import DataConfig
from bert_jax.model.config import EncoderConfig
from bert_jax.tasks.pretraining import Config
from bert_jax.train.loop import TrainConfig
from bert_jax.train.optimizers import OptimizerConfig

# Tokens of a sequence: steps, learning rate, warm-up.
PHASES = {"128": (900_000, 1e-4, 10_000), "512": (100_000, 1e-5, 1_000)}


def get_config(length: str = "128"):
    num_steps, learning_rate, warmup_steps = sizes_entry(PHASES, length)
    return to_config_dict(
        Config(
            model=EncoderConfig(),  # the defaults are BERT-base
            objectives=("mlm", "nsp"),
            data=DataConfig(sequence_length=int(length)),
            train=TrainConfig(num_steps=num_steps, batch_size=256),
            optimizer=OptimizerConfig(
                name="bert_adam",
                learning_rate=learning_rate,
                warmup_steps=warmup_steps,
                schedule="linear_from_start",
                weight_decay=0.01,
            ),
        )
    )
