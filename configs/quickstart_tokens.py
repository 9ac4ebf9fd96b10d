"""Fine-tuning in the quickstart, which finds the words in a sentence of documentation that are code.

    launch/quickstart.sh

or, once that has prepared the files,

    python -m bert_jax.finetune --config=configs/quickstart_tokens.py --workdir=runs/code \\
        --config.init_from=runs/quickstart/pretrain --config.data.train=runs/quickstart/data/train.conll \\
        --config.data.validation=runs/quickstart/data/validation.conll

`configs/quickstart_tokens.py:scratch` trains an encoder that was not pretrained.

Hardware: 2 CPU cores, 10 seconds each. Score: measured, F1 0.66, not pretrained 0.50 (docs/results.md); both
depend on the installed packages.
"""

from bert_jax.config import to_config_dict
from bert_jax.tasks.tokens import Config, DataConfig
from bert_jax.train.loop import TrainConfig
from bert_jax.train.optimizers import OptimizerConfig

# The best of those in docs/results.md, by the score on the validation file.
LEARNING_RATES = {"finetuned": 5e-4, "scratch": 3e-4}
DROPOUT = {"finetuned": 0.1, "scratch": 0.0}  # of the encoder; the better of 0 and 0.1 for each


def get_config(variant: str = "finetuned"):
    config = to_config_dict(
        Config(
            from_scratch=variant == "scratch",
            data=DataConfig(sequence_length=64),
            num_epochs=12.0,
            train=TrainConfig(num_steps=0, batch_size=16, log_every=10, eval_every=0),
            optimizer=OptimizerConfig(
                name="adamw", learning_rate=LEARNING_RATES[variant], warmup_steps=0, schedule="linear"
            ),
        )
    )
    config.model.dropout = DROPOUT[variant]
    return config
