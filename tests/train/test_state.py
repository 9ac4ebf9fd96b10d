"""A run's state: its random keys, and the placement of the arrays of optimizers with several parts."""

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
from bert_jax.parallel.mesh import ParallelConfig, make_mesh
from bert_jax.train.state import init_state, state_shardings
from bert_jax.train.step import make_train_step


def test_no_random_key_is_used_twice():
    """Keys of the initial parameters (`nnx.Rngs` splits them off one by one), and of each step and microbatch."""
    used: list[bytes] = []

    def init(key):
        rngs = nnx.Rngs(key)
        used.extend(np.asarray(jax.random.key_data(rngs.params())).tobytes() for _ in range(40))
        return {"w": jnp.zeros(())}

    class Loss:
        def normalizers(self, batch):
            return {}

        def __call__(self, params, frozen, batch, normalizers, key):
            jax.debug.callback(lambda data: used.append(np.asarray(data).tobytes()), jax.random.key_data(key))
            return params["w"], {"loss": params["w"]}

    optimizer = optax.sgd(0.1)
    model = types.SimpleNamespace(init=init)
    state = init_state(model, optimizer, ".*", with_ema=False, seed=3)
    step = make_train_step(Loss(), optimizer, lambda step: 0.1, ".*", 0.0, seed=3)
    for _ in range(5):
        state, _ = step(state, {}, {"input_ids": jnp.zeros((4, 2, 8), jnp.int32)})
    jax.effects_barrier()
    assert len(used) == 40 + 5 * 4
    assert len(set(used)) == len(used)


def matrices_and_others(params):
    return jax.tree.map_with_path(lambda path, _: "matrix" if "kernel" in str(path) else "other", params)


OPTIMIZERS = {
    "partition": optax.partition({"matrix": optax.adam(1e-3), "other": optax.sgd(1e-3, 0.9)}, matrices_and_others),
    "masked": optax.masked(optax.adam(1e-3), lambda params: {name: "kernel" in name for name in params}),
    "muon": optax.contrib.muon(1e-3),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_moments_lie_where_their_parameters_do_also_in_parts_of_an_optimizer(name):
    config = EncoderConfig(
        vocab_size=64, hidden_size=16, num_layers=2, num_heads=2, intermediate_size=32, max_positions=16
    )
    model, optimizer = Model.build(config, {}), OPTIMIZERS[name]
    mesh = make_mesh(ParallelConfig(data=2, fsdp=2, tensor=2))

    def make():
        return init_state(model, optimizer, ".*", with_ema=False, seed=0)

    placed = state_shardings(model, optimizer, jax.eval_shape(make), ".*", mesh)
    state = jax.jit(make, out_shardings=placed)()
    path = ("encoder", "pooler", "kernel")
    expected = PartitionSpec(("fsdp",), None)
    kernel = state["params"][path[0]][path[1]][path[2]]
    assert kernel.sharding.spec == expected
    moments = [
        array
        for where, array in jax.tree.leaves_with_path(state["opt_state"])
        if getattr(where[-1], "key", "") == "/".join(path)
    ]
    assert moments and all(array.sharding.spec == expected and array.shape == kernel.shape for array in moments)
