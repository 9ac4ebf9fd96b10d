"""Fine-tuning in the quickstart: which package does the first sentence of a docstring document?

    launch/quickstart.sh

or, once that has prepared the files,

    python -m bert_jax.finetune --config=configs/quickstart_text.py --workdir=runs/text \\
        --config.init_from=runs/quickstart/pretrain --config.data.train=runs/quickstart/data/train.jsonl \\
        --config.data.validation=runs/quickstart/data/validation.jsonl

`configs/quickstart_text.py:frozen` trains the classifier alone, `:scratch` an encoder that was not pretrained.

Hardware: 2 CPU cores, half a minute each. Score: see the report; it depends on the packages that are installed.
"""

from bert_jax.config import to_config_dict
from bert_jax.parallel.mesh import ParallelConfig
from bert_jax.tasks.text import Config, DataConfig
from bert_jax.train.loop import TrainConfig
from bert_jax.train.optimizers import OptimizerConfig

# For the first two the best on the validation file among 3e-4, 1e-3 and 3e-3: each is shown at its best.
LEARNING_RATES = {"finetuned": 3e-3, "scratch": 3e-4, "frozen": 1e-2}


def get_config(variant: str = "finetuned"):
    return to_config_dict(
        Config(
            from_scratch=variant == "scratch",
            data=DataConfig(sequence_length=48),
            num_epochs=4.0,
            classifier_dropout=0.1,
            train=TrainConfig(num_steps=0, batch_size=32, log_every=10, eval_every=0),
            optimizer=OptimizerConfig(
                name="adamw",
                learning_rate=LEARNING_RATES[variant],
                warmup_steps=0,
                schedule="linear",
                trainable="heads/" if variant == "frozen" else ".*",
            ),
            parallel=ParallelConfig(data=2, fsdp=2),
        )
    )
