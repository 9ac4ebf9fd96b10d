"""Continued pretraining of a published or own model on your own text (Gururangan et al. 2020, "Don't stop pretraining").

    python -m bert_jax.pretrain --config=configs/continue.py --config.init_from=RUN_OR_MODEL \\
        --config.data.corpus=corpora/mine --workdir=runs/mine

`init_from` is a run folder or a model in Hugging Face's format. Model, objectives and their options are taken from there;
setting an option that contradicts them is an error. Prepare the corpus with the same tokenizer: tools/prepare_corpus.py
--tokenizer=RUN_OR_MODEL. tools/extend_vocabulary.py adds the words of your text to it first.

Evaluations measure what is gained and what is forgotten: `eval/mlm/loss` is on held-out text of your corpus, and
`eval/NAME/mlm/loss` on that of the corpus that the run in `init_from` was trained on, or of any other in
--config.data.eval_corpora=corpora/NAME. To forget less, mix general text in: --config.data.mixture=0.3:corpora/general.

The learning rate rises again, to a fraction of what pretraining used, and falls to zero. 12,500 steps of 256 sequences are
a pass over 1.6 G tokens; for less text take fewer steps (--config.train.num_steps), about three epochs.

Hardware: any; for BERT-base a GPU or TPU. Not measured here.
Score: published for RoBERTa-base, 12,500 steps of 2,048 sequences, not measured here: ACL-ARC, macro F1, 63.0 -> 75.4.
"""

from ml_collections import config_dict

from bert_jax.config import to_config_dict, unset
from bert_jax.data.pretraining.stream import DataConfig
from bert_jax.tasks.pretraining import Config
from bert_jax.train.loop import TrainConfig
from bert_jax.train.optimizers import OptimizerConfig


def get_config():
    config = to_config_dict(
        Config(
            data=DataConfig(sequence_length=512, eval_origin=True),
            train=TrainConfig(num_steps=12_500, batch_size=256, eval_every=500),
            optimizer=OptimizerConfig(
                name="adamw", learning_rate=1e-4, warmup_steps=500, schedule="linear", b2=0.98, weight_decay=0.01
            ),
        )
    )
    config.model, config.options = unset(config.model), unset(config.options)
    config.objectives = config_dict.placeholder(tuple)
    return config
