"""Adafactor and StableAdamW: each matrix of each layer as if it were an array of its own, on one device and on eight."""

import dataclasses

import jax
import numpy as np
import optax
import pytest
from flax import traverse_util
from jax.sharding import PartitionSpec

from bert_jax.model.build import Model
from bert_jax.model.config import EncoderConfig
from bert_jax.model.heads import MaskedLMHead
from bert_jax.parallel.mesh import STACK_AXES, ParallelConfig, make_mesh, matrix_sides
from bert_jax.train.optimizers import OptimizerConfig, decayed, make_optimizer
from bert_jax.train.step import init_state, state_shardings

STEPS = 4
CONFIG = OptimizerConfig(
    learning_rate=0.1, warmup_steps=0, schedule="linear", weight_decay=0.05, clip_norm=0.0, b2=0.98
)
MODEL = Model.build(
    EncoderConfig(
        vocab_size=20, hidden_size=12, num_layers=2, num_heads=2, intermediate_size=20, max_positions=6, gated_mlp=True
    ),
    {"mlm": MaskedLMHead},
)
AXES = traverse_util.flatten_dict(MODEL.axes, sep="/")
DECAYS = decayed(AXES, "")


@pytest.fixture(scope="module")
def problem(random_params):
    """Parameters, and gradients of growing and very different sizes for each step."""
    rng = np.random.default_rng(0)
    start = {
        name: np.asarray(array) for name, array in traverse_util.flatten_dict(random_params(MODEL), sep="/").items()
    }
    sizes = {name: 10.0 ** rng.uniform(-6, 1, array.shape) for name, array in start.items()}
    return start, [
        {name: (rng.normal(size=size.shape) * size * 3**step).astype(np.float32) for name, size in sizes.items()}
        for step in range(STEPS)
    ]


def parts(name: str, array: np.ndarray) -> list[np.ndarray]:
    """The matrices [inputs, outputs] and vectors in an array."""
    stacked = [axis for axis, logical in enumerate(AXES[name]) if logical in STACK_AXES]
    array = np.moveaxis(array, stacked, range(len(stacked)))
    array = array.reshape(-1, *array.shape[len(stacked) :])
    if sides := matrix_sides(AXES[name]):
        return [part.reshape(int(np.prod([len_of(name, array, axis) for axis in sides[0]])), -1) for part in array]
    return [part.reshape(-1) for part in array]


def len_of(name: str, array: np.ndarray, axis: int) -> int:
    """Size of an axis of the parameter in an array whose stacked axes are one, in front."""
    return array.shape[1 + sum(logical not in STACK_AXES for logical in AXES[name][:axis])]


def trained(name: str, problem, mesh=None) -> dict[str, np.ndarray]:
    """Parameters after all steps, on one device or on a mesh."""
    start, gradients = problem
    optimizer = make_optimizer(dataclasses.replace(CONFIG, name=name), STEPS, MODEL.axes)
    params, state = start, optimizer.init(start)
    update = jax.jit(optimizer.update)
    if mesh:
        abstract = jax.eval_shape(lambda: init_state(MODEL, optimizer, ".*", with_ema=False, seed=0))
        placed = state_shardings(MODEL, abstract, mesh)
        of_params, of_state = traverse_util.flatten_dict(placed["params"], sep="/"), placed["opt_state"]
        params, gradients = jax.device_put(params, of_params), [jax.device_put(g, of_params) for g in gradients]
        state = jax.device_put(state, of_state)
        update = jax.jit(optimizer.update, out_shardings=(of_params, of_state))
    for gradient in gradients:
        updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return jax.device_get(params)


def by_optax_adafactor(problem) -> dict[tuple[str, int], np.ndarray]:
    """Each matrix and vector after the steps of optax.adafactor, for which it is an array of its own."""
    rate = optax.linear_schedule(CONFIG.learning_rate, 0.0, STEPS)
    reference = optax.adafactor(rate, min_dim_size_to_factor=0, multiply_by_parameter_scale=False)
    start, *gradients = (
        {(name, number): part for name, array in arrays.items() for number, part in enumerate(parts(name, array))}
        for arrays in (problem[0], *problem[1])
    )
    params, state, update = start, reference.init(start), jax.jit(reference.update)
    for step, gradient in enumerate(gradients):
        updates, state = update(gradient, state, params)
        shrink = float(rate(step)) * CONFIG.weight_decay  # optax would not multiply it by the rate
        params = {key: w + np.asarray(updates[key]) - shrink * DECAYS[key[0]] * w for key, w in params.items()}
    return params


