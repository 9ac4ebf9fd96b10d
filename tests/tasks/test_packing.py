"""Several examples in a row: every one once, in rows that hold them, with the results of one example a row."""

import dataclasses
from collections import Counter
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

from bert_jax.model.config import EncoderConfig
from bert_jax.objectives.losses import Losses, build_model
from bert_jax.parallel.batches import BatchShape
from bert_jax.tasks.common.packing import Item, filled_rows, packed, unpacked
from bert_jax.tasks.finetuning.batch_plan import BatchPlan, epoch_batches
from bert_jax.tasks.finetuning.loss_terms import Classification, Span, TokenLabels

lengths_of_examples = st.lists(st.integers(1, 40), min_size=1, max_size=80)


@given(lengths_of_examples, st.integers(40, 100), st.none() | st.integers(1, 5))
def test_rows_hold_every_example_once(lengths, length, most):
    rows = filled_rows(np.array(lengths), length, most)
    assert Counter(example for row in rows for example in row) == Counter(range(len(lengths)))
    for row in rows:
        assert row and sum(lengths[example] for example in row) <= length and len(row) <= (most or len(row))
    if most is None:  # a bound of best-fit decreasing: no two rows could share one
        totals = sorted(sum(lengths[example] for example in row) for row in rows)
        assert len(rows) < 2 or totals[0] + totals[1] > length


@given(lengths_of_examples, st.integers(1, 16), st.integers(0, 3))
def test_an_epoch_deals_every_example_once_and_evenly(lengths, batch_size, epoch):
    lengths = np.array(lengths)
    batches = epoch_batches(lengths, batch_size, seed=1, epoch=epoch)
    assert sorted(np.concatenate(batches)) == list(range(len(lengths)))
    sizes = [len(batch) for batch in batches]
    assert max(sizes) <= batch_size and max(sizes) - min(sizes) <= 1
    totals = [lengths[batch].sum() for batch in batches]
    assert max(totals) - min(totals) <= 2 * lengths.max()
    again = epoch_batches(lengths, batch_size, seed=1, epoch=epoch)
    assert all(np.array_equal(a, b) for a, b in zip(batches, again, strict=True))


