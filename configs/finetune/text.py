"""Classification of your own texts, single or in pairs, with a pretrained run: Devlin et al. 2019, section 4.1, appendix A.3.

    python -m bert_jax.finetune --config=configs/finetune/text.py --workdir=runs/y --config.init_from=runs/x \\
        --config.data.train=train.jsonl --config.data.validation=dev.jsonl

The files are JSON lines, or TSV or CSV with a header, with the fields `text` and `label`; other names, and a second text, are
options of `data`. `--config.problem=regression` predicts a number, `multi_label` several labels at once;
`--config.class_weights=balanced`, or weights by name (`rare=2.5,other=1`), are for rare classes.
The paper tries learning rates of 5e-5, 4e-5, 3e-5 and 2e-5 and takes the best on the validation file.
`--config.from_scratch=True` trains an encoder of the same shape that was not pretrained,
`--config.optimizer.trainable='heads/|pooler/'` the classifier alone (with a learning rate of about 1e-3).

Hardware: any; with BERT-base one GPU or TPU, minutes for ten thousand texts. Not measured here.
Score: published for BERT-base, not measured here: SST-2 93.5, MRPC F1 88.9, MNLI-m 84.6 (GLUE test).
"""

from bert_jax.config import to_config_dict
from bert_jax.tasks.text import Config


def get_config():
    return to_config_dict(Config())  # the paper's, but for the optimizer: see `FineTuningConfig`
