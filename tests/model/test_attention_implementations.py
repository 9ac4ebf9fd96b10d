"""Every implementation of attention equals the reference, forward and in gradients, and keeps segments apart."""

import dataclasses
import json
import logging
import shutil
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AbstractDevice, AbstractMesh, NamedSharding, PartitionSpec

import bert_jax
from bert_jax.errors import UserError
from bert_jax.model.attention import chunked, cudnn, plain, splash
from bert_jax.model.attention.attend import (
    IMPLEMENTATIONS,
    PREFERENCES,
    attend,
    check_attention,
    choose,
    chosen_for,
    log_choice,
)
from bert_jax.model.attention.contract import Request, Visibility
from bert_jax.model.attention.layer import SelfAttention
from bert_jax.model.config import CHOICES, EncoderConfig
from bert_jax.parallel.mesh import MESH_AXES, ParallelConfig, make_mesh, sum_over_copies

BATCH, LENGTH, HEADS, SIZE = 3, 29, 2, 8
SOME = 7  # queries that are some of the tokens
BLOCKS = {"block": 8, "local_block": 4}  # neither divides the length
XLA = {"plain": plain.attend, "chunked": partial(chunked.attend, **BLOCKS)}
COMPUTE = XLA | {"splash": partial(splash.attend, interpret=jax.default_backend() != "tpu"), "cudnn": cudnn.attend}


def visibility_of(kind: str, numbers: np.ndarray, positions: np.ndarray | None, window: int | None) -> Visibility:
    """Who sees whom; the numbers of the tokens' examples mean padding where they are 0, whatever the kind."""
    values = {
        "all": {},
        "lengths": {"lengths_B": (numbers > 0).sum(axis=1)},
        "mask": {"attention_mask_BxK": (numbers > 0).astype(np.int32)},
        "segments": {"segment_ids_BxK": numbers},
    }
    return Visibility(**values[kind], positions_BxQ=positions, window=window)


@cache
def output_and_gradients(name: str, kind: str, window: int | None, some: bool, rate: float = 0.0):
    """A compiled function (q, k, v, numbers, positions, weights, key) -> output and gradients of its weighted sum."""

    def compute(q, k, v, numbers, positions, weights, key):
        def total(q, k, v):
            visibility = visibility_of(kind, numbers, positions if some else None, window)
            out = COMPUTE[name](q, k, v, visibility, rate, key)
            return (out.astype(jnp.float32) * weights).sum(), out

        gradients, out = jax.grad(total, (0, 1, 2), has_aux=True)(q, k, v)
        return out, *gradients

    return jax.jit(compute)


def arrays(seed: int, some: bool, dtype: str = "float32"):
    """Queries, keys and values, the tokens' examples, positions, and weights that are 0 for padded queries.

    Of the rows one is all padding, and one has segments of one token.
    """
    rng = np.random.default_rng(seed)
    numbers = np.zeros((BATCH, LENGTH), np.int32)
    end = int(rng.integers(1, LENGTH + 1))
    numbers[0, :end] = np.sort(rng.integers(1, 5, end))
    numbers[1, : LENGTH - 3] = np.arange(LENGTH - 3) + 1
    positions = rng.integers(0, LENGTH, (BATCH, SOME), dtype=np.int32)
    num_queries = SOME if some else LENGTH
    q = rng.standard_normal((BATCH, num_queries, HEADS, SIZE), dtype=np.float32)
    k, v = rng.standard_normal((2, BATCH, LENGTH, HEADS, SIZE), dtype=np.float32)
    is_token = np.take_along_axis(numbers, positions, axis=1) > 0 if some else numbers > 0
    weights = rng.standard_normal(q.shape, dtype=np.float32) * is_token[:, :, None, None]
    return *(jnp.asarray(x, dtype) for x in (q, k, v)), numbers, positions, weights, is_token


