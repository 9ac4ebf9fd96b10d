"""DistilBERT: Sanh et al. 2019, and the research code (examples/research_projects/distillation of huggingface/transformers).

    python -m bert_jax.pretrain --config=configs/distilbert.py --workdir=runs/distilbert --config.data.corpus=corpora/mine \\
        --config.options.distillation.folder=runs/bert_base --config.init_from=runs/bert_base

The folder is that of the teacher, BERT-base: a run, or a model in Hugging Face's format; the corpus must have its tokenizer.
The student has six of its layers, without token types and pooler, and starts from the teacher's layers 0, 2, 4, 7, 9 and 11
(with --config.init_layers='()' and no init_from, from random weights). It learns from the teacher's predictions of every token
(5 times the divergence at temperature 2), from masked tokens (2) and from the direction of the last hidden states (1). The
teacher is kept in the run folder.

--config.options.distillation.restrict_ce_to_mask=True compares predictions at the masked positions alone, for a fraction of
the products with the vocabulary.

Not as published: masked positions are drawn uniformly, 15% of each row (in the research code rare tokens more often,
mlm_smoothing, and 15% of a batch); rows are full windows across documents (there one text each, cut and padded); the whole MLM
head is the teacher's (there, a transform is copied with an option); computation in bfloat16; 30,592 rows for 30,522 tokens (see
configs/bert_base.py). Not published: the number of steps; 6,000 are about three epochs, the research code's default, with its
share of warm-up, 5%.

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
            objectives=("distillation",),
            init_layers=(0, 2, 4, 7, 9, 11),
            data=DataConfig(sequence_length=512),
            train=TrainConfig(num_steps=6000, batch_size=4096),
            optimizer=OptimizerConfig(
                name="adamw",
                learning_rate=5e-4,
                b2=0.98,
                warmup_steps=300,
                schedule="linear",
                weight_decay=0.0,
                clip_norm=5.0,
            ),
        )
    )
