"""Starting from an encoder of other sizes: chosen layers, deeper and wider encoders."""

import jax
import numpy as np
import pytest
from flax import traverse_util

from bert_jax import run
from bert_jax.errors import UserError
from bert_jax.growing import centered, grown, source_layers
from bert_jax.init_from import inherited_state, open_initial_model
from bert_jax.model.build import Model
from bert_jax.model.config import EncoderConfig
from bert_jax.model.heads import MaskedLMHead
from bert_jax.parallel.mesh import ParallelConfig, make_mesh, shardings
from bert_jax.run import run_training
from bert_jax.run_folder import folder as run_folder
from bert_jax.tasks import base as tasks

SMALL = {"vocab_size": 53, "hidden_size": 16, "num_layers": 2, "num_heads": 2, "intermediate_size": 24}
PRE_NORM = {"norm_position": "pre", "positions": "rope", "max_positions": 16, "num_token_types": 0, "pooler": False}


@pytest.fixture(autouse=True)
def no_measuring(monkeypatch):
    monkeypatch.setattr(run, "measured_matmul_flops", lambda *_: 1e9)


def flat(tree):
    return traverse_util.flatten_dict(tree, sep="/")


def grow(small, large, random_params, growth, layers=()):
    """The small model's random parameters, and the large model's made of them."""
    mesh = make_mesh(ParallelConfig(), jax.devices()[:1])
    params = random_params(small)
    fresh = jax.device_put(random_params(large, seed=1), shardings(large.abstract, large.axes, mesh))
    made = grown(flat(params), flat(fresh), flat(large.axes), growth, layers)
    assert {name: array.shape for name, array in made.items()} == {k: v.shape for k, v in flat(large.abstract).items()}
    return params, traverse_util.unflatten_dict(made, sep="/")


def models(small=(), large=(), **shared):
    heads = {"mlm": MaskedLMHead}
    return (Model.build(EncoderConfig(**SMALL | shared | dict(options)), heads) for options in (small, large))


def outputs(model, params):
    ids = np.arange(32).reshape(2, 16) % 53
    bound = model.bind(params)
    output = bound.encoder(ids, all_hidden_states=True)
    return bound.heads["mlm"](output.last_hidden_state, bound.encoder.embeddings.tokens.embedding[...])


@pytest.mark.parametrize("gated", [False, True])
def test_identity_layers_keep_the_function(random_params, gated):
    small, large = models(large={"num_layers": 6}, gated_mlp=gated, **PRE_NORM)
    before, after = grow(small, large, random_params, "identity")
    expected, actual = outputs(small, before), outputs(large, after)
    np.testing.assert_array_equal(np.asarray(actual), np.asarray(expected))


def test_stacked_layers(random_params):
    small, large = models(large={"num_layers": 5})
    before, after = grow(small, large, random_params, "stack")
    there, here = (flat(params)["encoder/layers/mlp/up/kernel"] for params in (before, after))
    np.testing.assert_array_equal(here, np.asarray(there)[[0, 1, 0, 1, 0]])


def test_chosen_layers(random_params):
    small, large = models(small={"num_layers": 6}, large={"num_layers": 3})
    before, after = grow(small, large, random_params, "", (0, 3, 5))
    there, here = (flat(params)["encoder/layers/attention/qkv/kernel"] for params in (before, after))
    np.testing.assert_array_equal(here, np.asarray(there)[[0, 3, 5]])


def test_tiled_matrices(random_params):
    """Each matrix holds the smaller one in its middle, and every head is one of the smaller encoder's."""
    large = {"hidden_size": 24, "num_heads": 3, "intermediate_size": 40, "num_layers": 3}
    small, large = models(large=large, **PRE_NORM)
    before, after = grow(small, large, random_params, "tile")
    there, here = (flat(params)["encoder/layers/mlp/up/kernel"] for params in (before, after))
    np.testing.assert_array_equal(here[:, 4:20, 8:32], np.asarray(there)[[0, 0, 1]])
    np.testing.assert_array_equal(here[:, :4, 8:32], np.asarray(there)[[0, 0, 1], -4:])
    there, here = (flat(params)["encoder/layers/attention/out/kernel"] for params in (before, after))
    np.testing.assert_array_equal(here[0, 2, :, 4:20], np.asarray(there)[0, 0])  # the third head is the first one again


