"""Small encoders (4 layers of 256, about BERT-mini) by each recipe of the family, to compare them on one machine.

    python -m bert_jax.pretrain --config=configs/small.py:electra --workdir=runs/electra --config.data.corpus=corpora/mine

The argument is a name of RECIPES, with the number of steps if it is not 3,200: `modern,1600`. `distilbert` needs a teacher,
--config.options.distillation.folder=RUN --config.init_from=RUN. tools/compare_recipes.py trains and compares all of them.

Shared by all, so that what differs is the recipe: batches of 16 rows of 128 tokens, AdamW with a linear schedule (10%
warm-up), no dropout, float32, a vocabulary of 8,192. Held-out masks are standard ones (15% of single tokens, 80/10/10)
whatever training masks; those of ELECTRA are its own. Not as published, therefore: sizes, optimizers (ALBERT's LAMB, BERT's
Adam without bias correction), schedules, learned positions, and learning rates, each the best of three or four in a quarter
of the steps (docs/records/recipes_rates). The RoBERTa here masks no special tokens.

Corpus: any; WordPiece, lower case, 8,192 tokens.
Hardware: one CPU core, 29 minutes for `bert` and `modern`.
Score: docs/results.md.
"""

from typing import Any

from bert_jax.config import sizes_entry, to_config_dict
from bert_jax.data.pretraining.stream import DataConfig
from bert_jax.errors import UserError
from bert_jax.model.config import EncoderConfig
from bert_jax.tasks.pretraining import Config
from bert_jax.train.loop import TrainConfig
from bert_jax.train.optimizers import OptimizerConfig

STEPS = 3200
WARMUP = 0.1  # of the steps

# What each recipe changes of BERT's, by 'section.field'. All have rotary positions: with learned ones, encoders do not get
# beyond which words a text has in so few steps, whatever their recipe (docs/results.md); `bert_learned` shows it.
MLM: dict[str, Any] = {"objectives": ("mlm",)}
NO_PAIRS: dict[str, Any] = {"model.num_token_types": 0, "model.pooler": False}
MODERN: dict[str, Any] = MLM | {
    **NO_PAIRS,
    "model.norm_position": "pre",
    "model.first_attention_norm": False,
    "model.norm_epsilon": 1e-5,
    "model.gated_mlp": True,
    "model.intermediate_size": 688,  # with gates as many parameters as 1,024 without
    "model.use_bias": False,
    "model.classifier": "transform",
    "model.classifier_pooling": "mean",
}
RECIPES: dict[str, dict[str, Any]] = {
    "bert": {},
    "bert_learned": {"model.positions": "learned", "model.rope_theta": EncoderConfig.rope_theta},
    "bert_no_nsp": MLM,
    "roberta": MLM
    | NO_PAIRS
    | {
        "model.norm_epsilon": 1e-5,
        "model.classifier": "tanh",
        "options.mlm.count": "stochastic",
        "options.mlm.random_from": "text",
        "optimizer.clip_norm": 0.0,
        "optimizer.no_decay": "$^",  # matches nothing
    },
    "albert": {
        "objectives": ("mlm", "sop"),
        "model.embedding_size": 64,
        "model.num_layer_groups": 1,
        "model.activation": "gelu_tanh",
        "options.mlm.masking": "ngram",
    },
    "electra": {
        "objectives": ("rtd",),
        "model.pooler": False,
        "model.classifier": "gelu",
        "options.rtd.generator_size": 0.25,
    },
    "distilbert": NO_PAIRS
    | {
        "objectives": ("distillation",),
        "model.num_layers": 2,
        "model.classifier": "relu",
        "init_layers": (0, 2),
        "optimizer.learning_rate": 2e-3,
        "optimizer.weight_decay": 0.0,
        "optimizer.clip_norm": 5.0,
    },
    "modern": MODERN,
    "modern_30": MODERN | {"options.mlm.mlm_probability": 0.3},
    "modern_40": MODERN | {"options.mlm.mlm_probability": 0.4},
    "modern_30_to_15": MODERN | {"options.mlm.mlm_probability": 0.3, "options.mlm.mlm_probability_end": 0.15},
    "modern_left": MODERN | {"model.attention_direction": "left"},
    "modern_right": MODERN | {"model.attention_direction": "right"},
    "modern_static": MODERN | {"data.masking": "static"},
    "modern_muon": MODERN | {"optimizer.name": "muon", "optimizer.learning_rate": 4e-3},
}


def get_config(argument: str = "bert"):
    name, _, steps = argument.partition(",")
    changes = sizes_entry(RECIPES, name)
    if steps and not (steps.isdigit() and int(steps)):
        raise UserError(f"--config=FILE:{argument}: {steps!r} is not a number of steps; use e.g. {name},{STEPS}")
    num_steps = int(steps or STEPS)
    config = to_config_dict(
        Config(
            model=EncoderConfig(
                vocab_size=8192,
                hidden_size=256,
                num_layers=4,
                num_heads=4,
                intermediate_size=1024,
                max_positions=128,
                positions="rope",
                rope_theta=10_000.0,
                dropout=0.0,
                attention_dropout=0.0,
            ),
            objectives=("mlm", "nsp"),
            data=DataConfig(sequence_length=128),
            train=TrainConfig(num_steps=num_steps, batch_size=16, eval_every=0, eval_batch_size=64, eval_examples=4096),
            optimizer=OptimizerConfig(
                name="adamw",
                learning_rate=1e-3,
                warmup_steps=int(WARMUP * num_steps),
                schedule="linear",
                b2=0.98,
            ),
        )
    )
    config.update_from_flattened_dict(changes)
    for name in {"mlm", "distillation"}.intersection(config.objectives):
        config.options[name].standard_evaluation = True
    return config
