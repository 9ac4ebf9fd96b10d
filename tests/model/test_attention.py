"""Who sees whom, against sums written out; and that layers with a pattern of local attention run in its order."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_jax.model.attention.attend import attend
from bert_jax.model.attention.contract import Visibility
from bert_jax.model.build import Model
from bert_jax.model.config import EncoderConfig
from bert_jax.model.layers import split

BATCH, LENGTH, HEADS, SIZE = 2, 9, 2, 4


def by_hand(q, k, v, sees) -> np.ndarray:
    """Attention in float64, for `sees(row, query, key)`."""
    out = np.zeros(q.shape)
    for row, query, head in np.ndindex(q.shape[:3]):
        keys = [key for key in range(k.shape[1]) if sees(row, query, key)]
        scores = k[row, keys, head].astype(np.float64) @ q[row, query, head] / SIZE**0.5
        weights = np.exp(scores - scores.max())
        out[row, query, head] = weights @ v[row, keys, head] / weights.sum()
    return out


@settings(max_examples=30, deadline=None)
@given(
    kind=st.sampled_from(["all", "lengths", "padding", "segments"]),
    window=st.none() | st.integers(1, LENGTH),
    direction=st.sampled_from(["both", "left", "right"]),
    some_positions=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_queries_see_the_keys_they_are_told_to(kind, window, direction, some_positions, seed):
    rng = np.random.default_rng(seed)
    q, k, v = rng.standard_normal((3, BATCH, LENGTH, HEADS, SIZE), dtype=np.float32)
    segments = np.ones((BATCH, LENGTH), np.int32)
    if kind == "lengths":
        segments[0, 4:] = segments[1, LENGTH - 1 :] = 0
    elif kind == "padding":  # on both sides
        segments[0, :2] = segments[1, -3:] = 0
    elif kind == "segments":
        segments = np.sort(rng.integers(0, 4, (BATCH, LENGTH), dtype=np.int32))[:, ::-1]
    positions = np.tile(np.arange(LENGTH, dtype=np.int32), (BATCH, 1))
    if some_positions:
        positions = rng.integers(0, LENGTH, (BATCH, 5), dtype=np.int32)
        q = np.take_along_axis(q, positions[:, :, None, None], axis=1)

    def sees(row, query, key):
        place = int(positions[row, query])
        is_near = window is None or abs(place - key) <= window
        is_on_side = {"both": True, "left": key <= place, "right": key >= place}[direction]
        return segments[row, place] == segments[row, key] and is_near and is_on_side

    who = {
        "all": {},
        "lengths": {"lengths_B": segments.sum(axis=1)},
        "padding": {"attention_mask_BxK": segments},
        "segments": {"segment_ids_BxK": segments},
    }[kind]
    visibility = Visibility(
        **who, positions_BxQ=positions if some_positions else None, window=window, direction=direction
    )
    out = attend(q, k, v, visibility, name="plain")
    is_token = np.take_along_axis(segments, positions, axis=1) > 0
    np.testing.assert_allclose(out[is_token], by_hand(q, k, v, sees)[is_token], atol=1e-5)
    assert np.isfinite(out).all()


@pytest.mark.parametrize("direction", ["left", "right"])
def test_an_encoder_of_one_side_sees_nothing_of_the_other(direction, random_params):
    model = Model.build(dataclasses.replace(MODERN, attention_direction=direction), {})
    params = random_params(model)
    ids = np.random.default_rng(0).integers(0, 50, (1, 12))
    others = ids.copy()
    others[0, 6] = (ids[0, 6] + 1) % 50
    before, after = (model.bind(params).encoder(each).last_hidden_state[0] for each in (ids, others))
    differs = np.abs(before - after).max(axis=1) > 1e-6
    expected = np.arange(12) >= 6 if direction == "left" else np.arange(12) <= 6
    np.testing.assert_array_equal(differs, expected)


KEYS = jax.random.split(jax.random.key(5), 2)
MODERN = EncoderConfig(
    vocab_size=50, hidden_size=16, num_heads=2, intermediate_size=24, max_positions=16, dropout=0.1, attention_dropout=0.1,
    num_token_types=0, positions="rope", norm_position="pre", first_attention_norm=False, pooler=False, num_layers=8,
    global_attention_every=3, local_window=2,
)  # fmt: skip


@pytest.mark.parametrize(
    "changes", [{}, {"scan_unroll": 1}, {"num_layers": 6}, {"remat": "full"}, {"num_layers": 1}], ids=str
)
def test_a_pattern_of_layers_is_its_layers_one_by_one(changes, random_params):
    config = dataclasses.replace(MODERN, **changes)
    model = Model.build(config, {})
    params = random_params(model)
    rng = np.random.default_rng(0)
    ids, positions = rng.integers(0, 50, (2, 12)), rng.integers(0, 12, (2, 3))
    segments = np.repeat([[1, 2, 0]], (5, 4, 3), axis=1).repeat(2, axis=0)

    def run(params, key=KEYS, **options):
        return model.bind(params).encoder(ids, keys_B=key, segment_ids_BxL=segments, **options)

    def one_by_one(params, key=KEYS):
        encoder = model.bind(params).encoder
        embeddings_key, layers_key = split(key, 2)
        x = encoder.embeddings(ids, None, None, embeddings_key)
        graphdef, stacked = nnx.split(encoder.layers)
        for number, key_of_layer in enumerate(split(layers_key, config.num_layers)):
            layer = nnx.merge(graphdef, jax.tree.map(lambda array, number=number: array[number], stacked))
            window = 2 if number % 3 else None
            visibility = Visibility(segment_ids_BxK=segments, window=window)
            x = layer(x, visibility, key_of_layer, number == 0)
        return encoder.final_norm(x)

    expected = jax.jit(one_by_one)(params)
    np.testing.assert_allclose(jax.jit(run)(params).last_hidden_state, expected, atol=1e-5)
    states = jax.jit(lambda params: run(params, all_hidden_states=True))(params).hidden_states
    assert states.shape == (config.num_layers + 1, *expected.shape)
    np.testing.assert_allclose(states[-1], expected, atol=1e-5)

    def at_positions(params):  # without dropout, which draws for these alone
        return run(params, None, positions_BxP=positions).last_hidden_state

    def of_whole(params):
        return jnp.take_along_axis(one_by_one(params, None), positions[:, :, None], axis=1)

    weights = rng.standard_normal((2, 3, 16), dtype=np.float32)
    gradients = [jax.jit(jax.grad(lambda p, f=f: (f(p) * weights).sum()))(params) for f in (at_positions, of_whole)]
    jax.tree.map(lambda ours, theirs: np.testing.assert_allclose(ours, theirs, atol=2e-4), *gradients)
