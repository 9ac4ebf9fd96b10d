"""Learning rates by depth, and parts that are left alone at first."""

import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.errors import UserError
from bert_jax.parallel.mesh import Axes
from bert_jax.train.layerwise import scale_layerwise
from bert_jax.train.optimizers import OptimizerConfig, make_optimizer

PARAMS = {
    "encoder/embeddings/tokens/embedding": jnp.ones((5, 2)),
    "encoder/layers/mlp/up/kernel": jnp.ones((3, 2, 4)),
    "encoder/layers/mlp/up/bias": jnp.ones((3, 4)),
    "encoder/pooler/kernel": jnp.ones((2, 2)),
    "heads/classification/dense/kernel": jnp.ones((2, 3)),
}
AXES: dict[str, Axes] = {
    "encoder/embeddings/tokens/embedding": ("vocab", "embed"),
    "encoder/layers/mlp/up/kernel": ("layers", "embed", "mlp"),
    "encoder/layers/mlp/up/bias": ("layers", "mlp"),
    "encoder/pooler/kernel": ("embed", None),
    "heads/classification/dense/kernel": ("embed", None),
}


def scales(transformation, steps: int) -> list[dict[str, np.ndarray]]:
    """What an update of ones becomes in each step; one number for each layer."""
    state, found = transformation.init(PARAMS), []
    for _ in range(steps):
        updates, state = transformation.update(PARAMS, state)
        for array in updates.values():  # the whole of a layer alike
            assert (array == array.reshape(len(array), -1)[:, :1].reshape(-1, *[1] * (array.ndim - 1))).all()
        found.append(
            {name.split("/")[1]: np.asarray(array).reshape(len(array), -1)[:, 0] for name, array in updates.items()}
        )
    return found


def test_learning_rates_by_depth_are_those_of_electra():
    (found,) = scales(scale_layerwise(0.5, "", 10, AXES), 1)
    np.testing.assert_allclose(found["layers"], [0.5**4, 0.5**3, 0.5**2])
    np.testing.assert_allclose(found["embeddings"], 0.5**5)
    assert (found["pooler"] == 1).all() and (found["classification"] == 1).all()


def test_layers_join_one_after_the_other():
    found = scales(scale_layerwise(1.0, "0.5:layers/[01]/|embeddings;0.25:layers/", 8, AXES), 6)
    assert [step["layers"].tolist() for step in found] == [[0, 0, 0]] * 2 + [[0, 0, 1]] * 2 + [[1, 1, 1]] * 2
    assert [step["embeddings"][0] for step in found] == [0, 0, 0, 0, 1, 1]
    assert all((step["classification"] == 1).all() for step in found)


def test_an_optimizer_leaves_alone_what_is_frozen_weight_decay_and_all():
    config = OptimizerConfig(name="adamw", warmup_steps=0, schedule="constant", unfreeze_at="0.5:encoder/")
    optimizer = make_optimizer(config, 4, AXES)
    state = optimizer.init(PARAMS)
    for step in range(4):
        updates, state = optimizer.update(PARAMS, state, PARAMS)
        moved = {name.split("/")[0] for name, update in updates.items() if (np.asarray(update) != 0).any()}
        assert moved == ({"heads"} if step < 2 else {"heads", "encoder"})


@pytest.mark.parametrize("entry", ["layers", "x:layers", "2:layers", "0:layers", "0.5:", "0.5:("])
def test_what_is_no_share_and_regex(entry):
    with pytest.raises(UserError, match="is not SHARE:REGEX"):
        make_optimizer(OptimizerConfig(unfreeze_at=entry), 4, AXES)


def test_a_regex_that_fits_nothing():
    with pytest.raises(UserError, match=r"'0.5:layer/' fits no parameter; paths look like encoder/emb"):
        scale_layerwise(1.0, "0.5:layer/", 4, AXES).init(PARAMS)
