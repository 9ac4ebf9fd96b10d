"""The 24 compact BERTs: Turc et al. 2019, "Well-Read Students Learn Better"; google-research/bert, "smaller BERT models".

    python -m bert_jax.pretrain --config=configs/bert_compact.py:4_256 --workdir=runs/mini --config.data.corpus=corpora/mine

The argument is LAYERS_WIDTH: 2, 4, 6, 8, 10 or 12 layers of 128, 256, 512 or 768 (2_128 is called tiny, 4_256 mini,
4_512 small, 8_512 medium); `4_256,50000` takes 50,000 steps instead of a million. Phases, schedule, GELU, bfloat16 and padded
vocabulary are those of configs/bert_base.py; on CPUs, set --config.model.dtype=float32, which is faster there.

Corpus: as for BERT-base.
Hardware: any; 4_256 trains on one GPU. Not measured here.
Score: published, not measured here: GLUE test average of tiny 64.2, mini 65.8, small 71.2, medium 73.5.
"""

from bert_jax.config import sizes_entry
from configs import bert_base

LAYERS, WIDTHS = (2, 4, 6, 8, 10, 12), (128, 256, 512, 768)


def get_config(argument: str = "4_256"):
    size, _, num_steps = argument.partition(",")
    layers, width = sizes_entry({f"{layers}_{width}": (layers, width) for layers in LAYERS for width in WIDTHS}, size)
    config = bert_base.get_config(*filter(None, [num_steps]))
    config.model.update(hidden_size=width, num_layers=layers, num_heads=width // 64, intermediate_size=4 * width)
    return config
