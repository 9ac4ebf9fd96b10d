"""A reference run in a fixed time on one machine, after "Cramming" (Geiping and Goldstein 2022), from random weights.

    python tools/cramming.py --budget=1h --source='text:texts/*.txt' --glue_dir=GLUE --workdir=runs/1h

measures how many steps fit into the budget, trains them, and evaluates the encoder on held-out text and on GLUE. The argument
is BUDGET[,PLATFORM[,STEPS]]: a time such as 90s, 10m, 1h or 1d, which chooses sizes; cpu, gpu (the default) or tpu; and the
number of steps, on which warm-up depends. Without the tool all of them are needed, as a budget alone does not say how many
steps fit:

    python -m bert_jax.pretrain --config=configs/cramming.py:1h,cpu,20000 --workdir=runs/1h --config.data.corpus=corpora/mine

As in the paper (github.com/JonasGeiping/cramming, cramming/config: crammed-bert, bert-o4, GLUE_sane): rows of 128 tokens; norms
before the layers, gated layers without biases; one objective, which masks 25% of the tokens; gradients clipped at 0.5; no
dropout in pretraining; a learning rate of 1e-3 that rises and falls once within the budget. On accelerators the encoder has the
width of BERT-base and a vocabulary of 32,768.

Not as in the paper: rotary positions instead of sinusoidal ones; 12 layers instead of 16; feed-forward layers of 2,048 units
with gates, which have as many parameters as 3,072 without; a warm-up of 10%; a batch size that does not grow, and
4,096 sequences instead of 8,192; smaller encoders and batches for shorter budgets. If a batch does not fit into memory, use
more `train.accumulation_steps`. CPUs have small encoders in float32, with higher learning rates.

Hardware: one GPU or TPU, or a CPU. Recipes for accelerators are not measured.
Score: docs/results.md.
"""

import re
from typing import Any, NamedTuple

from bert_jax.config import to_config_dict
from bert_jax.data.pretraining.stream import DataConfig
from bert_jax.errors import UserError
from bert_jax.model.config import EncoderConfig
from bert_jax.run_folder.checkpoints import CheckpointConfig
from bert_jax.tasks.pretraining import Config
from bert_jax.train.loop import TrainConfig
from bert_jax.train.optimizers import OptimizerConfig

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}  # seconds
WARMUP = 0.1  # of the steps
MICROBATCH = 256  # sequences of 128 tokens


class Recipe(NamedTuple):
    """Sizes of encoder and batch."""

    num_layers: int
    hidden_size: int
    num_heads: int
    intermediate_size: int  # of the gated layers
    batch_size: int  # sequences
    learning_rate: float


# {shortest budget in seconds: recipe}. Those for CPUs are sized for two cores: about 10 to 20 tokens for each weight
# of the layers (20: Hoffmann et al. 2022, section 3.4).
ON_CPU = {
    0: Recipe(2, 128, 2, 384, 16, 4e-3),
    5 * UNITS["m"]: Recipe(3, 192, 3, 512, 16, 3e-3),
    40 * UNITS["m"]: Recipe(4, 256, 4, 768, 16, 2e-3),
    8 * UNITS["h"]: Recipe(6, 384, 6, 1024, 32, 1.5e-3),
}
ON_ACCELERATOR = {
    0: Recipe(8, 512, 8, 1408, 1024, 1e-3),
    30 * UNITS["m"]: Recipe(12, 768, 12, 2048, 2048, 1e-3),
    8 * UNITS["h"]: Recipe(12, 768, 12, 2048, 4096, 1e-3),
}
RECIPES = {"cpu": ON_CPU, "gpu": ON_ACCELERATOR, "tpu": ON_ACCELERATOR}
VOCABULARY = {"cpu": 8192, "gpu": 32_768, "tpu": 32_768}

# Changes to configs/finetune/glue.py, the same for all tasks; for accelerators those of the paper (GLUE_sane). Small encoders
# need higher learning rates (Turc et al. 2019, section 4, up to 3e-4).
OF_PAPER = {
    "num_epochs": 5.0,
    "train.batch_size": 16,
    "optimizer.learning_rate": 4e-5,
    "optimizer.schedule": "cosine",
    "model.dropout": 0.1,
}
FINETUNING: dict[str, dict[str, Any]] = {
    "cpu": {"num_epochs": 3.0, "train.batch_size": 32, "optimizer.learning_rate": 3e-4, "model.dropout": 0.1},
    "gpu": OF_PAPER,
    "tpu": OF_PAPER,
}
# SST-2 has eight times as many examples as the next larger task.
FINETUNING_OF_TASKS: dict[str, dict[str, dict[str, Any]]] = {
    "cpu": {"SST-2": {"num_epochs": 1.0}},
    "gpu": {},
    "tpu": {},
}


def seconds_of(budget: str) -> float:
    """Returns the seconds of a time such as 90s, 10m, 1.5h or 1d. Raises UserError for other texts."""
    parts = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", budget)
    if not parts or not float(parts[1]):
        raise UserError(f"budget {budget!r}: use a number above 0 and a unit, s, m, h or d, e.g. 90s, 10m, 1h or 1d")
    return float(parts[1]) * UNITS[parts[2]]


def get_config(argument: str = "1h"):
    budget, platform, steps, *rest = [*argument.split(","), "", ""]
    if any(rest):
        raise UserError(f"--config=FILE:{argument}: write BUDGET[,PLATFORM[,STEPS]], e.g. 1h,cpu,20000")
    platform = platform or "gpu"
    if steps and not steps.isdigit():
        raise UserError(
            f"--config=FILE:{argument}: {steps!r} is not a number of steps; use e.g. {budget},{platform},20000"
        )
    num_steps = int(steps or 0)  # 0: a run cannot start without them
    if platform not in RECIPES:
        raise UserError(f"--config=FILE:{argument}: {platform!r} is not one of {', '.join(RECIPES)}")
    seconds, recipes = seconds_of(budget), RECIPES[platform]
    recipe = recipes[max(shortest for shortest in recipes if shortest <= seconds)]
    is_cpu = platform == "cpu"
    config = to_config_dict(
        Config(
            model=EncoderConfig(
                vocab_size=VOCABULARY[platform],
                hidden_size=recipe.hidden_size,
                num_layers=recipe.num_layers,
                num_heads=recipe.num_heads,
                intermediate_size=recipe.intermediate_size,
                max_positions=128,
                num_token_types=0,
                positions="rope",
                rope_theta=10_000.0,
                norm_position="pre",
                norm_epsilon=1e-5,
                gated_mlp=True,
                use_bias=False,
                pooler=False,
                classifier="transform",
                classifier_pooling="mean",
                dropout=0.0,
                attention_dropout=0.0,
                dtype="float32" if is_cpu else "bfloat16",
            ),
            objectives=("mlm",),
            data=DataConfig(sequence_length=128),
            train=TrainConfig(
                num_steps=num_steps,
                batch_size=recipe.batch_size,
                accumulation_steps=-(-recipe.batch_size // MICROBATCH),
                log_every=10,
                eval_every=0,
                eval_batch_size=64 if is_cpu else 256,
                eval_examples=2048 if is_cpu else 10_000,
            ),
            optimizer=OptimizerConfig(
                name="adamw",
                learning_rate=recipe.learning_rate,
                warmup_steps=int(WARMUP * num_steps),
                schedule="linear",
                b2=0.98,
                clip_norm=0.5,
            ),
            checkpoint=CheckpointConfig(),
        )
    )
    config.options.mlm.mlm_probability = 0.25
    return config
