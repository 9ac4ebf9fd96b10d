"""The encoder: sizes, what padding, sharing, positions, windows and dropout do, and that execution options change nothing."""

import dataclasses
import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.config import from_dict
from bert_jax.model.attention.layer import rotary_table, rotate
from bert_jax.model.build import Model, count
from bert_jax.model.config import EncoderConfig

LENGTH = 12
TINY = EncoderConfig(
    vocab_size=100,
    hidden_size=16,
    num_layers=2,
    num_heads=2,
    intermediate_size=24,
    max_positions=16,
    dropout=0.0,
    attention_dropout=0.0,
)
MODERN = dataclasses.replace(
    TINY,
    num_layers=3,
    num_token_types=0,
    positions="rope",
    norm="rmsnorm",
    norm_position="pre",
    norm_epsilon=1e-5,
    activation="silu",
    gated_mlp=True,
    use_bias=False,
    global_attention_every=3,
    local_window=2,
    pooler=False,
)
VARIANTS = {
    "bert": TINY,
    "roberta": dataclasses.replace(TINY, position_offset=2, num_token_types=1, norm_epsilon=1e-5),
    "albert": dataclasses.replace(TINY, embedding_size=8, num_layer_groups=1, activation="gelu_tanh"),
    "distilbert": dataclasses.replace(TINY, num_token_types=0, pooler=False),
    "pre-norm": dataclasses.replace(TINY, norm_position="pre", activation="relu"),
    "modern": MODERN,
}


class Run:
    """An encoder with parameters, compiled once for each shape of inputs."""

    def __init__(self, config: EncoderConfig, params):
        self.config = config
        self.model = Model.build(config, {})
        self.params = params

        def forward(params, ids, mask, key):
            return self.model.bind(params).encoder(ids, mask, keys_B=key, all_hidden_states=True)

        self.forward = jax.jit(forward)

    def __call__(self, ids, mask=None, key=None, params=None) -> np.ndarray:
        """The last hidden states."""
        output = self.forward(self.params if params is None else params, ids, mask, key)
        return np.asarray(output.last_hidden_state, np.float32)


@pytest.fixture(scope="module")
def run_of(random_params):
    """One `Run` for each config, kept so that it is compiled once."""

    @functools.cache
    def run(config: EncoderConfig) -> Run:
        return Run(config, random_params(Model.build(config, {})))

    return run


@pytest.fixture(scope="module")
def ids() -> np.ndarray:
    return np.random.default_rng(0).integers(5, 100, (2, LENGTH)).astype(np.int32)


def leaves(params) -> dict[str, np.ndarray]:
    return {jax.tree_util.keystr(p, simple=True, separator="/"): x for p, x in jax.tree.leaves_with_path(params)}


# ---------------------------------------------------------------------------------------------------------------------
# Sizes
# ---------------------------------------------------------------------------------------------------------------------

POOLER = 768 * 768 + 768
RELEASED = {  # recipe: tokens, and parameters of the encoder and, where the family has one, the pooler
    "bert_base": (30_522, 109_482_240),
    "bert_large": (30_522, 335_141_888),
    "bert_compact:2_128": (30_522, 4_385_920),
    "roberta:base": (50_265, 124_645_632 - POOLER),  # released with one, which its pretraining does not train
    "albert:base": (30_000, 11_683_584),
    "albert:xxlarge": (30_000, 222_595_584),
    "distilbert": (30_522, 66_362_880),
    "electra:small": (30_522, 13_483_008),
    "electra:base": (30_522, 109_482_240 - POOLER),
    "modernbert:base": (50_368, 149_014_272 + 768),  # and the norm that the first layer does not use
}


@pytest.mark.parametrize("name", RELEASED)
def test_parameter_counts_are_those_of_the_released_models(name):
    recipe, _, size = name.partition(":")
    values = importlib.import_module(f"configs.{recipe}").get_config(*filter(None, [size]))
    config, (num_tokens, num_parameters) = from_dict(EncoderConfig(), values.model), RELEASED[name]
    assert 0 <= config.vocab_size - num_tokens < 128, "rows of the embedding are padded to a multiple of 128 at most"
    config = dataclasses.replace(config, vocab_size=num_tokens)
    assert count(Model.build(config, {}).abstract) == num_parameters, f"{name} has another number of parameters"