CASES = [  # kind, window, some of the tokens as queries, dtype; each is compiled, while the values vary
    ("all", None, False, "float32"),
    ("all", 2, False, "float32"),
    ("lengths", None, False, "float32"),
    ("lengths", 7, False, "float32"),
    ("mask", 3, True, "float32"),
    ("mask", 1, False, "float32"),
    ("segments", None, False, "float32"),
    ("segments", None, True, "float32"),
    ("segments", 0, False, "float32"),
    ("segments", 4, False, "float32"),
    ("segments", LENGTH, False, "float32"),
    ("segments", None, False, "bfloat16"),
    ("segments", 4, False, "bfloat16"),
]


def check_equals_plain(name: str, kind: str, window: int | None, some: bool, dtype: str, seed: int) -> None:
    """Compares output and gradients of an implementation with those of `plain`, where tokens are queries."""
    *inputs, is_token = arrays(seed, some, dtype)
    (expected, *of_plain), (out, *gradients) = (
        [np.asarray(x, np.float32) for x in output_and_gradients(each, kind, window, some)(*inputs, None)]
        for each in ("plain", name)
    )
    is_read = np.ones_like(is_token) if kind == "all" else is_token
    tolerance = {"atol": 1e-5} if dtype == "float32" else {"atol": 0.05, "rtol": 0.05}
    np.testing.assert_allclose(out[is_read], expected[is_read], **tolerance)
    for gradient, expected_gradient in zip(gradients, of_plain, strict=True):
        np.testing.assert_allclose(gradient, expected_gradient, **tolerance)
    assert np.isfinite(out).all(), "padded queries must be finite, too"


@pytest.mark.parametrize("kind, window, some, dtype", CASES)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_chunked_equals_plain(kind, window, some, dtype, seed):
    check_equals_plain("chunked", kind, window, some, dtype, seed)


