"""Checkpoints: what comes back, what is kept, and what happens when the disk or a file fails."""

import contextlib
import logging
import resource
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from bert_jax.errors import UserError
from bert_jax.parallel.mesh import ParallelConfig, make_mesh
from bert_jax.run_folder.checkpoints import CheckpointConfig, CheckpointStore

CONFIG = {"model": {"hidden_size": 32}}


def state(seed: int, mesh=None):
    """Some arrays of the types that states have; noise, so that they do not shrink on disk."""
    mesh = mesh or make_mesh(ParallelConfig(data=-1))
    rng = np.random.default_rng(seed)

    def put(array, *axes):
        return jax.device_put(array, NamedSharding(mesh, PartitionSpec(*axes)))

    params = {
        "kernel": put(rng.normal(size=(64, 32)).astype(np.float32), "fsdp"),
        "bias": put(rng.normal(size=32).astype(np.float32)),
    }
    mu = {"encoder/kernel": put(jnp.asarray(rng.normal(size=(64, 32)), jnp.bfloat16), "fsdp")}
    return {"step": put(np.int32(seed)), "params": {"encoder": params}, "opt_state": mu}


def abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def assert_equal(left, right):
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b), strict=True), left, right)


@pytest.fixture
def store(tmp_path):
    """A run with checkpoints of steps 1 and 2."""
    store = CheckpointStore(tmp_path, CheckpointConfig(keep_last=3))
    for step in (1, 2):
        store.save(step, state(step), CONFIG, {})
    store.wait()
    return store


def array_files(store: CheckpointStore, step: int) -> list[Path]:
    """The files that hold the arrays of a checkpoint, the largest first."""
    return sorted((store.directory / str(step) / "state" / "d").iterdir(), key=lambda path: -path.stat().st_size)


def test_round_trip_keeps_every_bit_and_every_sharding(tmp_path):
    mesh = make_mesh(ParallelConfig(data=2, fsdp=4))
    saved = state(7, mesh)
    store = CheckpointStore(tmp_path, CheckpointConfig())
    store.save(7, saved, CONFIG, {})
    store.wait()
    step, restored = CheckpointStore(tmp_path).restore(abstract(saved))
    assert step == 7
    assert_equal(restored, saved)
    assert jax.tree.map(lambda x: x.sharding, restored) == jax.tree.map(lambda x: x.sharding, saved)


def test_restores_onto_another_mesh(store):
    mesh = make_mesh(ParallelConfig(data=1, fsdp=8))
    wanted = abstract(state(0, mesh))
    _, restored = store.restore(wanted)
    assert_equal(restored, state(2))
    assert restored["params"]["encoder"]["kernel"].sharding == wanted["params"]["encoder"]["kernel"].sharding
    assert restored["params"]["encoder"]["kernel"].addressable_shards[0].data.shape == (8, 32)


def test_a_part_of_the_state_can_be_restored(store):
    wanted = {"params": abstract(state(0))["params"]}
    assert_equal(store.restore(wanted)[1], {"params": state(2)["params"]})
    assert_equal(store.restore(wanted, step=1)[1], {"params": state(1)["params"]})


def flip_a_byte(store: CheckpointStore) -> None:
    """In the middle of the array data, where neither Orbax nor TensorStore look."""
    path = array_files(store, 2)[0]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


def truncate(store: CheckpointStore) -> None:
    path = array_files(store, 2)[0]
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def delete_a_file(store: CheckpointStore) -> None:
    array_files(store, 2)[0].unlink()


def delete_the_checksums(store: CheckpointStore) -> None:
    shutil.rmtree(store.directory / "2" / "checksums")


def delete_the_arrays(store: CheckpointStore) -> None:
    shutil.rmtree(store.directory / "2" / "state")


DAMAGES = [flip_a_byte, truncate, delete_a_file, delete_the_checksums, delete_the_arrays]


@pytest.mark.parametrize("damage", DAMAGES)
def test_falls_back_from_a_damaged_checkpoint_and_keeps_it(store, tmp_path, damage, caplog):
    damage(store)
    left = sorted(path.name for path in (store.directory / "2").rglob("*"))
    caplog.set_level(logging.WARNING, "bert_jax")
    resumed = CheckpointStore(tmp_path, CheckpointConfig(keep_last=3))
    step, restored = resumed.restore(abstract(state(0)))
    assert step == 1 and resumed.steps() == [1]
    assert_equal(restored, state(1))
    (kept,) = (tmp_path / "checkpoints_damaged").iterdir()
    assert sorted(path.name for path in kept.rglob("*")) == left
    warnings = [record.getMessage() for record in caplog.records if record.name.startswith("bert_jax")]
    assert warnings[0].startswith("checkpoint of step 2 is damaged: ")
    assert warnings[1] == f"the damaged checkpoint of step 2 is kept in {kept}"
    assert all("\n" not in warning for warning in warnings)
    resumed.save(2, state(2), CONFIG, {})  # its number is free again
    resumed.wait()
    assert_equal(CheckpointStore(tmp_path).restore(abstract(state(0)))[1], state(2))


