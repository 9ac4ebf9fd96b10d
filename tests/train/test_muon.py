"""Muon: the update of each matrix of each layer against a plain loop, and runs with it on one device and on eight."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util

from bert_jax.model.build import Model
from bert_jax.model.config import EncoderConfig
from bert_jax.model.heads import MaskedLMHead
from bert_jax.parallel.mesh import with_shardings
from bert_jax.run_folder.checkpoints import CheckpointConfig, CheckpointStore
from bert_jax.train.optimizers import OptimizerConfig, make_optimizer

STEPS = 3
CONFIG = OptimizerConfig(
    name="muon", learning_rate=0.1, warmup_steps=0, schedule="constant", weight_decay=0.05, clip_norm=0.0
)
MODEL = Model.build(
    EncoderConfig(
        vocab_size=19, hidden_size=12, num_layers=3, num_heads=2, intermediate_size=20, max_positions=7, gated_mlp=True
    ),
    {"mlm": MaskedLMHead},
)


def matrices(name: str, array: np.ndarray) -> list[np.ndarray]:
    """The matrices [inputs, outputs] in an array of the layers: views, so that they can be written to."""
    if name.endswith("qkv/kernel"):
        return [layer[:, part].reshape(len(layer), -1) for layer in array for part in range(3)]
    if name.endswith("out/kernel"):
        return [layer.reshape(-1, layer.shape[-1]) for layer in array]
    return list(array)


def by_muon(name: str, start: np.ndarray, gradients: list[np.ndarray]) -> list[np.ndarray]:
    """Each matrix after the steps (github.com/KellerJordan/Muon, muon.py, with bias correction and the scale of Adam)."""
    trained = []
    for number, w in enumerate(matrices(name, start.astype(np.float64))):
        momentum = np.zeros_like(w)
        for step, gradient in enumerate(gradients, start=1):
            g = matrices(name, gradient.astype(np.float64))[number]
            momentum = 0.95 * momentum + 0.05 * g
            x = 0.95 * momentum / (1 - 0.95 ** (step + 1)) + 0.05 * g / (1 - 0.95**step)
            x = x / (np.linalg.norm(x) + CONFIG.epsilon)
            x = x.T if len(x) > len(x[0]) else x
            for _ in range(5):
                a = x @ x.T
                x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
            size = np.linalg.svd(x, compute_uv=False)
            assert ((size > 0.4) & (size < 1.4)).all(), f"{name} {number}: not orthogonal, {size}"
            x = x.T if len(w) > len(w[0]) else x
            w = w - CONFIG.learning_rate * (0.2 * max(w.shape) ** 0.5 * x + CONFIG.weight_decay * w)
        trained.append(w)
    return trained


def test_each_matrix_of_each_layer_is_orthogonalised_alone_and_the_rest_is_adamws(random_params):
    rng = np.random.default_rng(0)
    start = traverse_util.flatten_dict(random_params(MODEL), sep="/")
    gradients = [
        {name: jnp.asarray(rng.normal(size=array.shape), jnp.float32) for name, array in start.items()}
        for _ in range(STEPS)
    ]
    results = {}
    for name in ("muon", "adamw"):
        optimizer = make_optimizer(dataclasses.replace(CONFIG, name=name), STEPS, MODEL.axes)
        params, state = start, optimizer.init(start)
        for gradient in gradients:
            updates, state = jax.jit(optimizer.update)(gradient, state, params)
            params = optax.apply_updates(params, updates)
        results[name] = params
    hidden = {name for name in start if "layers/" in name and name.endswith("kernel")}
    assert len(hidden) == 5
    for name, array in results["muon"].items():
        if name not in hidden:
            np.testing.assert_allclose(array, results["adamw"][name], rtol=1e-6, err_msg=name)
            continue
        expected = by_muon(name, np.asarray(start[name]), [np.asarray(gradient[name]) for gradient in gradients])
        for ours, theirs in zip(matrices(name, np.asarray(array)), expected, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=2e-5, err_msg=name)


MESHES = {1: {}, 8: {"parallel.data": 2, "parallel.fsdp": 2, "parallel.tensor": 2}}


@pytest.fixture(scope="module")
def run_on(tiny_config, start_run):
    """`run_on(num_devices)`: a run of 8 steps with Muon."""

    def make(num_devices: int):
        values = {"optimizer.name": "muon", "optimizer.learning_rate": 5e-3, "train.num_steps": 8}
        return start_run(tiny_config(**values, **MESHES[num_devices]), num_devices, fresh=True)

    return make


def losses_and_state(run, state, first_step: int, count: int):
    losses = []
    with jax.set_mesh(run.mesh):
        for _, batch in zip(range(count), run.batches(first_step), strict=False):
            state, metrics = run.step(state, batch)
            losses.append(float(metrics["loss"]))
    return losses, state


@pytest.mark.slow
def test_a_run_learns_the_same_on_one_device_and_on_eight_and_resumes_exactly(run_on, tmp_path):
    losses = {}
    for num_devices in MESHES:
        run = run_on(num_devices)
        first, state = losses_and_state(run, run.state, 0, 3)
        store = CheckpointStore(tmp_path / str(num_devices), CheckpointConfig())
        store.save(3, state, {}, {})
        store.wait()
        placed = jax.tree.map(lambda array: array.sharding, state)
        _, restored = store.restore(with_shardings(jax.eval_shape(lambda state=state: state), placed))
        later, end = losses_and_state(run, state, 3, 5)
        again, resumed = losses_and_state(run, restored, 3, 5)
        assert again == later
        jax.tree.map(np.testing.assert_array_equal, resumed, end)
        assert {array.dtype for array in jax.tree.leaves(state["opt_state"]) if array.ndim} == {jnp.dtype("float32")}
        losses[num_devices] = first + later
    np.testing.assert_allclose(losses[8], losses[1], rtol=2e-5)
    assert losses[1][-1] < losses[1][0] - 0.2, losses[1]
