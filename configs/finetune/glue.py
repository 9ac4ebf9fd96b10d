"""A task of GLUE with a pretrained run, in the recipe of BERT or of RoBERTa.

    python -m bert_jax.finetune --config=configs/finetune/glue.py:MRPC --workdir=runs/mrpc \\
        --config.init_from=runs/x --config.data.dir=GLUE

The folder of `data.dir` holds the official folders CoLA/, SST-2/, MRPC/ and so on. With `--config.data.dir=tfds` it is the
TensorFlow dataset glue/mrpc instead, in ArrayRecord files and without TensorFlow: from $TFDS_DATA_DIR or ~/tensorflow_datasets,
or with `tfds:DATA_DIR` from there. What is not prepared there is downloaded and prepared first; before a run on several hosts,
run one host alone for that.

`glue.py:MRPC,roberta` takes RoBERTa's settings in the place of BERT's, `glue.py:all` fine-tunes on one task after the other,
and `--config.seeds=5` with five seeds.

BERT (Devlin et al. 2019, section 4.1): batch 32, 3 epochs, the best learning rate of 5e-5, 4e-5, 3e-5 and 2e-5 on the
development set; the largest is taken here. RoBERTa (Liu et al. 2019, table 10): 10 epochs at most, warm-up over 6%, batch 16 or
32 and a learning rate of 1e-5, 2e-5 or 3e-5; by task as released with its large model (fairseq, examples/roberta,
README.glue.md).

Hardware: any.
"""

from bert_jax.config import sizes_entry, to_config_dict
from bert_jax.data.glue import TASKS
from bert_jax.tasks.glue import Config, DataConfig
from bert_jax.train.loop import TrainConfig
from bert_jax.train.optimizers import OptimizerConfig

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
RECIPES = {
    "bert": {"num_epochs": 3.0, "warmup_share": 0.1, "weight_decay": 0.01, "b2": 0.999},
    "roberta": {"num_epochs": 10.0, "warmup_share": 0.06, "weight_decay": 0.1, "b2": 0.98},
}


def get_config(argument: str = "MRPC"):
    name, _, recipe_name = argument.partition(",")
    if argument != "all":  # see bert_jax/finetune.py
        sizes_entry(TASKS, name)
    recipe = sizes_entry(RECIPES, recipe_name or "bert")
    learning_rate, batch_size = ROBERTA[name] if recipe_name == "roberta" else (5e-5, 32)
    return to_config_dict(
        Config(
            data=DataConfig(name=name),
            num_epochs=recipe["num_epochs"],
            warmup_share=recipe["warmup_share"],
            train=TrainConfig(num_steps=0, batch_size=batch_size, log_every=10, eval_every=0, eval_batch_size=32),
            optimizer=OptimizerConfig(
                name="adamw",
                learning_rate=learning_rate,
                b2=recipe["b2"],
                weight_decay=recipe["weight_decay"],
                warmup_steps=0,
                schedule="linear",
            ),
        )
    )
