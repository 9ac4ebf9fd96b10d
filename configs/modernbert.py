"""ModernBERT: Warner et al. 2024, sections 2 and 3 and appendix A; sizes of the released models.

    python -m bert_jax.pretrain --config=configs/modernbert.py:base --workdir=runs/modern --config.data.corpus=corpora/mine

The argument is `base` or `large`. Norms before the layers, rotary positions, GeGLU, no biases, attention to all positions in
every third layer and to 64 on each side in the others; 30% of the tokens are masked (15% in evaluations), and there is no
next-sentence prediction.

As published, in one run: 1.72 T tokens in sequences of 1,024 at a constant rate, while the batch grows to its full size; 250
G tokens in sequences of 8,192, with the rotary base of global layers raised from 10,000 to 160,000; a decay by 1 - sqrt over
50 G tokens. The rate of `large` drops to a tenth after 900 G tokens. `large` began as a larger `base`:
--config.init_from=runs/base --config.init_growth=tile. Phases are shares of train.num_steps, so fewer steps scale all of them
(set optimizer.warmup_steps, too). They have batch sizes and lengths of their own, in the place of those in `train` and
`data`. To try other decays, fork the run before it: tools/fork_run.py. Corpora can change with the phase (`corpus` or `mixture`
of a phase; the decay is phases[10] of `base` and phases[11] of `large`, since the growing batch makes 8 phases).

Not as published: no dropout after attention (0.1 there); a fixed number of masks for each row (each token independently
there); weights are drawn with one deviation (there Megatron's, which shrinks with the depth); the batch grows in 8 steps;
documents of a row see each other; weight decay of `large` stays at 1e-5 after the rate has dropped (1e-6 there). As
published: computation in bfloat16, and 50,368 rows in the embedding, a multiple of 64.

Corpus: published with 2 T tokens of web text, code and papers; byte-level BPE.
Hardware: published with 8 H100 GPUs, 8 days (base). Not measured here.
Score: published, not measured here: GLUE dev average of base 88.4, large 90.4.
"""

import dataclasses
from typing import Any

from bert_jax.config import sizes_entry, to_config_dict
from bert_jax.data.pretraining.stream import DataConfig
from bert_jax.model.config import EncoderConfig
from bert_jax.tasks.common.phases import PhaseConfig, batch_warmup
from bert_jax.tasks.pretraining import Config
from bert_jax.train.loop import TrainConfig
from bert_jax.train.optimizers import OptimizerConfig

SIZES: dict[str, dict[str, Any]] = {
    "base": {"hidden_size": 768, "num_layers": 22, "num_heads": 12, "intermediate_size": 1152},
    "large": {"hidden_size": 1024, "num_layers": 28, "num_heads": 16, "intermediate_size": 2624},
}
WARMUP_STEPS = {"base": 3200, "large": 1560}  # 3 G and 2 G tokens
LEARNING_RATES = {"base": 8e-4, "large": 5e-4}
ROTARY_BASES = {1024: 10_000.0, 8192: 160_000.0}  # by sequence length
# Appendix A, table 3: G tokens, batch size and sequence length of each phase, schedule and learning rate if it has its own. In
# the first one the batch grows from FIRST_BATCH.
Row = tuple[int, int, int, str, float]
PHASES: dict[str, list[Row]] = {
    "base": [
        (50, 4608, 1024, "", 0.0),
        (1669, 4608, 1024, "", 0.0),
        (250, 576, 8192, "constant", 3e-4),
        (50, 576, 8192, "sqrt", 3e-4),
    ],
    "large": [
        (10, 4928, 1024, "", 0.0),
        (890, 4928, 1024, "", 0.0),
        (819, 4928, 1024, "constant", 5e-5),
        (250, 616, 8192, "constant", 5e-5),
        (50, 624, 8192, "sqrt", 5e-5),
    ],
}
FIRST_BATCH = {"base": 768, "large": 448}
RAMP = 8, 64  # sizes of the growing batch, which are multiples of 64


def phases_of(size: str) -> tuple[int, tuple[PhaseConfig, ...]]:
    """Returns the steps of the run, and its phases with their shares of them."""
    phases = [
        PhaseConfig(
            batch_size=batch,
            sequence_length=length,
            rope_theta=ROTARY_BASES[length],
            schedule=schedule,
            learning_rate=rate,
        )
        for _, batch, length, schedule, rate in PHASES[size]
    ]
    mean_batches = [(FIRST_BATCH[size] + phases[0].batch_size) / 2, *(phase.batch_size for phase in phases[1:])]
    steps = [1e9 * row[0] / (batch * row[2]) for row, batch in zip(PHASES[size], mean_batches, strict=True)]
    total = sum(steps)
    ramp, *rest = (
        dataclasses.replace(phase, share=number / total) for phase, number in zip(phases, steps, strict=True)
    )
    return round(total), (*batch_warmup(ramp, FIRST_BATCH[size], *RAMP), *rest)


def get_config(size: str = "base"):
    model = sizes_entry(SIZES, size)
    num_steps, phases = phases_of(size)
    config = to_config_dict(
        Config(
            model=EncoderConfig(
                vocab_size=50_368,
                max_positions=8192,
                num_token_types=0,
                positions="rope",
                rope_theta=160_000.0,
                norm_position="pre",
                first_attention_norm=False,
                norm_epsilon=1e-5,
                gated_mlp=True,
                use_bias=False,
                global_attention_every=3,
                local_window=64,
                pooler=False,
                head_activation="gelu",
                classifier="transform",
                classifier_pooling="mean",
                dropout=0.0,
                attention_dropout=0.0,
                dtype="bfloat16",
                **model,
            ),
            objectives=("mlm",),
            data=DataConfig(sequence_length=1024),
            phases=phases,
            train=TrainConfig(num_steps=num_steps, batch_size=phases[-1].batch_size),
            optimizer=OptimizerConfig(
                name="stable_adamw",
                learning_rate=LEARNING_RATES[size],
                warmup_steps=WARMUP_STEPS[size],
                schedule="constant",
                b2=0.98,
                weight_decay=1e-5,
                clip_norm=0.0,
            ),
        )
    )
    config.options.mlm.update(mlm_probability=0.3, standard_evaluation=True)
    return config