def test_epochs_and_seeds_differ():
    lengths = np.random.default_rng(0).integers(5, 50, 200)
    orders = [np.concatenate(epoch_batches(lengths, 8, seed, epoch)).tolist() for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4


@settings(max_examples=30)
@given(lengths_of_examples, st.integers(1, 16), st.integers(1, 4))
def test_all_batches_of_a_run_fit_one_shape(lengths, batch_size, row_multiple):
    plan = BatchPlan(lengths, batch_size, num_steps=2 * -(-len(lengths) // batch_size) + 1, seed=0, hidden_size=32)
    shape = plan.shape(row_multiple)
    assert shape.rows % row_multiple == 0
    for step in (0, plan.batches_per_epoch, 2 * plan.batches_per_epoch):
        rows = plan.rows(step, shape)
        assert len(rows) == shape.rows and max(map(len, rows)) <= shape.most
        assert sorted(example for row in rows for example in row) == sorted(plan.examples(step))
        assert all(sum(lengths[example] for example in row) <= shape.length for row in rows)


@pytest.mark.parametrize("long_one", [47, 200])
def test_one_long_example_among_many(long_one):
    """The shape is chosen by some batches, and the long one may be in none of those."""
    lengths = np.full(12800, 11)
    lengths[6400] = long_one
    for seed in range(4):
        plan = BatchPlan(lengths, 32, num_steps=400, seed=seed, hidden_size=384)
        shape = plan.shape(1)
        for step in range(400):
            assert all(sum(lengths[example] for example in row) <= shape.length for row in plan.rows(step, shape))


def test_little_is_wasted():
    """On lengths like those of GLUE's CoLA, SST-2 and MRPC."""
    rng = np.random.default_rng(0)
    for mean, spread in ((11, 4), (13, 9), (53, 13)):
        lengths = np.clip(rng.gamma((mean / spread) ** 2, spread**2 / mean, 4000).astype(int), 4, 128)
        plan = BatchPlan(lengths, 32, num_steps=len(lengths) // 32, seed=0, hidden_size=384)
        shape = plan.shape(1)
        tokens = sum(lengths[plan.examples(step)].sum() for step in range(20)) / 20
        assert tokens / (shape.rows * shape.length) > 0.9, (mean, shape)


# ----------------------------------------------------------------------------------------------------------------------
# What is computed
# ----------------------------------------------------------------------------------------------------------------------

BERT = EncoderConfig(
    vocab_size=40, hidden_size=16, num_layers=3, num_heads=2, intermediate_size=24, max_positions=20, dropout=0.0,
    attention_dropout=0.0,
)  # fmt: skip
MODERN = {"norm_position": "pre", "gated_mlp": True, "num_token_types": 0, "pooler": False, "use_bias": False}
VARIANTS = {
    "bert": BERT,
    "first position": dataclasses.replace(BERT, pooler=False, classifier="tanh", position_offset=2),
    "albert": dataclasses.replace(BERT, num_layer_groups=1, embedding_size=8),
    "modern": dataclasses.replace(
        BERT, **MODERN, positions="rope", classifier="transform", classifier_pooling="mean", global_attention_every=2,
        local_window=3,
    ),
    "mean of layers": dataclasses.replace(BERT, scalar_mix=True),
}  # fmt: skip


def items_of(lengths, seed=0) -> list[Item]:
    """Examples with the labels of every kind of task."""
    rng = np.random.default_rng(seed)
    items = []
    for n in lengths:
        tokens = {
            "input_ids": rng.integers(1, 40, n, dtype=np.int32),  # 1 is what the positions of one variant do not count
            "token_type_ids": np.int32(np.arange(n) > n // 2),
        }
        tokens |= {"token_labels": rng.integers(3, size=n, dtype=np.int32)}
        tokens |= {"token_weights": rng.integers(2, size=n).astype(np.float32)}
        span = np.sort(rng.integers(n, size=2)).astype(np.int32)
        items.append(Item(tokens, {"labels": np.int32(rng.integers(3)), "spans": span}))
    return items


def test_outputs_are_unpacked_by_their_names():
    """Those that begin with token_ are cut to the tokens of an item; of the others it gets its entry."""
    items = [Item({"input_ids": np.full(size, 7, np.int32)}, {}) for size in (2, 3, 4)]
    rows = [[1, 0], [2]]
    by_token, by_item = np.arange(12).reshape(2, 6), np.arange(6).reshape(2, 3)
    outputs = unpacked({"token_new": by_token, "new": by_item}, items, rows)
    assert [output["token_new"].tolist() for output in outputs] == [[3, 4], [0, 1, 2], [6, 7, 8, 9]]
    assert [output["new"].item() for output in outputs] == [1, 0, 3]


def losses_of(config: EncoderConfig, kind: str) -> Losses:
    objective: Any = {
        "classification": Classification(config, "classification", 3, 0.0, class_weights=(1.0, 2.0, 5.0)),
        "token": TokenLabels(3, 0.0),
        "qa": Span(0.0),
    }[kind]
    return Losses(build_model(config, {kind: objective}), {kind: objective})


def evaluated(losses: Losses, params, items, rows, shape):
    """Loss, gradient, and the outputs of each example."""
    batch = packed(items, rows, shape, pad_id=0)
    weights = losses.normalizers(batch)
    loss, _, outputs = jax.jit(losses.compute)(params, {}, batch, weights)
    gradient = jax.jit(jax.grad(lambda params: losses.compute(params, {}, batch, weights, None)[0]))(params)
    found = unpacked(jax.device_get(outputs), items, rows)
    return float(loss), gradient, [next(iter(found[number].values())) for number in range(len(items))]


@pytest.mark.parametrize(
    ("variant", "kind"),
    [*((variant, "classification") for variant in VARIANTS), ("bert", "token"), ("modern", "token"), ("bert", "qa")],
)
def test_equal_to_one_example_a_row(variant, kind, random_params):
    losses = losses_of(VARIANTS[variant], kind)
    items = items_of([5, 17, 3, 9, 12, 4, 20, 7])
    params = random_params(losses.model)
    alone = evaluated(losses, params, items, [[number] for number in range(8)], BatchShape(8, 20, 1))
    rows = filled_rows(np.array([item.length for item in items]), 28)
    assert max(map(len, rows)) > 2
    together = evaluated(losses, params, items, [*rows, []], BatchShape(len(rows) + 1, 28, 5))
    assert alone[0] == pytest.approx(together[0], rel=1e-5)
    for left, right in zip(alone[2], together[2], strict=True):
        np.testing.assert_allclose(left, right, atol=2e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), alone[1], together[1])


def cross_entropy(logits, gold):
    return -special.log_softmax(logits, axis=-1)[..., gold]


@pytest.mark.parametrize("kind", ["classification", "token", "qa"])
def test_losses_by_hand(kind, random_params):
    """From the outputs of each example: weighted by class, of the words that count, of both ends of an answer."""
    losses = losses_of(BERT, kind)
    items = items_of([5, 17, 3, 9])
    loss, _, outputs = evaluated(losses, random_params(losses.model), items, [[0, 2], [1], [3]], BatchShape(3, 20, 2))
    terms, weights = [], []
    for item, logits in zip(items, outputs, strict=True):
        if kind == "classification":
            terms.append(cross_entropy(logits, item.values["labels"]))
            weights.append((1.0, 2.0, 5.0)[item.values["labels"]])
        elif kind == "token":
            gold = item.tokens["token_labels"]
            terms += [cross_entropy(row, label) for row, label in zip(logits, gold, strict=True)]
            weights += item.tokens["token_weights"].tolist()
        else:
            terms.append(np.mean([cross_entropy(logits[:, side], item.values["spans"][side]) for side in (0, 1)]))
            weights.append(1.0)
    assert loss == pytest.approx(np.average(terms, weights=weights), rel=1e-4)
