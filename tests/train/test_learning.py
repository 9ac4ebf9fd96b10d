"""Training learns: more than token frequencies, and step by step the same as PyTorch."""

import dataclasses
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bert_jax
from bert_jax import run
from bert_jax.data.corpus.format import Corpus
from bert_jax.data.corpus.prepare import prepare
from bert_jax.data.sources.documents import Document
from bert_jax.data.tokenizer.tokenizer import Tokenizer
from bert_jax.model.build import Model
from bert_jax.model.heads import MaskedLMHead
from bert_jax.objectives.base import default_options, load
from bert_jax.objectives.losses import Losses
from bert_jax.run import run_training
from bert_jax.tasks import base as tasks
from bert_jax.train.optimizers import OptimizerConfig, make_optimizer
from bert_jax.train.schedules import learning_rate
from bert_jax.train.step import make_train_step, partition

GOLDEN = Path(__file__).parents[1] / "golden" / "bert" / "masked_lm"


TOPICS = [
    "river water ship harbour sail",
    "teacher school letter book pupil",
    "soldier war sword horse battle",
    "garden flower tree summer bee",
    "king crown castle queen throne",
]


@pytest.fixture(scope="module")
def topics(tmp_path_factory) -> Path:
    """A corpus of documents whose words are drawn from one of five topics of five words each; a word is one token.

    Knowing the topic leaves log(5) = 1.61 nats a word; the frequencies of words alone leave log(25) = 3.22.
    """
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(TOPICS[number % 5].split(), 90)) + "." for number in range(150)]
    documents = [Document(f"document-{number}", text) for number, text in enumerate(texts)]
    folder = tmp_path_factory.mktemp("topics") / "corpus"
    prepare(documents, Tokenizer.train(texts, 256), folder, source="tests", held_out_fraction=0.2)
    return folder


def test_200_steps_learn_far_more_than_how_often_tokens_occur(tiny_config, topics, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "measured_matmul_flops", lambda *_: 1e9)
    settings = {
        "data.corpus": str(topics),
        "objectives": ("mlm",),
        "model.vocab_size": 256,
        "train.num_steps": 200,
        # Norms before the layers and larger weights learn in so few steps.
        "model.norm_position": "pre",
        "model.initializer_range": 0.1,
        "train.batch_size": 16,
        "train.eval_examples": 64,
        "optimizer.name": "adamw",
        "optimizer.learning_rate": 5e-3,
        "optimizer.warmup_steps": 20,
        "checkpoint.every": 1000,
    }
    values = tiny_config(**settings)
    loss = run_training(values, tmp_path / "run")["mlm/loss"]
    held_out = tasks.create(values, tmp_path / "run").evaluator.batches(np.arange(8), batch_size=8)
    counts = Corpus.open(topics).token_counts() + 1.0
    counts[:5] = 0.0  # special tokens are never masked
    with np.errstate(divide="ignore"):
        log_probabilities = np.log(counts / counts.sum())
    labels = np.concatenate([batch["mlm_labels"][batch["mlm_weights"] > 0] for batch in held_out])
    unigrams = -log_probabilities[labels].mean()
    assert 3.1 < unigrams < 3.4, "it should be log(25), and a little for full stops"
    assert loss < 2.3, f"{loss:.2f} is closer to what frequencies give, {unigrams:.2f}, than to log(5)"


STEPS, BATCH, LENGTH, VOCABULARY = 40, 8, 16, 53
OPTIMIZER = OptimizerConfig(name="adamw", learning_rate=2e-3, warmup_steps=5, clip_norm=1.0, weight_decay=0.05)


def synthetic_batches() -> list[dict[str, np.ndarray]]:
    """Rows of random tokens of random lengths, in which 3 are masked."""
    rng = np.random.default_rng(0)
    batches = []
    for _ in range(STEPS):
        ids = rng.integers(5, 25, (BATCH, LENGTH))  # few of the tokens, so that there is something to learn
        lengths = rng.integers(8, LENGTH + 1, (BATCH, 1))
        positions = np.stack([rng.choice(8, 3, replace=False) for _ in range(BATCH)])
        labels = np.take_along_axis(ids, positions, 1)
        np.put_along_axis(ids, positions, 4, 1)
        batch = {
            "input_ids": ids,
            "attention_mask": np.arange(LENGTH) < lengths,
            "token_type_ids": np.arange(LENGTH) >= lengths // 2,
            "mlm_positions": positions,
            "mlm_labels": labels,
        }
        batch = {name: array.astype(np.int32) for name, array in batch.items()}
        batches.append(batch | {"mlm_weights": np.ones(labels.shape, np.float32)})
    return batches


def our_losses(batches) -> list[float]:
    encoder = bert_jax.load(GOLDEN)
    vocabulary = types.SimpleNamespace(vocab_size=VOCABULARY, mask_id=4, special_ids=np.arange(5))
    config = dataclasses.replace(encoder.model.config, dropout=0.0, attention_dropout=0.0)
    losses = Losses(Model.build(config, {"mlm": MaskedLMHead}), load(("mlm",), default_options(), vocabulary))
    trained, _ = partition(encoder.params, ".*")
    optimizer, rate = make_optimizer(OPTIMIZER, STEPS, encoder.model.axes), learning_rate(OPTIMIZER, STEPS)
    state = {"step": jnp.int32(0), "params": encoder.params, "opt_state": optimizer.init(trained)}
    step = jax.jit(make_train_step(losses, optimizer, rate, ".*", 0.0, seed=0))
    found = []
    for batch in batches:
        state, metrics = step(state, {}, {name: array[None] for name, array in batch.items()})
        found.append(float(metrics["loss"]))
    return found


def losses_of_torch(batches, torch, transformers) -> list[float]:
    model = transformers.BertForMaskedLM.from_pretrained(GOLDEN).eval()  # no dropout
    named = dict(model.named_parameters())
    plain = [name for name in named if name.endswith("bias") or "LayerNorm" in name]
    groups = [
        {"params": [named[name] for name in named if name not in plain], "weight_decay": OPTIMIZER.weight_decay},
        {"params": [named[name] for name in plain], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=OPTIMIZER.epsilon)
    found = []
    for step, batch in enumerate(batches):
        labels = np.full((BATCH, LENGTH), -100)
        np.put_along_axis(labels, batch["mlm_positions"], batch["mlm_labels"], 1)
        inputs = {name: torch.tensor(batch[name]).long() for name in ("input_ids", "attention_mask", "token_type_ids")}
        loss = model(**inputs, labels=torch.tensor(labels)).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), OPTIMIZER.clip_norm)
        warm, rest = step / OPTIMIZER.warmup_steps, 1 - step / STEPS  # BERT's: towards zero from the first step on
        for group in optimizer.param_groups:
            group["lr"] = OPTIMIZER.learning_rate * (warm if step < OPTIMIZER.warmup_steps else rest)
        optimizer.step()
        found.append(loss.item())
    return found


def test_forty_steps_are_those_of_torch(torch, transformers):
    """The same weights, batches, clipping, schedule and decoupled weight decay."""
    batches = synthetic_batches()
    theirs = losses_of_torch(batches, torch, transformers)
    ours = our_losses(batches)
    assert theirs[-1] < theirs[0] - 0.3, "there is nothing to compare"
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
