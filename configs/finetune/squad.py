"""Fine-tuning on SQuAD, or on your own questions in its format: Devlin et al. 2019, sections 4.2 and 4.3.

    python -m bert_jax.finetune --config=configs/finetune/squad.py:1.1 --workdir=runs/squad --config.init_from=runs/x \\
        --config.data.train=train-v1.1.json --config.data.validation=dev-v1.1.json

`squad.py:2.0` is for data with unanswerable questions: the threshold for `null_score_diff` is chosen on the validation file and
kept in the run folder (for an imported run by `python -m bert_jax.evaluate --tune`). Windows have 384 tokens and are 128 tokens
apart, questions have at most 64 tokens and answers 30, as in google-research/bert, run_squad.py. The official evaluation script
reads predictions/predictions.json in the run folder and, as its --na-prob-file, predictions/na_prob.json.

Hardware: any; for BERT-base a GPU or TPU. Not measured here.
Score: published for BERT-base, not measured here: 1.1 F1 88.5, exact 80.8 (dev).
"""

from bert_jax.config import sizes_entry, to_config_dict
from bert_jax.tasks.qa import Config

RECIPES = {"1.1": (3.0, 32), "2.0": (2.0, 48)}  # epochs, batch size


def get_config(version: str = "1.1"):
    values = to_config_dict(Config())
    values.num_epochs, values.train.batch_size = sizes_entry(RECIPES, version)
    return values