@pytest.mark.parametrize("kind, window, some, dtype", [case for case in CASES if case[1] is None or not case[2]])
@settings(max_examples=2, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_splash_equals_plain(kind, window, some, dtype, seed):
    """On a TPU the kernel itself, elsewhere interpreted."""
    check_equals_plain("splash", kind, window, some, dtype, seed)


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="cuDNN needs a GPU")
@pytest.mark.parametrize("some", [False, True])
@pytest.mark.parametrize("kind", ["all", "lengths"])
@settings(max_examples=4, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_cudnn_equals_plain(kind, some, seed):
    check_equals_plain("cudnn", kind, None, some, "bfloat16", seed)


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("name", XLA)
def test_attention_dropout_is_that_of_its_share_in_both_passes(name, window):
    """With values that are the identity, the output is the weights; the gradient of the values sums the very same ones."""
    rate = 0.25
    q = k = jnp.zeros((1, LENGTH, HEADS, LENGTH))
    v = jnp.broadcast_to(jnp.eye(LENGTH)[None, :, None], (1, LENGTH, HEADS, LENGTH))
    visibility = Visibility(window=window)
    keys = jax.random.split(jax.random.key(3), (40, len(q)))

    @jax.jit
    def run(key):
        out, pull = jax.vjp(lambda v: COMPUTE[name](q, k, v, visibility, rate, key), v)
        return out, pull(jnp.ones_like(out))[0]

    outs, gradients = (np.stack(x) for x in zip(*map(run, keys), strict=True))
    weights = outs[:, 0].swapaxes(1, 2)  # [draws, H, Q, K]
    np.testing.assert_allclose(gradients[:, 0, ..., 0], outs[:, 0].sum(axis=1).swapaxes(1, 2), atol=1e-5)
    places = np.arange(LENGTH)
    is_seen = np.abs(places[:, None] - places) <= (LENGTH if window is None else window)
    whole = np.broadcast_to(is_seen / is_seen.sum(axis=1, keepdims=True), weights.shape)
    assert (weights[:, :, ~is_seen] == 0).all()
    kept = weights[:, :, is_seen] > 0
    np.testing.assert_allclose(weights[weights > 0], whole[weights > 0] / (1 - rate), rtol=1e-5)
    assert abs(kept.mean() - (1 - rate)) < 4 * (rate * (1 - rate) / kept.size) ** 0.5
    assert kept.mean(axis=0).min() > 0 and kept.mean(axis=0).max() < 1, "some weights are never or always dropped"
    by_block = weights[0, 0, :8][:, :8], weights[0, 0, 8:16][:, 8:16]
    assert (by_block[0] > 0).tolist() != (by_block[1] > 0).tolist(), "blocks drop the same weights"


@pytest.mark.parametrize("window", [None, 6])
@pytest.mark.parametrize("name", [*XLA, "splash"])
def test_no_segment_sees_another(name, window):
    """cuDNN's attention refuses segments, see below."""
    q, k, v, numbers, positions, weights, _ = arrays(1, False)
    numbers = np.repeat([[1, 2, 3, 0]], (7, 9, 8, 5), axis=1).repeat(BATCH, axis=0).astype(np.int32)
    is_second = (numbers == 2)[:, :, None, None]

    def run(change):
        changed = [jnp.where(is_second, x + change, x) for x in (q, k, v)]
        return np.asarray(
            output_and_gradients(name, "segments", window, False)(*changed, numbers, positions, weights, None)[0]
        )

    before, after = run(0.0), run(1.0)
    others = numbers[0] != 2
    np.testing.assert_array_equal(before[:, others], after[:, others])
    assert np.abs(before[:, ~others] - after[:, ~others]).mean() > 0.1


@pytest.mark.parametrize("some", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_cudnn_gets_no_mask(padded, some, monkeypatch):
    """The program for GPUs has cuDNN's attention in both passes, and no array over queries and keys."""
    from jax._src.cudnn import fused_attention_stablehlo

    # Lowered on CPU devices: newer versions of jax do not lower cuDNN's attention for devices that are only described.
    monkeypatch.setattr("bert_jax.model.attention.attend.platform", lambda: "gpu")
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)  # where none is installed
    # Copies of the model are mapped over, as where they accumulate microbatches.
    copies, rows, length, num_queries = 2, 3, 96, 48 if some else 96
    q, k = (jax.ShapeDtypeStruct((copies, rows, size, 4, 64), jnp.bfloat16) for size in (num_queries, length))
    lengths = jax.ShapeDtypeStruct((copies, rows), jnp.int32)
    positions = jax.ShapeDtypeStruct((copies, rows, num_queries), jnp.int32)

    def total(q, k, v, weights, lengths, positions):
        visibility = Visibility(lengths_B=lengths if padded else None, positions_BxQ=positions if some else None)
        return (attend(q, k, v, visibility, name="cudnn") * weights).astype(jnp.float32).sum()

    gradients = jax.vmap(jax.grad(total, (0, 1, 2)))
    traced = jax.jit(gradients).trace(q, k, k, q, lengths, positions)
    program = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert "__cudnn$fmhaSoftmax" in program and "__cudnn$fmhaSoftmaxBackward" in program
    assert f"x{num_queries}x{length}x" not in program
    assert ("PADDING" in program) == padded


# ---------------------------------------------------------------------------------------------------------------------
# The choice
# ---------------------------------------------------------------------------------------------------------------------


def described_mesh(platform: str) -> AbstractMesh:
    return AbstractMesh((1, 1, 1), MESH_AXES, abstract_device=AbstractDevice(platform, 1, platform))


LONG = Request(platform="cpu", dtype="bfloat16", num_queries=8192, length=8192, head_size=64)
SHORT = dataclasses.replace(LONG, num_queries=128, length=128)


@pytest.mark.parametrize(
    "request_, changes, chosen",
    [
        (SHORT, {}, "plain"),
        (LONG, {}, "chunked"),
        (SHORT, {"platform": "tpu"}, "plain"),
        (LONG, {"platform": "tpu"}, "splash"),
        (LONG, {"platform": "tpu", "has_segments": True, "window": 64}, "splash"),
        (LONG, {"platform": "tpu", "has_dropout": True}, "chunked"),
        (LONG, {"platform": "tpu", "window": 64, "has_positions": True}, "chunked"),
        (SHORT, {"platform": "gpu"}, "cudnn"),
        (LONG, {"platform": "gpu", "has_positions": True, "num_queries": 2458}, "cudnn"),
        *((LONG, {"platform": "gpu", option: True}, "chunked") for option in ("has_segments", "has_mask", "has_dropout")),
        (LONG, {"platform": "gpu", "window": 64}, "chunked"),
        (LONG, {"platform": "gpu", "dtype": "float32"}, "chunked"),
        (LONG, {"platform": "gpu", "head_size": 36}, "chunked"),
    ],
    ids=str,
)  # fmt: skip
def test_auto_chooses(request_, changes, chosen, caplog):
    caplog.set_level(logging.INFO)
    log_choice.cache_clear()
    request_ = dataclasses.replace(request_, **changes)
    name, reasons = choose("auto", request_)
    assert name == chosen
    for _ in range(2):
        log_choice(name, request_, reasons)
    (line,) = caplog.messages  # once
    assert line.startswith(f"attention: {chosen} for ") and f"length {request_.length}" in line
    before = [preference.name for preference in PREFERENCES[request_.platform]]
    before = before[: before.index(chosen)] if chosen in before else before
    assert all(
        f"{name} does not support" in line or f"{name} needs" in line or f"{name} is for lengths" in line
        for name in before
    ), line


def test_the_table_has_the_names_of_the_option():
    assert CHOICES["attention"] == ("auto", *IMPLEMENTATIONS)
    assert all(module.unsupported(LONG) is None for module in (plain, chunked))
    assert all(module.unsupported(LONG) for module in (cudnn, splash)), "kernels run on CPUs"


BASE = EncoderConfig(attention_dropout=0.0, dtype="bfloat16")


@pytest.mark.parametrize(
    "platform, changes, segments, message",
    [
        ("cpu", {"attention": "cudnn"}, False, "cudnn needs a GPU, not a CPU"),
        ("gpu", {"attention": "splash"}, False, "splash needs a TPU, not a GPU"),
        ("gpu", {"attention": "cudnn", "attention_dropout": 0.1}, False, "does not support dropout"),
        ("gpu", {"attention": "cudnn", "dtype": "float32"}, False, "not float32"),
        (
            "gpu",
            {"attention": "cudnn", "global_attention_every": 3, "local_window": 64},
            False,
            "does not support windows",
        ),
        ("gpu", {"attention": "cudnn"}, True, "does not support rows of several examples"),
        ("gpu", {"attention": "cudnn", "num_heads": 4}, False, "up to 128, not 192"),
        ("tpu", {"attention": "splash", "attention_dropout": 0.1}, False, "does not support dropout"),
    ],
)
def test_what_an_implementation_cannot_do_is_refused(platform, changes, segments, message):
    config = dataclasses.replace(BASE, **changes)
    with jax.sharding.use_abstract_mesh(described_mesh(platform)), pytest.raises(UserError) as raised:
        check_attention(config, 512, segments)
    assert message in str(raised.value)
    assert "set --config.model.attention to auto, plain" in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("platform, name", [("cpu", "chunked"), ("gpu", "cudnn"), ("tpu", "splash")])
def test_only_plain_attends_to_one_side(platform, name):
    config = dataclasses.replace(BASE, attention_direction="left", attention=name)
    with jax.sharding.use_abstract_mesh(described_mesh(platform)):
        with pytest.raises(UserError, match=r"set --config\.model\.attention to auto or plain$"):
            check_attention(config, 512)
        chosen = chosen_for(dataclasses.replace(config, attention="auto"), 8192, platform)
    assert chosen == {"global": "plain"}


@pytest.mark.parametrize("platform, name", [("cpu", "chunked"), ("gpu", "cudnn"), ("tpu", "splash"), ("tpu", "auto")])
def test_what_an_implementation_can_do_is_not(platform, name):
    with jax.sharding.use_abstract_mesh(described_mesh(platform)):
        check_attention(dataclasses.replace(BASE, attention=name), 512)


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match=r"model\.attention='flash' is not one of auto, plain, chunked, cudnn, splash"):
        EncoderConfig(attention="flash")


