"""Updates against plain re-computations; which parameters decay and which are trained."""

import dataclasses
import re

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util

from bert_jax.errors import UserError
from bert_jax.model.build import Model
from bert_jax.model.config import EncoderConfig
from bert_jax.model.heads import MaskedLMHead
from bert_jax.parallel.mesh import Axes, matrix_sides
from bert_jax.train.optimizers import RULES, OptimizerConfig, decayed, make_optimizer
from bert_jax.train.schedules import learning_rate
from bert_jax.train.step import merge, partition

STEPS = 7
AXES = {"layer/kernel": ("embed", "mlp"), "layer/bias": ("mlp",), "layer/norm/scale": ("norm",)}
CONFIG = OptimizerConfig(learning_rate=1e-2, warmup_steps=2, weight_decay=0.1, clip_norm=0.0)


def problem(seed: int = 0):
    """Parameters, and gradients for each step."""
    rng = np.random.default_rng(seed)
    shapes = {"layer/kernel": (3, 4), "layer/bias": (4,), "layer/norm/scale": (4,)}
    params = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    gradients = [{name: rng.normal(size=s).astype(np.float32) for name, s in shapes.items()} for _ in range(STEPS)]
    return params, gradients


def trained(optimizer, params, gradients):
    state = optimizer.init(params)
    for gradient in gradients:
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return params


def rates(config=CONFIG) -> list[float]:
    rate = learning_rate(config, STEPS)
    return [float(rate(step)) for step in range(STEPS)]


def assert_close(found, expected, what):
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=2e-5, atol=1e-7, err_msg=f"{what}: {name}")


def test_bert_adam_is_that_of_the_original():
    """google-research/bert optimization.py, AdamWeightDecayOptimizer.apply_gradients, written again in numpy."""
    params, gradients = problem()
    expected = {name: value.astype(np.float64) for name, value in params.items()}
    m = dict.fromkeys(params, 0.0)
    v = dict.fromkeys(params, 0.0)
    for rate, gradient in zip(rates(), gradients, strict=True):
        for name, g in gradient.items():
            m[name] = 0.9 * m[name] + 0.1 * g
            v[name] = 0.999 * v[name] + 0.001 * g.astype(np.float64) ** 2
            update = m[name] / (np.sqrt(v[name]) + 1e-6)
            if name == "layer/kernel":
                update = update + 0.1 * expected[name]
            expected[name] = expected[name] - rate * update
    assert_close(trained(make_optimizer(CONFIG, STEPS, AXES), params, gradients), expected, "bert_adam")


def test_adamw_is_that_of_optax():
    config = dataclasses.replace(CONFIG, name="adamw", schedule="cosine")
    params, gradients = problem()
    mask = {name: name == "layer/kernel" for name in params}
    reference = optax.adamw(learning_rate(config, STEPS), 0.9, 0.999, 1e-6, weight_decay=0.1, mask=mask)
    assert_close(
        trained(make_optimizer(config, STEPS, AXES), params, gradients), trained(reference, params, gradients), "adamw"
    )


def test_lion_is_that_of_optax():
    config = dataclasses.replace(CONFIG, name="lion", b2=0.99)
    params, gradients = problem()
    mask = {name: name == "layer/kernel" for name in params}
    reference = optax.lion(learning_rate(config, STEPS), 0.9, 0.99, weight_decay=0.1, mask=mask)
    assert_close(
        trained(make_optimizer(config, STEPS, AXES), params, gradients), trained(reference, params, gradients), "lion"
    )


def test_gradients_are_clipped_by_their_norm_together():
    params, gradients = problem()
    clipped, norms = [], []
    for gradient in gradients:
        norm = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in gradient.values()))
        clipped.append({name: (g * min(1.0, 4.0 / norm)).astype(np.float32) for name, g in gradient.items()})
        norms.append(norm)
    assert min(norms) < 4.0 < max(norms), f"some of the gradients are to be clipped, and some not: {norms}"
    config = dataclasses.replace(CONFIG, clip_norm=4.0)
    found = trained(make_optimizer(config, STEPS, AXES), params, gradients)
    assert_close(found, trained(make_optimizer(CONFIG, STEPS, AXES), params, clipped), "clipping")
    tiny = [{name: g * 1e-3 for name, g in gradient.items()} for gradient in gradients]
    same = trained(make_optimizer(config, STEPS, AXES), params, tiny)
    assert_close(same, trained(make_optimizer(CONFIG, STEPS, AXES), params, tiny), "a small gradient was scaled up")


@pytest.mark.parametrize(
    "change, message", [({"name": "sgd"}, "optimizer.name='sgd'"), ({"schedule": "x"}, "schedule")]
)
def test_unknown_names(change, message):
    with pytest.raises(UserError, match=f"{message}.* is not one of "):
        make_optimizer(dataclasses.replace(CONFIG, **change), STEPS, AXES)
    assert set(RULES) == {"adamw", "bert_adam", "lamb", "muon", "adafactor", "lion", "stable_adamw"}


