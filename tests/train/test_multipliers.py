"""Factors of learning rate and weight decay by a table of regular expressions, also for single layers of a stack."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.config import from_dict, to_config_dict
from bert_jax.errors import UserError
from bert_jax.files import write_json
from bert_jax.parallel.mesh import Axes
from bert_jax.run_folder.resuming import check_same_run
from bert_jax.train.optimizers import RULES, OptimizerConfig, make_optimizer

AXES: dict[str, Axes] = {
    "encoder/embeddings/tokens/embedding": ("vocab", "embed"),
    "encoder/layers/mlp/up/kernel": ("layers", "embed", "mlp"),
    "encoder/layers/mlp/up/bias": ("layers", "mlp"),
    "encoder/pooler/kernel": ("embed", None),
    "heads/mlm/dense/kernel": ("embed", None),
}
SHAPES = dict(zip(AXES, [(5, 4), (3, 4, 6), (3, 6), (4, 4), (4, 2)], strict=True))
RNG = np.random.default_rng(0)
PARAMS = {name: jnp.asarray(RNG.normal(size=shape), jnp.float32) for name, shape in SHAPES.items()}
GRADIENT = {name: jnp.asarray(RNG.normal(size=shape), jnp.float32) for name, shape in SHAPES.items()}
CONFIG = OptimizerConfig(name="adamw", learning_rate=0.1, warmup_steps=0, schedule="constant", weight_decay=0.5)


def update(multipliers: str = "", **changes) -> dict[str, np.ndarray]:
    optimizer = make_optimizer(dataclasses.replace(CONFIG, multipliers=multipliers, **changes), 10, AXES)
    updates, _ = jax.jit(optimizer.update)(GRADIENT, optimizer.init(PARAMS), PARAMS)
    return jax.device_get(updates)


TABLE = "0.5,0:layers/1/;3:layers/.*kernel;0.1,2:embeddings/;0:pooler;7:layers/"


def test_the_first_that_fits_multiplies_rate_and_decay_of_each_layer():
    found, plain, without_decay = update(TABLE), update(), update(weight_decay=0.0)
    decay = {name: plain[name] - without_decay[name] for name in plain}
    up, bias = "encoder/layers/mlp/up/kernel", "encoder/layers/mlp/up/bias"
    expected = {
        "encoder/embeddings/tokens/embedding": 0.1 * (plain["encoder/embeddings/tokens/embedding"]
                                                      + decay["encoder/embeddings/tokens/embedding"]),
        up: np.stack([3 * plain[up][0], 0.5 * without_decay[up][1], 3 * plain[up][2]]),
        bias: np.stack([7 * plain[bias][0], 0.5 * plain[bias][1], 7 * plain[bias][2]]),
        "encoder/pooler/kernel": np.zeros((4, 4)),
        "heads/mlm/dense/kernel": plain["heads/mlm/dense/kernel"],
    }  # fmt: skip
    assert np.abs(decay[up]).min() > 0 and not decay[bias].any()
    for name, array in found.items():
        np.testing.assert_allclose(array, expected[name], rtol=1e-4, atol=1e-6, err_msg=name)
    np.testing.assert_array_equal(found["heads/mlm/dense/kernel"], plain["heads/mlm/dense/kernel"])


def test_they_multiply_the_rates_by_depth_and_what_does_not_decay_still_does_not():
    found = update("0.5,3:layers/2/|bias", layer_decay=0.5, no_decay="bias|embeddings/")
    plain = update(layer_decay=0.5, no_decay="bias|embeddings/")
    thrice = update(layer_decay=0.5, no_decay="bias|embeddings/", weight_decay=1.5)
    up, bias = "encoder/layers/mlp/up/kernel", "encoder/layers/mlp/up/bias"
    np.testing.assert_allclose(found[up], np.stack([*plain[up][:2], 0.5 * thrice[up][2]]), rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(found[bias], 0.5 * plain[bias], rtol=1e-6)


@pytest.mark.parametrize("name", RULES)
def test_every_optimizer_is_multiplied_and_its_state_stays_the_same(name):
    """So a run may be resumed with other multipliers."""
    found, plain = update("0.5:.*", name=name), update(name=name)
    for path, array in found.items():
        np.testing.assert_allclose(array, 0.5 * plain[path], rtol=1e-6, err_msg=path)
    states = [
        make_optimizer(dataclasses.replace(CONFIG, name=name, multipliers=text), 10, AXES).init(PARAMS)
        for text in ("", TABLE)
    ]
    assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])


@pytest.mark.parametrize(
    "entry", ["layers/", "x:layers/", "-1:layers/", "1,-1:layers/", "1,2,3:bias", "1:", "1:(", "nan:b"]
)
def test_an_entry_that_is_no_factors_and_regex(entry):
    with pytest.raises(UserError, match=r"optimizer.multipliers: '.*' is not LR:REGEX or LR,DECAY:REGEX like"):
        make_optimizer(dataclasses.replace(CONFIG, multipliers=f"1:bias;{entry}"), 10, AXES)


@pytest.mark.parametrize("regex", ["layers/3/", "embedings/", "layer/"])
def test_a_regex_that_fits_nothing_is_named(regex):
    optimizer = make_optimizer(dataclasses.replace(CONFIG, multipliers=f"1:bias;0.5:{regex}"), 10, AXES)
    with pytest.raises(
        UserError, match=f"optimizer.multipliers: '0.5:{regex}' fits no parameter; paths look like encoder/emb"
    ):
        optimizer.init(PARAMS)


def test_the_option_is_a_text_of_the_config():
    config = to_config_dict(CONFIG)
    config.multipliers = TABLE
    assert from_dict(OptimizerConfig(), config, "config.optimizer").multipliers == TABLE


def test_a_run_is_resumed_with_other_rates_but_not_with_another_optimizer(tmp_path):
    def resolved(**changes):
        optimizer = dataclasses.asdict(dataclasses.replace(CONFIG, **changes))
        return {
            "task": "pretraining",
            "model": {},
            "train": {"ema_decay": 0.0},
            "checkpoint": {},
            "optimizer": optimizer,
        }

    write_json(tmp_path / "config.json", resolved())
    check_same_run(
        tmp_path, resolved(multipliers=TABLE, schedule="wsd", decay_steps=3, end_learning_rate=1e-5, momentum=0.9)
    )
    with pytest.raises(UserError, match=r"holds another run .optimizer\.name is adamw there, stable_adamw here"):
        check_same_run(tmp_path, resolved(name="stable_adamw"))
