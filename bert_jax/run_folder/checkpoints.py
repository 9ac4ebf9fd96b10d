"""Checkpoints of a run: saved by Orbax in the background with checksums, restored from the latest undamaged one."""

import contextlib
import dataclasses
import errno
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax import traverse_util
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers as policies

from bert_jax.errors import UserError, listed, plain
from bert_jax.files import is_regular
from bert_jax.run_folder.default_checkpoint import sign
from bert_jax.train.step import State

logger = logging.getLogger(__name__)
# Orbax warns about every folder that is opened read-only.
logging.getLogger("absl").addFilter(lambda record: not str(record.msg).startswith("Given directory is read only"))
# Read errors that do not mean that the checkpoint is damaged: out of memory on host or device, no permission.
NOT_DAMAGE = (MemoryError, PermissionError, jax.errors.JaxRuntimeError, UserError)
FULL_DISK = [os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)]


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    every: int = 1000  # steps between checkpoints; one is always saved at the end of a run and when it is stopped
    keep_last: int = 2  # latest checkpoints that are kept
    keep_best: int = 1  # best checkpoints that are kept, by best_metric
    best_metric: str = "eval/loss"  # losses and errors are best when lowest, other scores when highest
    prefer_best: bool = False  # the best instead of the latest is the default checkpoint

    def __post_init__(self):
        for field in ("every", "keep_last", "keep_best"):
            if getattr(self, field) < 1:
                raise ValueError(f"checkpoint.{field}={getattr(self, field)} must be at least 1")
        if self.best_metric and not self.best_metric.startswith("eval/"):
            raise ValueError(f"checkpoint.best_metric={self.best_metric!r} must be a held-out score, eval/...")