# ---------------------------------------------------------------------------------------------------------------------
# In a layer
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [None, 2])
def test_a_layer_with_rotary_positions_is_the_same_by_chunks(window):
    """Rows of several examples, longer than the default blocks."""
    config = EncoderConfig(hidden_size=16, num_heads=2, attention_dropout=0.0, positions="rope")
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 200, 16), dtype=np.float32)
    segments = np.repeat([[1, 2, 0]], (50, 141, 9), axis=1).repeat(2, axis=0)
    weights = rng.standard_normal(x.shape, dtype=np.float32) * (segments > 0)[:, :, None]

    def run(name):
        layer = SelfAttention(dataclasses.replace(config, attention=name), nnx.Rngs(0))

        def total(x):
            attended = layer(x, Visibility(segment_ids_BxK=segments, window=window), None)
            return (attended * weights).sum(), attended

        return jax.jit(jax.grad(total, has_aux=True))(x)

    (of_plain, expected), (of_chunked, attended) = run("plain"), run("chunked")
    np.testing.assert_allclose(attended[:, :191], expected[:, :191], atol=1e-5)
    np.testing.assert_allclose(of_chunked, of_plain, atol=1e-5)
    assert np.abs(of_plain).max() > 1e-3


def test_a_run_of_another_platform_is_loaded(tiny_bert, tmp_path):
    """`bert_jax.load` takes masks, on any machine, whatever computed the attention of the training."""
    folder = shutil.copytree(tiny_bert, tmp_path / "run")
    config = json.loads((folder / "config.json").read_text())
    config["model"]["attention"] = "cudnn"
    (folder / "config.json").write_text(json.dumps(config))
    expected, vectors = (bert_jax.load(path).encode(["a river"]) for path in (tiny_bert, folder))
    np.testing.assert_array_equal(vectors, expected)


