"""The small parts of the model, alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bert_jax.model import heads
from bert_jax.model.config import ACTIVATIONS as NAMES
from bert_jax.model.config import EncoderConfig
from bert_jax.model.heads import MaskedLMHead, PooledClassifier
from bert_jax.model.layers import ACTIVATIONS, FeedForward, dropout, norm

CONFIG = EncoderConfig(vocab_size=50, hidden_size=16, num_heads=2, intermediate_size=24, initializer_range=0.3)


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout_zeroes_its_share_and_keeps_the_mean(rate):
    x = jnp.full((200, 200), 3.0)
    y = np.asarray(dropout(x, rate, jax.random.split(jax.random.key(0), 200)))
    deviation = (rate * (1 - rate) / x.size) ** 0.5
    assert abs((y == 0).mean() - rate) < 5 * deviation, f"{(y == 0).mean():.4f} are dropped, not {rate}"
    np.testing.assert_allclose(y[y != 0], 3.0 / (1 - rate), rtol=1e-6)


def test_dropout_is_the_identity_without_a_key_or_rate():
    x = jnp.arange(5.0)
    assert dropout(x, 0.5, None) is x
    assert dropout(x, 0.0, jax.random.split(jax.random.key(0), 5)) is x


def test_the_derivative_of_gelu_is_that_of_its_definition():
    x = jnp.linspace(-6.0, 6.0, 101)
    expected = jax.vmap(jax.grad(lambda x: jax.nn.gelu(x, approximate=False)))(x)
    np.testing.assert_allclose(jax.vmap(jax.grad(ACTIVATIONS["gelu"]))(x), expected, atol=2e-6)
    np.testing.assert_allclose(jax.jvp(ACTIVATIONS["gelu"], (x,), (jnp.ones_like(x),))[1], expected, atol=2e-6)


def test_activations_are_what_their_names_say():
    assert set(ACTIVATIONS) == set(NAMES), "EncoderConfig accepts other activations than there are"
    x = np.linspace(-3, 3, 13).astype(np.float32)
    erf = np.array([__import__("math").erf(v / 2**0.5) for v in x])
    expected = {
        "gelu": x * (1 + erf) / 2,
        "gelu_tanh": x * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3))) / 2,
        "relu": np.maximum(x, 0),
        "silu": x / (1 + np.exp(-x)),
    }
    for name, values in expected.items():
        np.testing.assert_allclose(ACTIVATIONS[name](x), values, atol=1e-6, err_msg=name)
    assert np.abs(expected["gelu"] - expected["gelu_tanh"]).max() > 1e-4  # the test could tell them apart


@pytest.mark.parametrize("name", ["layernorm", "rmsnorm"])
def test_norms_by_their_formulas(name):
    x = np.random.default_rng(0).normal(100.0, 0.5, (4, 16)).astype(np.float32)  # a large mean: E[x^2] - E[x]^2 fails
    module = norm(dataclasses.replace(CONFIG, norm=name), 16, nnx.Rngs(0))
    if name == "layernorm":
        expected = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12)
    else:
        expected = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-12)
    np.testing.assert_allclose(module(x), expected, atol=1e-3 if name == "layernorm" else 1e-5)


def test_gated_feed_forward_multiplies_activation_and_gate():
    module = FeedForward(dataclasses.replace(CONFIG, gated_mlp=True, activation="relu", use_bias=False), nnx.Rngs(0))
    x = np.random.default_rng(0).normal(size=(1, 3, 16)).astype(np.float32)
    up, gate, down = (np.asarray(part.kernel[...]) for part in (module.up, module.gate, module.down))
    np.testing.assert_allclose(module(x), (np.maximum(x @ up, 0) * (x @ gate)) @ down, atol=1e-5)


def test_heads_give_float32_logits_also_in_bfloat16():
    config = dataclasses.replace(CONFIG, dtype="bfloat16", embedding_size=8)
    logits = MaskedLMHead(config, nnx.Rngs(0))(jnp.ones((1, 2, 16), jnp.bfloat16), jnp.ones((50, 8)))
    assert logits.shape == (1, 2, 50) and logits.dtype == jnp.float32
    classes = PooledClassifier(config, 3, nnx.Rngs(0))(jnp.ones((4, 16), jnp.bfloat16))
    assert classes.shape == (4, 3) and classes.dtype == jnp.float32


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("most_bytes", [4 * 3 * 50, 4 * 3 * 50 * 3, 4 * 3 * 50 * 4])
def test_the_loss_in_chunks_is_that_of_all_logits(dtype, most_bytes, monkeypatch):
    """Of 7 predictions in chunks of 1, of 3 and of 4: losses, accuracy and gradients; and the logits are not all there."""
    config = dataclasses.replace(CONFIG, dtype=dtype, embedding_size=8)
    head = MaskedLMHead(config, nnx.Rngs(0))
    rng = np.random.default_rng(0)
    hidden, table = rng.standard_normal((3, 7, 16), np.float32), rng.standard_normal((50, 8), np.float32)
    labels, weights = rng.integers(0, 50, (3, 7)), rng.standard_normal((3, 7), np.float32)
    labels[0] = np.asarray(head(hidden[:1], table)).argmax(-1)  # some are right

    def result(most_bytes):
        monkeypatch.setattr(heads, "LOGITS_BYTES", most_bytes)

        def loss(head, hidden, table):
            losses, correct = head.cross_entropy(hidden, table, labels)
            return (losses * weights).sum(), (losses, correct)

        traced = jax.jit(nnx.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)).trace(head, hidden, table)
        (_, of_rows), gradients = traced.lower().compile()(head, hidden, table)
        return of_rows, jax.tree.leaves(gradients), str(traced.jaxpr)

    of_rows, gradients, program = result(1 << 20)
    of_rows_in_chunks, gradients_in_chunks, program_of_chunks = result(most_bytes)
    assert "[3,7,50]" in program and "[3,7,50]" not in program_of_chunks
    np.testing.assert_allclose(of_rows_in_chunks[0], of_rows[0], rtol=1e-6 if dtype == "float32" else 1e-5)
    np.testing.assert_array_equal(of_rows_in_chunks[1], of_rows[1])
    assert 7 <= of_rows[1].sum() < 21
    precision = 1e-5 if dtype == "float32" else 2e-2
    for ours, theirs in zip(gradients_in_chunks, gradients, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=precision * np.abs(theirs).max())