def by_stable_adamw(name: str, number: int, problem) -> tuple[np.ndarray, list[float]]:
    """A matrix or vector after the steps of algorithm 2 of Wortsman et al. 2023, and what divided the rates."""
    start, gradients = problem
    w = parts(name, start[name])[number].astype(np.float64)
    m, v, divisors = np.zeros_like(w), np.zeros_like(w), []
    for t, gradient in enumerate(gradients, start=1):
        g = parts(name, gradient[name])[number].astype(np.float64)
        b1, b2 = (b * (1 - b ** (t - 1)) / (1 - b**t) for b in (CONFIG.b1, CONFIG.b2))
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        divisors.append(max(1.0, np.sqrt((g**2 / np.maximum(v, CONFIG.epsilon**2)).mean())))
        rate = CONFIG.learning_rate * (1 - (t - 1) / STEPS) / divisors[-1]
        w = w - rate * (m / (np.sqrt(v) + CONFIG.epsilon) + CONFIG.weight_decay * DECAYS[name] * w)
    return w, divisors


def test_adafactor_is_that_of_optax_for_each_matrix_alone(problem):
    after, expected = trained("adafactor", problem), by_optax_adafactor(problem)
    assert sum(part.ndim == 2 for part in expected.values()) == 2 * (3 + 1 + 3) + 5, "layers, tables, pooler and head"
    for (name, number), part in expected.items():
        ours = parts(name, after[name])[number]
        np.testing.assert_allclose(ours, part, rtol=2e-4, atol=2e-6, err_msg=f"{name} {number}")


def test_stable_adamw_is_that_of_the_paper_for_each_matrix_alone(problem):
    after, plain = trained("stable_adamw", problem), trained("adamw", problem)
    clipped = []
    for name, array in after.items():
        for number, part in enumerate(parts(name, array)):
            expected, divisors = by_stable_adamw(name, number, problem)
            np.testing.assert_allclose(part, expected, rtol=2e-4, atol=2e-6, err_msg=name)
            clipped += divisors
            if max(divisors) > 1.01:
                assert np.abs(part - parts(name, plain[name])[number]).max() > 1e-4, f"{name} is AdamW's"
    assert sum(divisor > 1.05 for divisor in clipped) > 10 and min(clipped) == 1.0, "some are to be clipped, others not"


@pytest.mark.parametrize("name", ["adafactor", "stable_adamw"])
def test_eight_devices_compute_what_one_does(name, problem):
    expected = trained(name, problem)
    found = trained(name, problem, make_mesh(ParallelConfig(data=2, fsdp=2, tensor=2)))
    for path, array in found.items():
        np.testing.assert_allclose(array, expected[path], rtol=1e-4, atol=1e-6, err_msg=path)


def test_factored_moments_are_as_small_as_rows_and_columns_and_lie_where_these_do():
    optimizer = make_optimizer(dataclasses.replace(CONFIG, name="adafactor"), STEPS, MODEL.axes)
    abstract = jax.eval_shape(lambda: init_state(MODEL, optimizer, ".*", with_ema=False, seed=0))
    placed = state_shardings(MODEL, abstract, make_mesh(ParallelConfig(data=2, fsdp=2, tensor=2)))
    (moments,) = (part for part in abstract["opt_state"] if hasattr(part, "rows"))
    (places,) = (part for part in placed["opt_state"] if hasattr(part, "rows"))
    for name, rows, columns in (
        ("encoder/embeddings/tokens/embedding", ((20, 1), "tensor", None), ((1, 12), None, "fsdp")),
        ("encoder/layers/mlp/up/kernel", ((2, 12, 1), None, "fsdp", None), ((2, 1, 20), None, None, "tensor")),
        (
            "encoder/layers/attention/qkv/kernel",
            ((2, 12, 3, 1, 1), None, "fsdp", None, None, None),
            ((2, 1, 3, 2, 6), None, None, None, "tensor", None),
        ),
    ):
        for arrays, shardings, (shape, *spec) in (
            (moments.rows, places.rows, rows),
            (moments.columns, places.columns, columns),
        ):
            assert arrays[name].shape == shape
            assert shardings[name].spec == PartitionSpec(*[(axis,) if axis else None for axis in spec]), name
    assert not any(name.endswith(("/kernel", "/embedding")) for name in moments.nu)