def test_rows_that_stand_for_no_token_are_the_mean_of_the_others(random_params):
    small, large = models(large={"vocab_size": 64, "hidden_size": 32}, **PRE_NORM)
    before, after = grow(small, large, random_params, "tile")
    there, here = (flat(params)["encoder/embeddings/tokens/embedding"] for params in (before, after))
    np.testing.assert_array_equal(here[:53, 8:24], there)
    np.testing.assert_allclose(here[53:, 8:24], np.tile(np.asarray(there).mean(axis=0), (11, 1)), atol=1e-6)
    assert here.shape == (64, 32) and after["heads"]["mlm"]["bias"].shape == (64,)


def test_which_layers_and_places():
    assert source_layers("", (4, 2), 6, 2) == [4, 2] and source_layers("", (), 6, 2) == [0, 1]
    assert source_layers("tile", (), 22, 28)[:6] == [0, 0, 1, 2, 3, 3] and source_layers("tile", (), 22, 28)[-1] == 21
    assert list(centered(4, 7)) == [3, 0, 1, 2, 3, 0, 1] and list(centered(4, 4)) == [0, 1, 2, 3]


@pytest.fixture(scope="module")
def pretrained(tiny_config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("small") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "measured_matmul_flops", lambda *_: 1e9)
        run_training(tiny_config(**{"train.num_steps": 1}), folder)
    return folder


def test_a_run_takes_chosen_layers_over_a_mesh(tiny_config, pretrained, start_run):
    options = {"model.num_layers": 3, "parallel.fsdp": 2, "parallel.tensor": 2, "parallel.data": 2}
    values = tiny_config(init_from=str(pretrained), init_layers=(1, 0, 1), **options)
    fresh = start_run(values, fresh=True)
    origin = open_initial_model(pretrained)
    params = inherited_state(fresh.task, origin, fresh.state, fresh.mesh)["params"]
    stored = origin.restore(origin.stored)["encoder"]["layers"]
    jax.tree.map(
        lambda here, there: np.testing.assert_array_equal(jax.device_get(here), np.asarray(there)[[1, 0, 1]]),
        params["encoder"]["layers"],
        stored,
    )
    kernel = params["encoder"]["layers"]["mlp"]["up"]["kernel"]
    assert kernel.sharding == fresh.state["params"]["encoder"]["layers"]["mlp"]["up"]["kernel"].sharding


def test_growing_from_nothing(tiny_config, tmp_path):
    with pytest.raises(UserError, match="choose what is taken from init_from, and nothing is; set --config"):
        run_training(tiny_config(init_growth="tile"), tmp_path / "run")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"init_growth": "double"}, "init_growth='double' is not one of '', 'stack', 'identity', 'tile'"),
        ({"init_growth": "identity", "model.num_layers": 4}, "'identity' needs model.norm_position='pre'; with norms"),
        (
            {"init_growth": "stack", "model.num_layers": 1},
            r"makes an encoder deeper or wider \(1 layers here, 2 there\)",
        ),
        ({"init_layers": (0, 1, 0)}, "init_layers names 3 layers for model.num_layers=2; name one for each layer"),
        ({"init_layers": (0, 2)}, "there is no layer 2; choose from 0 to 1"),
        ({"init_growth": "stack", "init_layers": (0, 1)}, "leave init_growth='stack' out"),
        ({"init_growth": "tile", "model.hidden_size": 16}, "model.hidden_size is 32 there, 16 here"),
        ({"init_growth": "stack", "model.hidden_size": 64}, "model.hidden_size is 32 there, 64 here"),
        ({"init_growth": "stack", "model.num_layer_groups": 1}, "this model shares them"),
        ({"init_growth": "tile", "model.max_positions": 64}, "model.max_positions is 32 there, 64 here"),
    ],
)
def test_what_cannot_grow(tiny_config, pretrained, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        run_training(tiny_config(init_from=str(pretrained), **options), tmp_path / "run")
    assert not run_folder.exists(tmp_path / "run")


def test_a_deeper_run_trains(tiny_config, pretrained, tmp_path):
    options = {"model.num_layers": 4, "init_growth": "stack", "train.num_steps": 1}
    run_training(tiny_config(init_from=str(pretrained), **options), tmp_path / "run")
    task = tasks.create(run_folder.get_config(str(tmp_path / "run")), tmp_path / "run")
    assert task.config.model.num_layers == 4
