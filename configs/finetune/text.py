"""Fine-tuning on your own texts, single or in pairs: Devlin et al. 2019, section 4.1 and appendix A.3.

    python -m bert_jax.finetune --config=configs/finetune/text.py --workdir=runs/y --config.init_from=runs/x \\
        --config.data.train=train.jsonl --config.data.validation=dev.jsonl

The files are JSON lines, or TSV or CSV with a header, with the fields `text` and `label`; `data.text_field`,
`data.second_field` and `data.label_field` set other names, and the second text of a pair. `--config.problem=regression`
predicts a number, `--config.problem=multi_label` several labels at once. More options: docs/finetuning.md.

3 epochs in batches of 32. The paper tries learning rates of 5e-5, 4e-5, 3e-5 and 2e-5 and takes the best on the validation
file; the default is the largest, with AdamW.

Hardware: any; for BERT-base a GPU or TPU. Not measured here.
Score: published for BERT-base, not measured here: SST-2 93.5, MRPC F1 88.9, MNLI-m 84.6 (GLUE test).
"""

from bert_jax.config import to_config_dict
from bert_jax.tasks.text import Config


def get_config():
    return to_config_dict(Config())  # the defaults are the paper's, except the optimizer: see `FineTuningConfig`