@pytest.mark.parametrize("name", VARIANTS)
def test_abstract_parameters_and_axes_describe_the_real_ones(name):
    model = Model.build(VARIANTS[name], {})
    real = jax.eval_shape(model.init, jax.random.key(0))
    assert model.abstract == real
    axes = jax.tree.leaves(model.axes, is_leaf=lambda x: isinstance(x, tuple))
    for (path, array), names in zip(leaves(real).items(), axes, strict=True):
        assert array.ndim == len(names), f"{path} {array.shape} has the logical axes {names}"


def test_initial_values_follow_the_initializer_range():
    model = Model.build(dataclasses.replace(TINY, hidden_size=64, vocab_size=500, initializer_range=0.02), {})
    params = leaves(jax.jit(model.init)(jax.random.key(1)))
    for path, array in params.items():
        array = np.asarray(array)
        if path.endswith("scale"):
            assert (array == 1).all(), f"{path} does not start at one"
        elif path.endswith("bias"):
            assert (array == 0).all(), f"{path} does not start at zero"
        else:
            assert np.abs(array).max() <= 0.04 + 1e-3, f"{path} is not cut at two deviations: {np.abs(array).max()}"
            assert 0.015 < array.std() < 0.021, f"{path} has the deviation {array.std()}"
    stacked = params["encoder/layers/mlp/up/kernel"]
    assert not np.array_equal(stacked[0], stacked[1]), "all layers start with the same weights"


# ---------------------------------------------------------------------------------------------------------------------
# Padding, execution options, precision
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VARIANTS)
def test_padding_changes_nothing(name, run_of, ids):
    run = run_of(VARIANTS[name])
    real = 7
    mask = np.ones_like(ids)
    mask[0, real:] = 0
    other = ids.copy()
    other[0, real:] = (other[0, real:] + 17) % 100
    before, after = run(ids, mask), run(other, mask)
    assert np.isfinite(before).all(), "padding makes numbers that are none"
    np.testing.assert_array_equal(before[0, :real], after[0, :real], "the ids under padding reach the tokens")
    np.testing.assert_array_equal(before[1], after[1], "another row's padding reaches this row")
    if name in ("bert", "modern"):
        short = run(ids[:, :real])
        np.testing.assert_allclose(before[0, :real], short[0], atol=5e-5, err_msg="padded and unpadded rows differ")


def test_no_mask_means_all_tokens_and_no_types_mean_the_first(run_of, ids):
    run = run_of(TINY)
    np.testing.assert_array_equal(run(ids), run(ids, np.ones_like(ids)))
    encoder = run.model.bind(run.params).encoder
    typed = jax.jit(lambda types: encoder(ids, token_type_ids_BxL=types).last_hidden_state)
    np.testing.assert_allclose(typed(np.zeros_like(ids)), run(ids), atol=1e-5)
    assert np.abs(typed(np.ones_like(ids)) - run(ids)).max() > 0.01, "token types do not reach the output"


@pytest.fixture(scope="module")
def value_and_gradient(random_params, ids):
    """A config -> (value, gradient by path) of a loss with dropout: recomputation must draw the same masks."""

    @functools.cache
    def of(config):
        model = Model.build(config, {})
        target = np.random.default_rng(1).normal(size=(*ids.shape, 16)).astype(np.float32)

        def loss(params):
            output = model.bind(params).encoder(ids, keys_B=jax.random.split(jax.random.key(2), len(ids)))
            return jnp.square(output.last_hidden_state - target).sum()

        value, gradient = jax.jit(jax.value_and_grad(loss))(random_params(model))
        return value, leaves(gradient)

    return of


@pytest.mark.parametrize("options", [{"remat": "full"}, {"remat": "mlp"}, {"remat": "dots", "scan_unroll": 2}], ids=str)
def test_execution_options_change_neither_values_nor_gradients(options, value_and_gradient):
    config = dataclasses.replace(TINY, dropout=0.1, attention_dropout=0.1)
    value, gradient = value_and_gradient(config)
    other_value, other_gradient = value_and_gradient(dataclasses.replace(config, **options))
    np.testing.assert_allclose(value, other_value, rtol=1e-5)
    for path, array in gradient.items():
        scale = np.abs(array).max()
        np.testing.assert_allclose(array, other_gradient[path], rtol=1e-4, atol=1e-5 * scale, err_msg=path)