class CheckpointStore:
    """The folder `checkpoints/` of a run; each checkpoint holds the state, its checksums and the resolved config."""

    def __init__(self, workdir: str | Path, config: CheckpointConfig | None = None, in_background: bool = True):
        """Opens the folder; with a config for writing, and then a missing one is created.

        Saving in the background needs memory on the host for a copy of the state.

        Raises:
          UserError: a folder to read does not exist, or the folder holds a pipe or device.
        """
        self.directory = Path(workdir).absolute() / "checkpoints"
        options: dict[str, Any] = {"read_only": True, "create": False, "save_interval_steps": 0}
        if config:
            best = policies.BestN(
                get_metric_fn=lambda metrics: sign(config.best_metric) * metrics[config.best_metric],
                n=config.keep_best,
                keep_checkpoints_without_metrics=False,
            )
            options = {
                "preservation_policy": policies.AnyPreservationPolicy([policies.LatestN(config.keep_last), best]),
                "enable_async_checkpointing": in_background,
            }
        elif not self.directory.is_dir():
            raise UserError(f"{workdir}: holds no checkpoints; use a run folder")
        for folder, _, names in os.walk(self.directory):  # a running job may delete some meanwhile
            for path in (Path(folder, name) for name in names):
                if path.exists() and not is_regular(path):  # Orbax would block on a pipe
                    raise UserError(f"{path}: not a regular file; remove it")
        self._config = config
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(**options),
            item_handlers={
                # Compressing weights takes time and another copy in memory, and gains little.
                "state": ocp.PyTreeCheckpointHandler(use_compression=False),
                "checksums": ocp.JsonCheckpointHandler(),
                "config": ocp.JsonCheckpointHandler(),
            },
        )

    def steps(self) -> list[int]:
        """Returns the steps of the complete checkpoints, oldest first."""
        return sorted(self._manager.all_steps())

    def structure(self, name: str, step: int | None = None) -> State:
        """Returns an entry of the state, such as "params", as a nested dict of jax.ShapeDtypeStruct.

        It is that of the checkpoint of `step` or, for None, of the latest whose structure can be read.

        Raises:
          UserError: the checkpoint does not exist, or is damaged.
        """
        problem = "the folder is empty"
        for candidate in reversed(self.steps()) if step is None else [step]:
            try:
                return self._structure(candidate)[name]
            except NOT_DAMAGE:
                raise
            except Exception as error:
                problem = f"the checkpoint of step {candidate} is damaged ({_reason(error)})"
        raise UserError(f"{self.directory}: no checkpoint to load: {problem}; restore the folder, or use another run")

    def _structure(self, step: int) -> State:
        tree = self._manager.item_metadata(step)["state"].tree
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree, is_leaf=lambda x: hasattr(x, "shape")
        )

    def check(self, step: int) -> None:
        """Reads all of a checkpoint into memory. Raises UserError if it does not exist or is damaged."""
        self.restore({}, step)  # whether its structure can be read
        self.restore(self._structure(step), step)

    def save(self, step: int, state: State, resolved_config: dict[str, Any], metrics: dict[str, float]) -> None:
        """Copies the state to the host and writes it, with the config, in the background.

        `metrics` are those of the evaluation at this step if it is the best so far, else empty.

        Raises:
          UserError: this or the previous save failed, e.g. on a full disk.
        """
        if step in self.steps():
            return
        assert self._config is not None
        scores = {name: float(value) for name, value in metrics.items()}
        args = ocp.args.Composite(
            state=ocp.args.PyTreeSave(state),
            checksums=ocp.args.JsonSave(checksums(state)),
            config=ocp.args.JsonSave(resolved_config),
        )
        with self._explain_failures(step):
            self._manager.save(step, args=args, metrics=scores if self._config.best_metric in scores else None)

    def wait(self) -> None:
        """Waits until everything is written. Raises UserError as `save`."""
        with self._explain_failures():
            self._manager.wait_until_finished()

    def restore(self, abstract: State, step: int | None = None) -> tuple[int, State]:
        """Returns the step and arrays of a checkpoint: of `step`, or of the latest that is undamaged.

        Later ones that are damaged are moved to `checkpoints_damaged/` with a warning, never deleted. Each process reads the
        shards of its own devices.

        Args:
          abstract: tree of jax.ShapeDtypeStruct, with shardings or, for numpy arrays, without; may be a part of the state.
          step: the checkpoint; None for the latest.

        Raises:
          UserError: the checkpoint does not exist or is damaged, or there is no undamaged one.
        """
        steps = self.steps()
        if step is not None and step not in steps:
            existing = listed(list(map(str, steps))) or "none"
            raise UserError(f"{self.directory}: no checkpoint of step {step}; there are {existing}")
        damaged = []
        for candidate in reversed(steps) if step is None else [step]:
            try:
                state = self._read(candidate, abstract)
            except NOT_DAMAGE:
                raise
            except Exception as error:
                if step is not None:
                    message = f"{self.directory}/{step}: damaged checkpoint ({_reason(error)}); use another"
                    raise UserError(message) from error
                logger.warning("checkpoint of step %d is damaged: %s", candidate, _reason(error))
                damaged.append(candidate)
                continue
            self._move_away(damaged)
            return candidate, state
        problem = f"all are damaged (steps {damaged})" if damaged else "the folder is empty"
        raise UserError(f"{self.directory}: no checkpoint to load: {problem}; restore the folder or start a new run")

    def _check_structure(self, step: int, abstract: State) -> None:
        """Raises UserError if the checkpoint has other arrays than `abstract`: it is not damaged, but of another model."""
        place, stored = f"{self.directory}/{step}", _by_path(self._structure(step))
        for path, array in _by_path(abstract).items():
            if path not in stored:
                remedy = "start another run with --config.init_from"
                raise UserError(f"{place}: lacks {path}, so training cannot be resumed; {remedy}")
            shape, dtype = stored[path].shape, stored[path].dtype
            if shape != array.shape:
                raise UserError(f"{place}: holds another model: {path} is {shape} there, {array.shape} here")
            if dtype != array.dtype:  # converted, it would not match its checksum
                raise UserError(f"{place}: {path} is {dtype} there, {array.dtype} here; start another run")

    def _read(self, step: int, abstract: State) -> State:
        self._check_structure(step, abstract)
        saved = self._manager.restore(step, args=ocp.args.Composite(checksums=ocp.args.JsonRestore()))["checksums"]
        if any(array.sharding is not None for array in jax.tree.leaves(abstract)):
            state = self._read_arrays(step, abstract)
        else:  # one array at a time, because Orbax needs twice the memory for what it reads
            flat = dict[tuple[str, ...], Any]()
            for path, array in traverse_util.flatten_dict(
                abstract
            ).items():  # or a list of arrays, of an optimizer's state
                flat |= traverse_util.flatten_dict(self._read_arrays(step, traverse_util.unflatten_dict({path: array})))
            state = traverse_util.unflatten_dict(flat)
        wrong = [path for path, value in checksums(state).items() if saved[path] != value]
        if wrong:
            raise ValueError(f"{len(wrong)} arrays differ from their checksums, e.g. {wrong[0]}")
        return state

    def _read_arrays(self, step: int, abstract: State) -> State:
        restore_args = ocp.checkpoint_utils.construct_restore_args(abstract)
        args = ocp.args.PyTreeRestore(abstract, restore_args=restore_args, partial_restore=True)
        return self._manager.restore(step, args=ocp.args.Composite(state=args))["state"]

    def _move_away(self, steps: list[int]) -> None:
        if not steps or self._config is None:
            return
        target = self.directory.parent / "checkpoints_damaged"
        if jax.process_index() == 0:
            target.mkdir(exist_ok=True)
            for step in steps:
                destination = target / f"{step}_{len(list(target.iterdir()))}"
                shutil.move(self.directory / str(step), destination)
                logger.warning("the damaged checkpoint of step %d is kept in %s", step, destination)
        multihost_utils.sync_global_devices("damaged checkpoints moved")
        self._manager.reload()

    @contextlib.contextmanager
    def _explain_failures(self, step: int | None = None) -> Iterator[None]:
        """Turns write errors into a UserError that says which checkpoint can be loaded."""
        try:
            yield
        except Exception as error:
            full = next((reason for reason in FULL_DISK if reason in str(error)), "")
            problem = f"checkpoint could not be written ({full or _reason(error)})"
            complete = [done for done in self.steps() if done != step and (self.directory / str(done)).is_dir()]
            last = (
                f"the last complete checkpoint is of step {complete[-1]}" if complete else "no checkpoint is complete"
            )
            remedy = "free some space" if full else "check the disk"
            raise UserError(f"{self.directory}: {problem}; {last}; {remedy} and start again") from error


