"""How objectives are found and share one pass of the encoder, and that sums divide globally."""

import dataclasses

import jax
import numpy as np
import pytest

from bert_jax.errors import UserError
from bert_jax.model.config import EncoderConfig
from bert_jax.objectives import base
from bert_jax.objectives.base import available, default_options, load
from bert_jax.objectives.losses import Losses, build_model


class Vocabulary:
    vocab_size, mask_id, special_ids = 60, 4, np.arange(5)
    word_starts = np.ones(60, bool)


def test_all_objectives_are_found_with_their_options():
    assert {"mlm", "nsp", "sop"} <= set(available()) and "base" not in available()
    assert default_options().keys() == set(available())
    for name, options in default_options().items():
        assert options.weight == 1.0, f"{name} does not count once"


@pytest.mark.parametrize(
    "names, message",
    [
        (("mlm", "nps"), "unknown objective 'nps'; there are .*mlm.*nsp"),
        ((), "name at least one"),
        (("mlm", "mlm"), "each once"),
        (("nsp", "sop"), "objectives nsp and sop both decide the second segment; keep one"),
        (("base",), "unknown objective 'base'"),
        (("rtd",), "^rtd without a generator's sizes; set --config.options.rtd.generator_size"),
        (("distillation",), "^distillation without a teacher; set --config.options.distillation.folder"),
    ],
)
def test_objectives_that_cannot_be(names, message):
    with pytest.raises(UserError, match=message):
        load(names, default_options(), Vocabulary())


def test_objectives_that_do_not_fit_together():
    options = default_options()
    options["rtd"] = dataclasses.replace(options["rtd"], generator_size=0.5)
    options["distillation"] = dataclasses.replace(options["distillation"], folder="teacher")
    with pytest.raises(UserError, match="objectives mlm and rtd both mask tokens; keep one of them"):
        load(("mlm", "rtd"), options, Vocabulary())
    with pytest.raises(UserError, match="objectives mlm and distillation both mask tokens"):
        load(("mlm", "distillation"), options, Vocabulary())


ROWS, LENGTH = 4, 12
CONFIG = EncoderConfig(
    vocab_size=60, hidden_size=16, num_layers=1, num_heads=2, intermediate_size=24, max_positions=LENGTH
)


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    lengths = np.array([12, 5, 9, 7])
    return {
        "input_ids": rng.integers(5, 60, (ROWS, LENGTH)).astype(np.int32),
        "attention_mask": (np.arange(LENGTH) < lengths[:, None]).astype(np.int32),
        "token_type_ids": (np.arange(LENGTH) >= lengths[:, None] // 2).astype(np.int32),
        "example_weights": np.ones(ROWS, np.float32),
        "mlm_positions": rng.integers(1, 5, (ROWS, 3)).astype(np.int32),
        "mlm_labels": rng.integers(5, 60, (ROWS, 3)).astype(np.int32),
        "mlm_weights": np.array([[1, 1, 1], [1, 0, 0], [1, 1, 0], [0, 0, 0]], np.float32),
        "nsp_labels": rng.integers(0, 2, ROWS).astype(np.int32),
    }


@pytest.fixture(scope="module")
def losses_of(random_params):
    """Names and weights -> (Losses, parameters); heads of the same name have the same parameters."""
    options = default_options()
    both = load(("mlm", "nsp"), options, Vocabulary())
    params = random_params(build_model(CONFIG, both))

    def make(names, **weights):
        changed = {name: base._module(name).Options(weight=weights.get(name, 1.0)) for name in options}
        objectives = load(names, changed, Vocabulary())
        model = build_model(CONFIG, objectives)
        return Losses(model, objectives), params | {"heads": {name: params["heads"][name] for name in names}}

    return make


def value(losses, params, batch, weights=None):
    weights = losses.normalizers(batch) if weights is None else weights
    loss, metrics, _ = jax.jit(lambda *inputs: losses.compute(*inputs, None))(params, {}, batch, weights)
    return float(loss), {name: float(x) for name, x in metrics.items()}


def test_composed_loss_is_the_weighted_sum_of_the_single_ones(losses_of, batch):
    mlm, mlm_metrics = value(*losses_of(("mlm",)), batch)
    nsp, nsp_metrics = value(*losses_of(("nsp",)), batch)
    both, metrics = value(*losses_of(("mlm", "nsp"), mlm=2.0, nsp=0.5), batch)
    np.testing.assert_allclose(both, 2.0 * mlm + 0.5 * nsp, rtol=1e-5)
    assert metrics.keys() == {"loss", "mlm/loss", "mlm/accuracy", "nsp/loss", "nsp/accuracy"}
    for name, expected in (mlm_metrics | nsp_metrics).items():
        if name != "loss":  # without the weight, so that it can be compared between runs
            np.testing.assert_allclose(metrics[name], expected, rtol=1e-5, err_msg=name)


def test_rows_that_fill_a_batch_change_nothing_and_parts_add_up(losses_of, batch):
    losses, params = losses_of(("mlm", "nsp"))
    whole, metrics = value(losses, params, batch)
    filled = {name: np.concatenate([array, array[:2]]) for name, array in batch.items()}
    for name in ("example_weights", "mlm_weights"):
        filled[name][ROWS:] = 0.0
    padded, padded_metrics = value(losses, params, filled)
    np.testing.assert_allclose(padded, whole, rtol=1e-5, err_msg="rows of weight 0 change the loss")
    for name in metrics:
        np.testing.assert_allclose(padded_metrics[name], metrics[name], rtol=1e-5, err_msg=name)

    weights = losses.normalizers(batch)
    parts = [{name: array[rows] for name, array in batch.items()} for rows in (slice(0, 2), slice(2, 4))]
    total = sum(value(losses, params, part, weights)[0] for part in parts)
    np.testing.assert_allclose(total, whole, rtol=1e-5, err_msg="the parts of a batch do not add up to the whole")
