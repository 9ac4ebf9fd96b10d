"""A run's state: its random keys; any optimizer's arrays lie where their parameters do, and come back from a checkpoint."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from bert_jax.model.build import Model
from bert_jax.model.config import EncoderConfig
from bert_jax.parallel.mesh import ParallelConfig, make_mesh, replicated, with_shardings
from bert_jax.run_folder.checkpoints import CheckpointConfig, CheckpointStore
from bert_jax.train.optimizers import RULES, OptimizerConfig, make_optimizer
from bert_jax.train.step import init_state, is_moment, make_train_step, merge, partition, state_shardings

MODEL = Model.build(
    EncoderConfig(vocab_size=64, hidden_size=16, num_layers=2, num_heads=2, intermediate_size=32, max_positions=16), {}
)


def test_no_random_key_is_used_twice():
    """Keys of the initial parameters (`nnx.Rngs` splits them off one by one), and of each row of each step."""
    used: list[bytes] = []

    def init(key):
        rngs = nnx.Rngs(key)
        used.extend(np.asarray(jax.random.key_data(rngs.params())).tobytes() for _ in range(40))
        return {"w": jnp.zeros(())}

    optimizer = optax.sgd(0.1)
    model = types.SimpleNamespace(init=init, axes={"w": ()})

    class Loss:
        def __init__(self):
            self.model = model

        def normalizers(self, batch):
            return {}

        def derived(self, means):
            return {}

        def compute(self, params, frozen, batch, normalizers, keys_B):
            def use(keys_data):
                used.extend(np.asarray(data).tobytes() for data in keys_data)

            jax.debug.callback(use, jax.random.key_data(keys_B))
            return params["w"], {"loss": params["w"]}, {}

    state = init_state(model, optimizer, ".*", with_ema=False, seed=3)
    step = make_train_step(Loss(), optimizer, lambda step: 0.1, ".*", 0.0, seed=3)
    for _ in range(5):
        state, _ = step(state, {}, {"input_ids": jnp.zeros((4, 2, 8), jnp.int32)})
    jax.effects_barrier()
    assert len(used) == 40 + 5 * 4 * 2
    assert len(set(used)) == len(used)


def matrices_and_others(params):
    return {name: "matrix" if "kernel" in name else "other" for name in params}


# With the number of arrays that each keeps for encoder/pooler/kernel, in its shape.
OPTIMIZERS = {
    "adamw": (optax.adamw(1e-3), 2),
    "novograd": (optax.novograd(1e-3), 1),  # and a number for each parameter
    "adafactor with momentum": (optax.adafactor(1e-3, min_dim_size_to_factor=8, momentum=0.9), 1),
    "prodigy": (optax.contrib.prodigy(), 4),
    "partition": (
        optax.partition({"matrix": optax.adam(1e-3), "other": optax.sgd(1e-3, 0.9)}, matrices_and_others),
        2,
    ),
    "masked": (optax.masked(optax.adam(1e-3), lambda params: {name: "kernel" in name for name in params}), 2),
    "injected hyperparameters": (optax.inject_hyperparams(optax.adamw)(optax.linear_schedule(1e-3, 0.0, 10)), 2),
    "several steps": (optax.MultiSteps(optax.adam(1e-3), 2).gradient_transformation(), 3),
} | {
    f"{name} of ours": (
        make_optimizer(OptimizerConfig(name=name, layer_decay=0.5), 10, MODEL.axes),
        {"adafactor": 0, "lion": 1}.get(name, 2),
    )
    for name in RULES
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_state_of_any_optimizer_is_sharded_saved_and_restored(name, tmp_path):
    optimizer, copies = OPTIMIZERS[name]
    mesh = make_mesh(ParallelConfig(data=2, fsdp=2, tensor=2))

    def make():
        return init_state(MODEL, optimizer, ".*", with_ema=False, seed=0)

    def step(state):
        trained, _ = partition(state["params"], ".*")
        updates, opt_state = optimizer.update(jax.tree.map(jnp.sin, trained), state["opt_state"], trained)
        return state | {"params": merge(optax.apply_updates(trained, updates), {}), "opt_state": opt_state}

    abstract = jax.eval_shape(make)
    placed = state_shardings(MODEL, abstract, mesh)
    step = jax.jit(step, out_shardings=placed)
    state = step(step(jax.jit(make, out_shardings=placed)()))

    params, shapes = partition(placed["params"], ".*")[0], partition(abstract["params"], ".*")[0]
    copies_of_pooler = 0
    for path, array in jax.tree.leaves_with_path(state["opt_state"]):
        parameter = next((key.key for key in path if getattr(key, "key", None) in params), None)
        if parameter is None or not is_moment(array.shape, shapes[parameter].shape):
            assert array.sharding == replicated(mesh), path
        elif array.shape == shapes[parameter].shape:
            assert array.sharding == params[parameter], path
            copies_of_pooler += parameter == "encoder/pooler/kernel"
    assert copies_of_pooler == copies
    assert params["encoder/pooler/kernel"].spec == PartitionSpec(("fsdp",), None), "or nothing was shown"

    store = CheckpointStore(tmp_path, CheckpointConfig())
    store.save(2, state, {}, {})
    store.wait()
    _, restored = store.restore(with_shardings(abstract, placed))
    for before, after in ((state, restored), (step(step(state)), step(step(restored)))):
        assert jax.tree.structure(before) == jax.tree.structure(after)
        for (path, array), theirs in zip(jax.tree.leaves_with_path(before), jax.tree.leaves(after), strict=True):
            np.testing.assert_array_equal(array, theirs, err_msg=str(path), strict=True)
            assert array.sharding == theirs.sharding, path