def test_the_more_is_computed_again_the_less_is_kept(random_params, ids):
    """Memory of the backward pass, and operations, as the compiler counts them."""
    needed = {}
    for remat in ("none", "dots", "mlp", "full"):
        sizes = {"hidden_size": 64, "intermediate_size": 256, "num_layers": 3}
        model = Model.build(dataclasses.replace(TINY, remat=remat, scan_unroll=1, dropout=0.1, **sizes), {})

        def loss(params, keys, model=model):
            return model.bind(params).encoder(np.tile(ids, (50, 1)), keys_B=keys).last_hidden_state.sum()

        compiled = (
            jax.jit(jax.grad(loss)).lower(model.abstract, jax.random.split(jax.random.key(0), 50 * len(ids))).compile()
        )
        needed[remat] = compiled.memory_analysis().temp_size_in_bytes, compiled.cost_analysis()["flops"]
    memory, operations = zip(*needed.values(), strict=True)
    assert list(memory) == sorted(memory, reverse=True) and memory[0] > 1.5 * memory[3], needed
    assert list(operations) == sorted(operations) and operations[0] * 1.5 > operations[3], needed


@pytest.mark.parametrize("name", ["bert", "modern"])
def test_bfloat16_is_close_to_float32(name, run_of, ids):
    run = run_of(VARIANTS[name])
    low = Run(dataclasses.replace(run.config, dtype="bfloat16"), run.params)
    output = low.forward(run.params, ids, None, None)
    assert output.last_hidden_state.dtype == jnp.bfloat16
    difference = np.abs(low(ids) - run(ids)).max() / np.abs(run(ids)).max()
    assert 0 < difference < 0.06, f"bfloat16 differs by {difference:.3f} of the largest value"


def test_sequences_longer_than_the_position_table_are_refused(run_of):
    with pytest.raises(ValueError, match=r"sequence length 17 exceeds model.max_positions=16"):
        run_of(TINY)(np.zeros((1, 17), np.int32))


def test_hidden_states_are_those_of_every_layer(run_of, ids):
    run = run_of(TINY)
    states = run.forward(run.params, ids, None, None)
    assert states.hidden_states.shape == (TINY.num_layers + 1, *ids.shape, TINY.hidden_size)
    np.testing.assert_array_equal(states.hidden_states[-1], states.last_hidden_state)
    one_layer = dataclasses.replace(TINY, num_layers=1)
    first = jax.tree.map(lambda x: x[:1], run.params["encoder"]["layers"])
    params = {**run.params, "encoder": {**run.params["encoder"], "layers": first}}
    np.testing.assert_allclose(Run(one_layer, params)(ids), states.hidden_states[1], atol=1e-5)


# ---------------------------------------------------------------------------------------------------------------------
# Layer groups
# ---------------------------------------------------------------------------------------------------------------------


def with_layers(params, function):
    """The parameters with `function` of every stacked layer weight."""
    return {**params, "encoder": {**params["encoder"], "layers": jax.tree.map(function, params["encoder"]["layers"])}}


@pytest.mark.parametrize(
    "groups, per_group, order",
    [(1, 1, [0] * 4), (2, 1, [0, 0, 1, 1]), (1, 2, [0, 1, 0, 1]), (2, 2, [0, 1, 0, 1, 2, 3, 2, 3])],
)
def test_layer_groups_run_in_albert_order(groups, per_group, order, run_of, ids):
    if per_group == 1:
        assert order == [int(i / len(order) * groups) for i in range(len(order))]
    full = dataclasses.replace(TINY, num_layers=len(order))
    shared = run_of(dataclasses.replace(full, num_layer_groups=groups, layers_per_group=per_group))
    repeated = with_layers(shared.params, lambda weights: weights[np.array(order)])
    expected = run_of(full)(ids, params=repeated)
    np.testing.assert_allclose(shared(ids), expected, atol=5e-5, err_msg=f"the layers do not run in order {order}")


