"""Labels for words, as in named-entity recognition, with a pretrained run: Devlin et al. 2019, section 5.3.

    python -m bert_jax.finetune --config=configs/finetune/tokens.py --workdir=runs/ner --config.init_from=runs/x \\
        --config.data.train=eng.train --config.data.validation=eng.testa

The files are those of CoNLL-2003 or like them: a word first in each line, its tag last, an empty line after each sentence. Tags
mark entities in IO, IOB1, IOB2 (BIO), IOBES, BILOU or BMES, which is detected, or are plain, such as parts of speech;
`--config.data.scheme=IOBES` trains on tags converted to that scheme. The examples are single sentences;
`--config.data.context=document`, as in the paper, puts as many sentences of a document into one as fit.

Hardware: any. Score: published for BERT-base, cased, with document context, not measured here: CoNLL-2003 F1 92.4 (test).
"""

from bert_jax.config import to_config_dict
from bert_jax.tasks.tokens import Config


def get_config():
    return to_config_dict(Config())