def checksums(state: State) -> dict[str, int]:
    """Returns the sum of each array's bits, modulo 2^32, by path; it does not depend on the sharding.

    Orbax and TensorStore do not notice when stored numbers change.
    """
    return {path: int(jax.device_get(_bit_sum(array))) for path, array in _by_path(state).items()}


def flat_shapes(state: State) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each array, by path."""
    return {path: tuple(array.shape) for path, array in _by_path(state).items()}


def _by_path(state: State) -> dict[str, Any]:
    leaves = jax.tree.leaves_with_path(state)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): array for path, array in leaves}


_WORDS = {1: np.uint8, 2: np.uint16, 4: np.uint32}  # by item size


def _bit_sum(array: jax.Array | np.ndarray) -> jax.Array | np.ndarray:
    if isinstance(array, np.ndarray):
        return array.view(_WORDS[array.dtype.itemsize]).sum(dtype=np.uint32)
    if array.is_fully_addressable and all(device.platform == "cpu" for device in array.devices()):
        return _bit_sum(jax.device_get(array))  # without a compilation for each shape
    return _bit_sum_on_devices(array)


@jax.jit
def _bit_sum_on_devices(array: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(array, _WORDS[array.dtype.itemsize]).astype(jnp.uint32).sum()


def _reason(error: Exception) -> str:
    return plain(str(error), 200)