def layer_program(length: int, window: int | None, name: str):
    x = jax.ShapeDtypeStruct((1, length, 2, 16), jnp.float32)

    def total(q, k, v):
        return attend(q, k, v, Visibility(window=window), name=name).sum()

    return jax.jit(jax.grad(total, (0, 1, 2))).lower(x, x, x).compile()


def test_operations_of_local_layers_and_memory_grow_with_the_length():
    operations = {length: layer_program(length, 64, "chunked").cost_analysis()["flops"] for length in (512, 1024, 2048)}
    assert operations[2048] / operations[1024] < 2.05 and operations[1024] / operations[512] < 2.05, operations
    memory = {n: layer_program(n, None, "chunked").memory_analysis().temp_size_in_bytes for n in (1024, 2048)}
    assert memory[2048] < 2.1 * memory[1024], memory
    assert memory[2048] < layer_program(2048, None, "plain").memory_analysis().temp_size_in_bytes / 8


@pytest.mark.parametrize("by_copies", [False, True])
def test_splash_is_compiled_for_several_tpus(by_copies, libtpu):
    """The kernel runs on each device's rows and heads, with windows and segments, in both passes."""
    from jax.experimental import topologies

    devices = list(topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices)
    mesh = make_mesh(ParallelConfig(data=2, tensor=2), devices)
    rows = NamedSharding(mesh, PartitionSpec(None, ("data", "fsdp")))
    x = jax.ShapeDtypeStruct((1, 4, 1000, 4, 64), jnp.bfloat16, sharding=rows)

    def total(q, k, v, segments):
        return attend(q, k, v, Visibility(segment_ids_BxK=segments, window=64)).astype(jnp.float32).sum()

    def gradients(rows):
        return jax.grad(total, (0, 1, 2))(*(array[0] for array in rows))

    with jax.set_mesh(mesh):
        segments = jax.ShapeDtypeStruct((1, 4, 1000), jnp.int32, sharding=rows)
        function = sum_over_copies(gradients) if by_copies else gradients
        compiled = jax.jit(function).lower((x, x, x, segments)).compile()
    text = compiled.as_text()
    assert all(f"splash_mha_{phase}" in text for phase in ("fwd", "dq", "dkv")), "the kernel is not used"
    assert compiled.memory_analysis().temp_size_in_bytes < 2 * 2 * 1000 * 1000 * 4, "a device holds scores"