@pytest.fixture(scope="module")
def axes():
    """Logical axes, by path, of a model that has every kind of parameter."""
    config = EncoderConfig(embedding_size=128, norm_position="pre", gated_mlp=True, scalar_mix=True)
    return traverse_util.flatten_dict(Model.build(config, {"mlm": MaskedLMHead}).axes, sep="/")


@pytest.fixture
def names(axes):
    return set(axes)


def test_decay_is_for_matrices_alone(axes):
    mask = decayed(axes, OptimizerConfig().no_decay)
    for name in sorted(axes):
        kind = name.rsplit("/", 1)[-1]
        assert kind in ("bias", "scale", "kernel", "embedding", "weights", "size"), (
            f"{name}: say here whether it decays"
        )
        assert mask[name] == (kind in ("kernel", "embedding")), f"{name} {'decays' if mask[name] else 'does not decay'}"


@pytest.mark.parametrize(("no_decay", "expected"), [("$^", ".*"), ("bias|embeddings/", "^(?!.*(bias|embeddings/))")])
def test_no_decay_as_a_regex_replaces_that_rule(no_decay, expected, axes):
    assert {name for name, decays in decayed(axes, no_decay).items() if decays} == {
        name for name in axes if re.search(expected, name)
    }


def test_an_invalid_regex_is_refused():
    with pytest.raises(UserError, match=r"optimizer.no_decay='\(' is not a valid regular expression"):
        make_optimizer(OptimizerConfig(no_decay="("), STEPS, AXES)


def test_sides_of_matrices(axes):
    sides = {name: matrix_sides(of_name) for name, of_name in axes.items()}
    assert sides["encoder/layers/attention/qkv/kernel"] == ((1,), (3, 4))
    assert sides["encoder/layers/attention/qkv/bias"] is None
    assert sides["encoder/layers/attention/out/kernel"] == ((1, 2), (3,))
    assert sides["encoder/layers/mlp/down/kernel"] == ((1,), (2,))
    assert sides["encoder/embeddings/tokens/embedding"] == ((0,), (1,))


@pytest.mark.parametrize("trainable", [".*", "heads/", "embeddings", r"layers/mlp|pooler"])
def test_partition_and_merge(trainable, names):
    flat = {name: number for number, name in enumerate(sorted(names))}
    params = merge(flat, {})
    chosen, frozen = partition(params, trainable)
    assert chosen | frozen == flat and not chosen.keys() & frozen.keys()
    assert merge(chosen, frozen) == params == merge(frozen, chosen)
    with pytest.raises(UserError, match=r"optimizer\.trainable='haeds/' matches no parameter; paths look like encoder"):
        partition(params, "haeds/")
    assert params["encoder"]["layers"]["mlp"]["up"]["kernel"] == flat["encoder/layers/mlp/up/kernel"]


def test_lamb_scales_each_layer_of_a_stack_by_its_own_norms():
    rng = np.random.default_rng(0)
    axes: dict[str, Axes] = {
        "encoder/layers/attention/qkv/kernel": ("layers", "embed", "qkv", "heads", "head_size"),
        "encoder/layers/mlp/up/kernel": ("layers", "embed", "mlp"),
        "encoder/layers/mlp/up/bias": ("layers", "mlp"),
        "heads/mlm/kernel": ("embed", None),
    }
    shapes = dict(zip(axes, [(3, 4, 3, 2, 2), (3, 4, 5), (3, 5), (4, 6)], strict=True))
    params = {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}
    gradient = {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}
    config = OptimizerConfig(
        name="lamb", learning_rate=0.1, warmup_steps=0, schedule="constant", weight_decay=0.01, clip_norm=0.0
    )
    optimizer = make_optimizer(config, 10, axes)
    updates, _ = optimizer.update(gradient, optimizer.init(params), params)

    def expected(w, g, decays):
        u = 0.1 * g / (np.sqrt(0.001 * g**2) + 1e-6) + 0.01 * w * decays
        return -0.1 * u * (np.linalg.norm(w) / np.linalg.norm(u) if decays else 1.0)

    for name, update in updates.items():
        w, g = np.asarray(params[name], np.float64), np.asarray(gradient[name], np.float64)
        if "qkv" in name:
            parts = [[expected(w[i, :, part], g[i, :, part], True) for part in range(3)] for i in range(3)]
            theirs = np.stack([np.stack(of_layer, axis=1) for of_layer in parts])
        elif "layers" in name:
            theirs = np.stack([expected(w[i], g[i], "kernel" in name) for i in range(3)])
        else:
            theirs = expected(w, g, True)
        np.testing.assert_allclose(update, theirs, rtol=1e-4, err_msg=name)
