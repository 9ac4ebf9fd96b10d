"""BERT-base, uncased: Devlin et al. 2019, section 3 and appendix A.2.

    python -m bert_jax.pretrain --config=configs/bert_base.py --workdir=runs/base --config.data.corpus=corpora/mine

As published: one million steps of 256 sequences, 90% of them on sequences of 128 tokens and the rest on 512, under one
schedule of the learning rate. Evaluations are on 128 tokens in both phases, so that their losses compare; to fill masks in
longer texts, predict with --config.data.sequence_length=512.

`--config=configs/bert_base.py:50000` takes 50,000 steps, with the same shares of warm-up and of long sequences. If a batch of
the second phase does not fit into memory, set train.accumulation_steps, parallel.fsdp or model.remat='full': the examples and
the result stay the same but for rounding.

Not as published: pairs are made anew in every epoch, from a random place of a window of the corpus, and each draws its own
length, where the original walks through documents and puts back what it did not use (tools/write_instances.py does that);
exact (erf) GELU, as in Hugging Face's port; the original's is the tanh approximation (--config.model.activation=gelu_tanh);
computation in bfloat16 (parameters, norms, softmax and losses stay in float32), and 30,592 rows for 30,522 tokens, a multiple
of 128, so that the product with the vocabulary fills the matrix units and divides over devices. Exports keep the rows that
stand for no token. To continue pretraining a published model, use configs/continue.py.

Corpus: English Wikipedia and BooksCorpus, 3.3 G words; WordPiece, lower case, 30,522 tokens.
Hardware: published with 4 Cloud TPUs (16 TPU chips), 4 days. Not measured here.
Score: published, not measured here: GLUE test average 79.6 (MNLI-m 84.6, SST-2 93.5), SQuAD v1.1 dev F1 88.5.
"""

from bert_jax.config import to_config_dict
from bert_jax.data.pretraining.stream import DataConfig
from bert_jax.errors import UserError
from bert_jax.model.config import EncoderConfig
from bert_jax.tasks.pretraining import Config, PhaseConfig
from bert_jax.train.loop import TrainConfig
from bert_jax.train.optimizers import OptimizerConfig

FIRST_PHASE, WARMUP = 0.9, 0.01  # of the steps


def get_config(num_steps: str = "1000000"):
    if not num_steps.isdigit() or int(num_steps) < 2:
        raise UserError(f"--config=FILE:{num_steps}: give the number of steps, e.g. 1000000")
    steps = int(num_steps)
    return to_config_dict(
        Config(
            model=EncoderConfig(
                vocab_size=30_592,
                hidden_size=768,
                num_layers=12,
                num_heads=12,
                intermediate_size=3072,
                max_positions=512,
                dtype="bfloat16",
            ),
            objectives=("mlm", "nsp"),
            data=DataConfig(sequence_length=128),
            phases=(
                PhaseConfig(share=FIRST_PHASE, sequence_length=128),
                PhaseConfig(share=1.0 - FIRST_PHASE, sequence_length=512),
            ),
            train=TrainConfig(num_steps=steps, batch_size=256),
            optimizer=OptimizerConfig(
                name="bert_adam",
                learning_rate=1e-4,
                warmup_steps=int(WARMUP * steps),
                schedule="linear_from_start",
                weight_decay=0.01,
            ),
        )
    )