def test_gradients_of_shared_layers_add_up(random_params, ids):
    target = np.random.default_rng(1).normal(size=(*ids.shape, 16)).astype(np.float32)

    def gradient(config, params):
        model = Model.build(config, {})
        return jax.jit(jax.grad(lambda p: (model.bind(p).encoder(ids).last_hidden_state * target).sum()))(params)

    shared_config = dataclasses.replace(TINY, num_layer_groups=1)
    shared = random_params(Model.build(shared_config, {}))
    full = with_layers(shared, lambda weights: weights[np.zeros(2, int)])
    by_layer = leaves(gradient(TINY, full)["encoder"]["layers"])
    summed = leaves(gradient(shared_config, shared)["encoder"]["layers"])
    for path, array in summed.items():
        np.testing.assert_allclose(array[0], by_layer[path].sum(0), rtol=1e-3, atol=1e-3, err_msg=path)


# ---------------------------------------------------------------------------------------------------------------------
# Variants do what their names promise
# ---------------------------------------------------------------------------------------------------------------------


def test_options_decide_which_parameters_there_are():
    def paths(**changes):
        return set(leaves(Model.build(dataclasses.replace(TINY, **changes), {}).abstract))

    base = paths()
    assert {path for path in base if "pooler" in path} == base - paths(pooler=False)
    assert base - paths(num_token_types=0) == {"encoder/embeddings/token_types/embedding"}
    assert base - paths(positions="rope") == {"encoder/embeddings/positions/embedding"}
    assert base - paths(use_bias=False) == {path for path in base if path.endswith("bias")}
    assert {path.rsplit("/", 2)[1] for path in base - paths(norm="rmsnorm")} == {"norm", "attention_norm", "mlp_norm"}
    assert {path.rsplit("/", 2)[1] for path in paths(gated_mlp=True) - base} == {"gate"}
    assert {path.rsplit("/", 2)[1] for path in paths(embedding_size=8) - base} == {"projection"}
    assert {path.rsplit("/", 2)[1] for path in paths(norm_position="pre") - base} == {"final_norm"}


def test_learned_positions_start_at_the_offset(run_of, ids):
    run = run_of(VARIANTS["roberta"])
    table = run.params["encoder"]["embeddings"]["positions"]["embedding"]
    assert table.shape[0] == run.config.max_positions + 2, "the offset's rows are missing"

    def with_table(table):
        embeddings = {**run.params["encoder"]["embeddings"], "positions": {"embedding": table}}
        return {**run.params, "encoder": {**run.params["encoder"], "embeddings": embeddings}}

    np.testing.assert_array_equal(run(ids), run(ids, params=with_table(table.at[:2].set(9.0))))
    assert np.abs(run(ids) - run(ids, params=with_table(table.at[2].set(9.0)))).max() > 0.01


def test_rotary_scores_depend_on_the_distance_only():
    q, k = jax.random.normal(jax.random.key(0), (2, 8))
    angles = rotary_table(64, 8, 10_000.0)[None]
    turned_q = rotate(jnp.broadcast_to(q, (1, 64, 1, 8)), angles)[0, :, 0]
    turned_k = rotate(jnp.broadcast_to(k, (1, 64, 1, 8)), angles)[0, :, 0]
    scores = np.asarray(turned_q @ turned_k.T)
    for distance in (-20, -1, 0, 3, 30):
        diagonal = np.diagonal(scores, distance)
        np.testing.assert_allclose(diagonal, diagonal[0], atol=1e-4, err_msg=f"distance {distance}")
    assert np.ptp(scores[0]) > 0.1, "the scores do not depend on the distance at all"
    np.testing.assert_allclose(jnp.linalg.norm(turned_q, axis=-1), jnp.linalg.norm(q), rtol=1e-5)


@pytest.mark.parametrize("name, moves", [("modern", True), ("bert", False)])
def test_only_rotary_encoders_do_not_notice_a_shift(name, moves, run_of, ids):
    run = run_of(VARIANTS[name])
    shift = 4
    mask = np.ones_like(ids)
    mask[:, LENGTH - shift :] = 0
    before = run(ids, mask)[:, : LENGTH - shift]
    after = run(np.roll(ids, shift, 1), np.roll(mask, shift, 1))[:, shift:]
    difference = np.abs(before - after).max()
    assert (difference < 1e-4) if moves else (difference > 0.01), f"{name}: a shift changes the output by {difference}"
    reversed_order = run(np.ascontiguousarray(ids[:, ::-1]))[:, ::-1]
    assert np.abs(run(ids) - reversed_order).max() > 0.01, "the encoder does not see the order of tokens"


