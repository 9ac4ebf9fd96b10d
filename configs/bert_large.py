"""BERT-large, uncased, as published: Devlin et al. 2019, section 3 and appendix A.2.

    python -m bert_jax.pretrain --config=configs/bert_large.py --workdir=runs/large --config.data.corpus=corpora/mine
    python -m bert_jax.pretrain --config=configs/bert_large.py:512 --workdir=runs/large_512 \\
        --config.data.corpus=corpora/mine --config.init_from=runs/large

The two phases are those of configs/bert_base.py. Where a batch does not fit, set train.accumulation_steps, parallel.fsdp or
model.remat='full'; neither changes what is learnt.

Corpus: as for BERT-base.
Hardware: published with 16 Cloud TPUs (64 TPU chips), 4 days. Not measured here.
Score: published, not measured here: GLUE test average 82.1 (MNLI-m 86.7, SST-2 94.9), SQuAD v1.1 dev F1 90.9.
"""

from configs import bert_base


def get_config(length: str = "128"):
    config = bert_base.get_config(length)
    config.model.update(hidden_size=1024, num_layers=24, num_heads=16, intermediate_size=4096)
    return config