def test_a_reader_leaves_damage_where_it_is(store, tmp_path):
    flip_a_byte(store)
    assert CheckpointStore(tmp_path).restore(abstract(state(0)))[0] == 1
    assert CheckpointStore(tmp_path).steps() == [1, 2] and not (tmp_path / "checkpoints_damaged").exists()


def test_damage_of_the_checkpoint_asked_for_is_an_error(store):
    flip_a_byte(store)
    with pytest.raises(UserError, match=r"/2: damaged checkpoint .* use another$"):
        store.restore(abstract(state(0)), step=2)


@pytest.mark.parametrize("error", [MemoryError("no room"), PermissionError("not yours")])
def test_what_is_no_damage_is_not_set_aside(store, tmp_path, monkeypatch, error):
    def fail(*arguments, **more):
        raise error

    monkeypatch.setattr(store._manager, "restore", fail)
    for step in (None, 2):
        with pytest.raises(type(error)):
            store.restore(abstract(state(0)), step)
    assert store.steps() == [1, 2] and not (tmp_path / "checkpoints_damaged").exists()


def test_arrays_of_another_type_are_no_damage(store, tmp_path):
    wanted = abstract(state(0))
    wanted["opt_state"]["encoder/kernel"] = wanted["opt_state"]["encoder/kernel"].update(dtype=jnp.float32)
    with pytest.raises(UserError, match=r"/2: opt_state/encoder/kernel is bfloat16 there, float32 here; start another"):
        store.restore(wanted)
    assert store.steps() == [1, 2] and not (tmp_path / "checkpoints_damaged").exists()


def test_all_damaged(store, tmp_path):
    for step in ("1", "2"):
        shutil.rmtree(store.directory / step / "state")
    with pytest.raises(UserError, match=r"no checkpoint to load: all are damaged \(steps \[2, 1\]\)"):
        store.restore(abstract(state(0)))
    assert not (tmp_path / "checkpoints_damaged").exists()


def test_none_there(tmp_path, store):
    with pytest.raises(UserError, match=r"no checkpoint of step 9; there are 1, 2"):
        store.restore(abstract(state(0)), step=9)
    with pytest.raises(UserError, match="holds no checkpoints; use a run folder"):
        CheckpointStore(tmp_path / "other")


def test_a_half_written_checkpoint_is_ignored(store, tmp_path):
    """What is there while Orbax writes, and so when the process is killed then."""
    shutil.copytree(store.directory / "2", store.directory / "3.orbax-checkpoint-tmp")
    resumed = CheckpointStore(tmp_path, CheckpointConfig())
    assert resumed.steps() == [1, 2]
    assert resumed.restore(abstract(state(0)))[0] == 2
    resumed.save(3, state(3), CONFIG, {})
    resumed.wait()
    assert_equal(CheckpointStore(tmp_path).restore(abstract(state(0)))[1], state(3))


@pytest.mark.parametrize(("metric", "kept"), [("eval/loss", [2, 5, 6]), ("eval/f1", [3, 5, 6])])
def test_keeps_the_last_and_the_best(tmp_path, metric, kept):
    config = CheckpointConfig(keep_last=2, keep_best=1, best_metric=metric)
    store = CheckpointStore(tmp_path, config)
    values = {1: 4.0, 2: 1.0, 3: 9.0, 4: 5.0}  # steps 5 and 6 are saved without an evaluation
    for step in range(1, 7):
        store.save(step, state(step), CONFIG, {metric: values[step]} if step in values else {})
    store.wait()
    assert CheckpointStore(tmp_path).steps() == kept


# ----------------------------------------------------------------------------------------------------------------------
# A full disk: the operating system refuses to let any file grow beyond a limit
# ----------------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def files_limited_to(size: int):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_full_disk_leaves_a_folder_that_loads(store, tmp_path):
    with files_limited_to(3000), pytest.raises(UserError) as raised:
        store.save(3, state(3), CONFIG, {})
        store.wait()
    message = str(raised.value)
    assert "checkpoint could not be written" in message and "the last complete checkpoint is of step 2" in message
    assert "\n" not in message
    resumed = CheckpointStore(tmp_path, CheckpointConfig(keep_last=3))
    assert resumed.steps() == [1, 2]
    assert_equal(resumed.restore(abstract(state(0)))[1], state(2))
    resumed.save(3, state(3), CONFIG, {})  # there is room again
    resumed.wait()
    assert_equal(CheckpointStore(tmp_path).restore(abstract(state(0)))[1], state(3))


def test_full_disk_at_the_first_checkpoint(tmp_path):
    store = CheckpointStore(tmp_path, CheckpointConfig())
    with files_limited_to(3000), pytest.raises(UserError, match="no checkpoint is complete"):
        store.save(3, state(3), CONFIG, {})
        store.wait()
    assert CheckpointStore(tmp_path, CheckpointConfig()).steps() == []
