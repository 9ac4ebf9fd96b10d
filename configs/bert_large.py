"""BERT-large, uncased: Devlin et al. 2019, section 3 and appendix A.2.

    python -m bert_jax.pretrain --config=configs/bert_large.py --workdir=runs/large --config.data.corpus=corpora/mine

Phases, schedule, GELU, bfloat16 and padded vocabulary are those of configs/bert_base.py, and so is the argument: the number of
steps. If a batch does not fit into memory, see there.

Corpus: as for BERT-base.
Hardware: published with 16 Cloud TPUs (64 TPU chips), 4 days. Not measured here.
Score: published, not measured here: GLUE test average 82.1 (MNLI-m 86.7, SST-2 94.9), SQuAD v1.1 dev F1 90.9.
"""

from configs import bert_base


def get_config(num_steps: str = "1000000"):
    config = bert_base.get_config(num_steps)
    config.model.update(hidden_size=1024, num_layers=24, num_heads=16, intermediate_size=4096)
    return config
