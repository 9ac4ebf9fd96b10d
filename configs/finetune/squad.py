"""Question answering on SQuAD, or your own data in its format, with a pretrained run: Devlin et al. 2019, sections 4.2 and 4.3.

    python -m bert_jax.finetune --config=configs/finetune/squad.py:1.1 --workdir=runs/squad --config.init_from=runs/x \\
        --config.data.train=train-v1.1.json --config.data.validation=dev-v1.1.json

`squad.py:2.0` is for data with questions that have no answer: the threshold of "no answer" is tuned on the validation file and
kept in the run folder (of an imported run by `python -m bert_jax.evaluate --tune`). Windows of 384 tokens, 128 apart; questions
of 64 tokens, answers of 30 at most (google-research/bert run_squad.py). Of predictions/ in the run folder the official script
takes predictions.json and, as its --na-prob-file, na_prob.json.

Hardware: one GPU or TPU; BERT-base takes about an hour on one. Not measured here.
Score: published for BERT-base, not measured here: 1.1 F1 88.5, exact 80.8 (dev).
"""

from bert_jax.config import sizes_entry, to_config_dict
from bert_jax.tasks.qa import Config

RECIPES = {"1.1": (3.0, 32), "2.0": (2.0, 48)}  # epochs, batch size


def get_config(version: str = "1.1"):
    values = to_config_dict(Config())
    values.num_epochs, values.train.batch_size = sizes_entry(RECIPES, version)
    return values