def test_local_layers_see_their_window_and_no_more(run_of, ids):
    run = run_of(dataclasses.replace(MODERN, num_layers=2, global_attention_every=2))
    layers = run.params["encoder"]["layers"]
    out = layers["attention"]["out"]["kernel"]
    # Without the attention of layer 0, which is global, only the window of layer 1 carries tokens to others.
    silent = {**layers, "attention": {**layers["attention"], "out": {"kernel": out.at[0].set(0.0)}}}
    params = {**run.params, "encoder": {**run.params["encoder"], "layers": silent}}
    changed = ids.copy()
    changed[:, 5] += 1

    def reached(params):
        return set(np.flatnonzero(np.abs(run(ids, params=params) - run(changed, params=params)).max((0, 2)) > 0))

    assert reached(params) == {3, 4, 5, 6, 7}, "a window of 2 reaches other places than 2 on each side"
    assert reached(run.params) == set(range(LENGTH)), "the global layer does not reach all places"


def test_local_layers_have_a_rotary_base_of_their_own(run_of, ids):
    def output(**changes):
        return Run(dataclasses.replace(MODERN, **changes), run_of(MODERN).params)(ids)

    base = output()
    assert np.abs(base - output(local_rope_theta=10.0)).max() > 1e-4, "local_rope_theta has no effect"
    assert np.abs(base - output(rope_theta=10.0)).max() > 1e-4, "rope_theta has no effect"


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"positions": "sinus"}, "model.positions='sinus' is not one of learned, rope"),
        ({"activation": "mish"}, "model.activation='mish' is not one of gelu"),
        ({"norm": "batch"}, "model.norm='batch'"),
        ({"norm_position": "mid"}, "model.norm_position='mid'"),
        ({"remat": "some"}, "model.remat='some'"),
        ({"dtype": "float64"}, "model.dtype='float64'"),
        ({"num_layers": 0}, "model.num_layers=0 must be from 1 to"),
        ({"vocab_size": -5}, "model.vocab_size=-5 must be from 1 to"),
        ({"num_heads": 3}, "model.hidden_size=16 does not divide into model.num_heads=3"),
        ({"hidden_size": 6, "positions": "rope"}, "even head size; hidden_size / num_heads is 3"),
        ({"num_layers": 5, "num_layer_groups": 2}, "model.num_layers=5 does not divide into 2 groups of 1"),
        ({"num_layers": 3, "layers_per_group": 2}, "model.num_layers=3 does not divide into 1 groups of 2"),
        ({"global_attention_every": 2}, "needs model.local_window >= 1"),
        (
            {"global_attention_every": 2, "local_window": 1, "num_layer_groups": 1},
            "model.layers_per_group=1 does not divide into patterns of model.global_attention_every=2",
        ),
    ],
)
def test_configs_that_cannot_be_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **changes)


# ---------------------------------------------------------------------------------------------------------------------
# Dropout
# ---------------------------------------------------------------------------------------------------------------------


def test_without_a_key_nothing_is_dropped(run_of, ids):
    dropping = Run(dataclasses.replace(TINY, dropout=0.5, attention_dropout=0.5), run_of(TINY).params)
    np.testing.assert_allclose(dropping(ids), run_of(TINY)(ids), atol=1e-6)
    first, again, other = (dropping(ids, key=jax.random.split(jax.random.key(seed), len(ids))) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again, "the same key drops other elements")
    assert np.abs(first - other).max() > 0.01, "another key drops the same elements"


def test_attention_dropout_drops(run_of, ids):
    dropping = Run(dataclasses.replace(TINY, attention_dropout=0.5), run_of(TINY).params)
    assert np.abs(dropping(ids, key=jax.random.split(jax.random.key(0), len(ids))) - run_of(TINY)(ids)).max() > 0.01


