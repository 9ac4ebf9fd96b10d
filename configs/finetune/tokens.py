"""Fine-tuning on labels for words, e.g. named-entity recognition: Devlin et al. 2019, section 5.3.

    python -m bert_jax.finetune --config=configs/finetune/tokens.py --workdir=runs/ner --config.init_from=runs/x \\
        --config.data.train=eng.train --config.data.validation=eng.testa

The files are like those of CoNLL-2003: each line begins with a word and ends with its tag, and an empty line ends a sentence.
Tags mark entities in IO, IOB1, IOB2 (BIO), IOBES, BILOU or BMES, which is detected, or are plain, such as parts of speech;
`--config.data.scheme=IOBES` trains on tags converted to that scheme. An example is a single sentence, or, with
`--config.data.context=document` as in the paper, as many sentences of a document as fit.

Hardware: any; for BERT-base a GPU or TPU. Not measured here.
Score: published for BERT-base, cased, with document context, not measured here: CoNLL-2003 F1 92.4 (test).
"""

from bert_jax.config import to_config_dict
from bert_jax.tasks.tokens import Config


def get_config():
    return to_config_dict(Config())
