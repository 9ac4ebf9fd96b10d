"""Dropout masks: different for every step and row, and the same on any mesh, in any number of microbatches.

All rows are equal and the learning rate is 0, so whatever differs between states of the encoder is dropout.
"""

from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bert_jax.model.build import Model
from bert_jax.model.config import EncoderConfig
from bert_jax.parallel.mesh import ParallelConfig, batch_sharding, make_mesh
from bert_jax.train.step import init_state, make_train_step, state_shardings

STEPS, ROWS, LENGTH = 3, 8, 8
SIZES = {"vocab_size": 32, "hidden_size": 16, "num_heads": 2, "intermediate_size": 32, "max_positions": LENGTH}


class StatesAsMetrics:
    """A loss whose metric `states` [B, L, D] holds the hidden states of all rows, each of which contains its number."""

    def __init__(self, model: Model):
        self.model = model

    def normalizers(self, batch):
        return {}

    def derived(self, means):
        return {}

    def compute(self, params, frozen, batch, normalizers, keys_B):
        states = self.model.bind(params).encoder(batch["input_ids"], keys_B=keys_B).last_hidden_state
        of_all = jnp.zeros((ROWS, *states.shape[1:])).at[batch["number"]].set(states)
        return states.sum(), {"states": of_all, "loss": states.sum()}, {}


def states_of_steps(mesh: tuple[int, int, int], microbatches: int = 2, **dropout: float) -> np.ndarray:
    """Hidden states [S, B, L, D] of equal rows in training steps that change no parameter."""
    model = Model.build(EncoderConfig(num_layers=2, initializer_range=0.3, **SIZES, **dropout), {})
    optimizer, devices = optax.sgd(0.0), jax.devices()[: np.prod(mesh)]
    placed = make_mesh(ParallelConfig(*mesh), devices)

    def make_state():
        return init_state(model, optimizer, ".*", with_ema=False, seed=1)

    row = np.random.default_rng(0).integers(SIZES["vocab_size"], size=LENGTH)
    batch = {
        "input_ids": np.broadcast_to(row, (microbatches, ROWS // microbatches, LENGTH)).astype(np.int32),
        "number": np.arange(ROWS).reshape(microbatches, -1),
    }
    with jax.set_mesh(placed):
        lies = state_shardings(model, jax.eval_shape(make_state), placed)
        state = jax.jit(make_state, out_shardings=lies)()
        step = jax.jit(make_train_step(StatesAsMetrics(model), optimizer, lambda step: 0.0, ".*", 0.0, seed=1))
        batch = jax.device_put(batch, batch_sharding(placed))
        found = []
        for _ in range(STEPS):
            state, metrics = step(state, {}, batch)
            found.append(np.asarray(metrics["states"]))
    return np.stack(found)


WHERE = {"hidden": {"dropout": 0.5, "attention_dropout": 0.0}, "attention": {"dropout": 0.0, "attention_dropout": 0.5}}


@pytest.mark.parametrize("where", WHERE)
def test_masks_differ_between_steps_and_rows_and_not_between_meshes_and_microbatches(where):
    states = states_of_steps((1, 1, 1), **WHERE[where])
    places = list(np.ndindex(STEPS, ROWS))
    for one, other in combinations(places, 2):
        difference = np.abs(states[one] - states[other]).mean()
        assert difference > 0.05, f"(step, row) {one} and {other} have the same masks"
    for mesh, microbatches in (((2, 2, 2), 2), ((4, 1, 1), 1), ((1, 1, 1), 4)):
        elsewhere = states_of_steps(mesh, microbatches, **WHERE[where])
        np.testing.assert_allclose(elsewhere, states, atol=2e-5, err_msg=f"mesh {mesh}, {microbatches} microbatches")


def test_without_dropout_equal_rows_have_equal_states():
    states = states_of_steps((1, 1, 1), dropout=0.0, attention_dropout=0.0)
    np.testing.assert_allclose(states, np.broadcast_to(states[:1, :1], states.shape), atol=1e-6)
