"""Fine-tuning on a task of GLUE, or on all of them, with the settings of BERT, RoBERTa, ALBERT or ELECTRA.

    python -m bert_jax.finetune --config=configs/finetune/glue.py:MRPC --workdir=runs/mrpc \\
        --config.init_from=runs/x --config.data.dir=GLUE

`data.dir` is the folder with the official folders CoLA/, SST-2/, MRPC/ and so on. With `--config.data.dir=tfds`, the data are
the TensorFlow dataset glue/mrpc in ArrayRecord files, read without TensorFlow from $TFDS_DATA_DIR or ~/tensorflow_datasets, or
with `tfds:DATA_DIR` from that folder. If it is not prepared there, it is downloaded and prepared; do this on a single host
before a run on several.

`glue.py:MRPC,roberta` has RoBERTa's settings instead of BERT's; there are also `albert`, `electra` and `electra_large`.
`glue.py:all` (or `all,roberta`) fine-tunes on one task after the other, and `--config.seeds=5` with five seeds. Predictions in
the run folder have a line for each example of the development set; for MNLI the matched set comes first, then the mismatched.

Settings by family, and their sources:

- BERT (Devlin et al. 2019, section 4.1): 3 epochs in batches of 32. The paper takes the best learning rate of 5e-5, 4e-5, 3e-5
  and 2e-5 on the development set; here it is the largest.
- RoBERTa (Liu et al. 2019, table 10; fairseq, examples/roberta/README.glue.md): at most 10 epochs, 6% warm-up; batch size (16
  or 32) and learning rate by task as released for the large model.
- ALBERT (google-research/albert, run_glue.sh): steps, warm-up, learning rate and batch size by task, up to 512 tokens. WNLI,
  which is not there, has those of RTE; dropout is the model's.
- ELECTRA (google-research/electra, configure_finetuning.py): 3 epochs, 10 for RTE and STS-B, layer-wise decay of the learning
  rate. Its second copy of MRPC and STS-B with swapped texts is not here.

Hardware: any; for BERT-base a GPU or TPU. Not measured here.
Score: published for BERT-base, not measured here: GLUE test average 79.6. Measured with a smaller encoder: docs/results.md.
"""

from typing import Any

from ml_collections.config_dict import placeholder

from bert_jax.config import sizes_entry, to_config_dict
from bert_jax.tasks.glue import Config, DataConfig

Options = dict[str, Any]  # by 'section.field'


def by_task(fields: tuple[str, ...], table: dict[str, tuple[Any, ...]]) -> dict[str, Options]:
    """Returns the options of each task, from a table with a line for each."""
    return {task: dict(zip(fields, line, strict=True)) for task, line in table.items()}


RATE_AND_BATCH = ("optimizer.learning_rate", "train.batch_size")
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
ALBERT = {  # with the steps and the warm-up steps
    "CoLA": (1e-5, 16, 5336, 320),
    "SST-2": (1e-5, 32, 20935, 1256),
    "MRPC": (2e-5, 32, 800, 200),
    "STS-B": (2e-5, 16, 3598, 214),
    "QQP": (5e-5, 128, 14000, 1000),
    "MNLI": (3e-5, 128, 10000, 1000),
    "QNLI": (1e-5, 32, 33112, 1986),
    "RTE": (3e-5, 32, 800, 200),
    "WNLI": (3e-5, 32, 800, 200),
}
BERT = dict.fromkeys(ROBERTA, (5e-5, 32))
ELECTRA = {task: (10.0 if task in ("RTE", "STS-B") else 3.0,) for task in ROBERTA}  # epochs
# No bias correction, and a learning rate that falls from the first step on, during warm-up, too.
AS_PRETRAINED = {"optimizer.name": "bert_adam", "optimizer.schedule": "linear_from_start"}

# Options by task, and options of all tasks that differ from the defaults, which are BERT's. RoBERTa decays all parameters.
RECIPES: dict[str, tuple[dict[str, Options], Options]] = {
    "bert": (by_task(RATE_AND_BATCH, BERT), {}),
    "roberta": (
        by_task(RATE_AND_BATCH, ROBERTA),
        {
            "num_epochs": 10.0,
            "warmup_ratio": 0.06,
            "optimizer.b2": 0.98,
            "optimizer.weight_decay": 0.1,
            "optimizer.no_decay": "$^",
            "optimizer.clip_norm": 0.0,
        },
    ),
    "albert": (
        by_task((*RATE_AND_BATCH, "train.num_steps", "optimizer.warmup_steps"), ALBERT),
        AS_PRETRAINED | {"data.sequence_length": 512},
    ),
    "electra": (
        by_task(("num_epochs",), ELECTRA),
        AS_PRETRAINED | {"optimizer.learning_rate": 1e-4, "optimizer.layer_decay": 0.8},
    ),
    "electra_large": (
        by_task(("num_epochs",), ELECTRA),
        AS_PRETRAINED | {"optimizer.learning_rate": 5e-5, "optimizer.layer_decay": 0.9},
    ),
}


def get_config(argument: str = "MRPC"):
    name, _, recipe_name = argument.partition(",")
    of_tasks, of_all = sizes_entry(RECIPES, recipe_name or "bert")
    values = to_config_dict(Config(data=DataConfig(name=name)))
    values.update_from_flattened_dict(of_all)
    if name != "all":
        values.update_from_flattened_dict(sizes_entry(of_tasks, name))
        return values
    for option, value in of_tasks["CoLA"].items():
        values.update_from_flattened_dict({option: placeholder(type(value))})
    # See bert_jax/finetune.py, `of_glue_task`.
    values.of_tasks = {task: tuple(options.items()) for task, options in of_tasks.items()}
    return values
