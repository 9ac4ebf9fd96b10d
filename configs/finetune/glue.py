"""A task of GLUE with a pretrained run, in the recipe of BERT or of RoBERTa.

    python -m bert_jax.finetune --config=configs/finetune/glue.py:MRPC --workdir=runs/mrpc \\
        --config.init_from=runs/x --config.data.dir=GLUE

The folder of `data.dir` holds the official folders CoLA/, SST-2/, MRPC/ and so on. With `--config.data.dir=tfds` it is the
TensorFlow dataset glue/mrpc instead, in ArrayRecord files and without TensorFlow: from $TFDS_DATA_DIR or ~/tensorflow_datasets,
or with `tfds:DATA_DIR` from there. What is not prepared there is downloaded and prepared first; before a run on several hosts,
run one host alone for that.

`glue.py:MRPC,roberta` takes RoBERTa's settings in the place of BERT's, `glue.py:all` (or `all,roberta`) fine-tunes on one task
after the other, and `--config.seeds=5` with five seeds.

BERT (Devlin et al. 2019, section 4.1): batch 32, 3 epochs, the best learning rate of 5e-5, 4e-5, 3e-5 and 2e-5 on the
development set; the largest is taken here. RoBERTa (Liu et al. 2019, table 10): 10 epochs at most, warm-up over 6%, batch 16 or
32 and a learning rate of 1e-5, 2e-5 or 3e-5; by task as released with its large model (fairseq, examples/roberta,
README.glue.md).

Hardware: any.
"""

from typing import Any

from ml_collections.config_dict import placeholder

from bert_jax.config import sizes_entry, to_config_dict
from bert_jax.tasks.glue import Config, DataConfig

# Learning rate and batch size.
ROBERTA = {
    "CoLA": (1e-5, 16),
    "SST-2": (1e-5, 32),
    "MRPC": (1e-5, 16),
    "STS-B": (2e-5, 16),
    "QQP": (1e-5, 32),
    "MNLI": (1e-5, 32),
    "QNLI": (1e-5, 32),
    "RTE": (2e-5, 16),
    "WNLI": (2e-5, 16),
}
BERT = dict.fromkeys(ROBERTA, (5e-5, 32))
# By task, and what differs from the defaults, which are BERT's. RoBERTa's decays every parameter and does not clip.
RECIPES: dict[str, tuple[dict[str, tuple[float, int]], dict[str, Any]]] = {
    "bert": (BERT, {}),
    "roberta": (
        ROBERTA,
        {
            "num_epochs": 10.0,
            "warmup_share": 0.06,
            "optimizer.b2": 0.98,
            "optimizer.weight_decay": 0.1,
            "optimizer.no_decay": "$^",
            "optimizer.clip_norm": 0.0,
        },
    ),
}


def get_config(argument: str = "MRPC"):
    name, _, recipe_name = argument.partition(",")
    by_task, options = sizes_entry(RECIPES, recipe_name or "bert")
    values = to_config_dict(Config(data=DataConfig(name=name)))
    values.update_from_flattened_dict(options)
    if name != "all":
        values.optimizer.learning_rate, values.train.batch_size = sizes_entry(by_task, name)
        return values
    values.optimizer.learning_rate, values.train.batch_size = placeholder(float), placeholder(int)
    values.of_tasks = {  # see bert_jax/finetune.py, `of_glue_task`
        task: {"optimizer": {"learning_rate": rate}, "train": {"batch_size": size}}
        for task, (rate, size) in by_task.items()
    }
    return values