def test_every_layer_drops_its_own_elements(run_of, ids):
    config = dataclasses.replace(
        TINY, hidden_size=64, num_layers=4, num_layer_groups=1, norm_position="pre", dropout=0.25
    )
    run = run_of(config)
    layers = jax.tree.map(jnp.zeros_like, run.params["encoder"]["layers"])
    layers["mlp"]["down"]["bias"] = jnp.ones_like(layers["mlp"]["down"]["bias"])  # a layer adds dropout(1)
    params = {**run.params, "encoder": {**run.params["encoder"], "layers": layers}}
    states = np.asarray(run.forward(params, ids, None, jax.random.split(jax.random.key(3), len(ids))).hidden_states)[
        :-1
    ]  # the last is normed
    added = np.round(np.diff(states, axis=0), 3)
    assert set(np.unique(added)) == {0.0, np.float32(1.333)}, "dropout does not scale by 1 / (1 - rate)"
    kept = (added > 0).reshape(3, -1)
    np.testing.assert_allclose(kept.mean(1), 0.75, atol=5 * (0.75 * 0.25 / kept.shape[1]) ** 0.5)
    for one, other in ((0, 1), (0, 2), (1, 2)):
        same = (kept[one] == kept[other]).mean()
        assert same < 0.75, f"layers {one} and {other} drop the same elements ({same:.2f} equal, 0.625 expected)"
    rows = kept.reshape(3, 2, -1)
    assert (rows[:, 0] == rows[:, 1]).mean() < 0.75, "the rows of a batch drop the same elements"


@pytest.mark.parametrize("name", VARIANTS)
def test_some_positions_alone_are_those_of_the_whole(name, run_of):
    run = run_of(VARIANTS[name])
    rng = np.random.default_rng(6)
    ids = rng.integers(0, 100, (3, LENGTH), dtype=np.int32)
    mask = (np.arange(LENGTH) < np.array([[LENGTH], [7], [4]])).astype(np.int32)
    positions = rng.integers(0, 4, (3, 5), dtype=np.int32)  # not sorted, some twice

    def alone(params, positions):
        return run.model.bind(params).encoder(ids, mask, positions_BxP=positions)

    def loss(params, positions, weights):
        return (alone(params, positions).last_hidden_state * weights).sum()

    def loss_of_whole(params, positions, weights):
        whole = run.model.bind(params).encoder(ids, mask).last_hidden_state
        return (whole[np.arange(3)[:, None], positions] * weights).sum()

    whole = run.forward(run.params, ids, mask, None)
    output = jax.jit(alone)(run.params, positions)
    np.testing.assert_allclose(
        output.last_hidden_state, whole.last_hidden_state[np.arange(3)[:, None], positions], atol=1e-5
    )
    if run.config.pooler:
        np.testing.assert_allclose(output.pooled, whole.pooled, atol=1e-5)
        nothing = jax.jit(alone)(run.params, positions[:, :0])
        np.testing.assert_allclose(nothing.pooled, whole.pooled, atol=1e-5)
    weights = rng.standard_normal((3, 5, 16), dtype=np.float32)
    gradients = [jax.jit(jax.grad(f))(run.params, positions, weights) for f in (loss, loss_of_whole)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), *gradients)


def test_a_mean_of_all_layers_is_that_of_the_hidden_states(random_params):
    config = EncoderConfig(
        vocab_size=20,
        hidden_size=16,
        num_layers=2,
        num_heads=2,
        intermediate_size=32,
        max_positions=16,
        scalar_mix=True,
    )
    model = Model.build(config, {})
    params = random_params(model)
    ids, mask = np.arange(16).reshape(2, 8) % 20, np.ones((2, 8), np.int32)
    out = jax.jit(lambda params: model.bind(params).encoder(ids, mask, all_hidden_states=True))(params)
    shares = np.exp(params["encoder"]["mix"]["weights"]) / np.exp(params["encoder"]["mix"]["weights"]).sum()
    expected = float(params["encoder"]["mix"]["size"][0]) * np.einsum("nbld,n->bld", out.hidden_states, shares)
    np.testing.assert_allclose(out.last_hidden_state, expected, atol=1e-5)
    positions = np.array([[3, 1], [0, 7]])
    some = jax.jit(lambda params: model.bind(params).encoder(ids, mask, positions_BxP=positions))(params)
    np.testing.assert_allclose(some.last_hidden_state, np.take_along_axis(expected, positions[..., None], 1), atol=1e-5)
    np.testing.assert_allclose(some.pooled, out.pooled, atol=1e-5)
