"""Checkpoints of a run: saved by Orbax in the background, each with a checksum, restored from the newest that is sound."""

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

from bert_jax.errors import UserError, listed
from bert_jax.files import is_regular
from bert_jax.run_folder.default_checkpoint import sign

logger = logging.getLogger(__name__)
# Orbax warns of every folder that is opened to be read only, as a loaded encoder's is.
logging.getLogger("absl").addFilter(lambda record: not str(record.msg).startswith("Given directory is read only"))
State = dict[str, Any]  # nested dicts of arrays
# Errors in reading that say nothing of the checkpoint: no memory on the host or a device, no rights.
NOT_DAMAGE = (MemoryError, PermissionError, jax.errors.JaxRuntimeError, UserError)
FULL_DISK = [os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)]


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    every: int = 1000  # steps between checkpoints; there is always one at the end of a run and when it is stopped
    keep_last: int = 2
    keep_best: int = 1
    best_metric: str = "eval/loss"  # losses and errors are best when lowest, other scores when highest
    prefer_best: bool = False  # evaluate, predict and init_from take the best instead of the newest

    def __post_init__(self):
        for field in ("every", "keep_last", "keep_best"):
            if getattr(self, field) < 1:
                raise ValueError(f"checkpoint.{field}={getattr(self, field)} must be at least 1")
        if self.best_metric and not self.best_metric.startswith("eval/"):
            raise ValueError(f"checkpoint.best_metric={self.best_metric!r} must be a held-out score, eval/...")


class CheckpointStore:
    """The folder `checkpoints/` of a run. Each step holds the state, its checksums and the resolved config."""

    def __init__(self, workdir: str | Path, config: CheckpointConfig | None = None, in_background: bool = True):
        """Opens the folder, which is made if it is missing; without a config to read only.

        Saving in the background takes a copy of the state in the host's memory.

        Raises:
          UserError: no such folder, or a pipe or device in it.
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
            raise UserError(f"{workdir}: holds no checkpoints; name the folder of a run")
        for folder, _, names in os.walk(self.directory):  # a run that is going on may remove some meanwhile
            for path in (Path(folder, name) for name in names):
                if path.exists() and not is_regular(path):  # Orbax would wait for what a pipe gives
                    raise UserError(f"{path}: not a regular file; remove it")
        self._config = config
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(**options),
            item_handlers={
                # Weights hardly compress, and compressing them takes time and another copy in memory.
                "state": ocp.PyTreeCheckpointHandler(use_compression=False),
                "checksums": ocp.JsonCheckpointHandler(),
                "config": ocp.JsonCheckpointHandler(),
            },
        )

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, oldest first."""
        return sorted(self._manager.all_steps())

    def structure(self, name: str, step: int | None = None) -> State:
        """Returns shapes and types of an entry of the state, such as "params", as a nested dict of jax.ShapeDtypeStruct.

        Args:
          name: of the entry.
          step: the checkpoint, or None for the newest whose structure can be read.

        Raises:
          UserError: there is no such checkpoint, or it is damaged.
        """
        problem = "there is none"
        for candidate in reversed(self.steps()) if step is None else [step]:
            try:
                return self._structure(candidate)[name]
            except NOT_DAMAGE:
                raise
            except Exception as error:
                problem = f"the checkpoint of step {candidate} is damaged ({one_line(error)})"
        raise UserError(f"{self.directory}: no checkpoint to load: {problem}; restore the folder, or use another")

    def _structure(self, step: int) -> State:
        tree = self._manager.item_metadata(step)["state"].tree
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree, is_leaf=lambda x: hasattr(x, "shape")
        )

    def save(self, step: int, state: State, resolved_config: dict[str, Any], metrics: dict[str, float]) -> None:
        """Copies the state off the devices and writes it in the background.

        Args:
          step: steps done.
          state: nested dict of arrays.
          resolved_config: JSON-like, saved with the state.
          metrics: of the evaluation at this step, if there was one that was better than all before; the best are kept.

        Raises:
          UserError: this or the previous save failed, e.g. because the disk is full.
        """
        if step in self.steps():
            return
        assert self._config is not None
        known = {name: float(value) for name, value in metrics.items()}
        args = ocp.args.Composite(
            state=ocp.args.PyTreeSave(state),
            checksums=ocp.args.JsonSave(checksums(state)),
            config=ocp.args.JsonSave(resolved_config),
        )
        with self._failures_explained(step):
            self._manager.save(step, args=args, metrics=known if self._config.best_metric in known else None)

    def wait(self) -> None:
        """Returns when everything is written. Raises UserError as `save` does."""
        with self._failures_explained():
            self._manager.wait_until_finished()

    def restore(self, abstract: State, step: int | None = None) -> tuple[int, State]:
        """The arrays named in `abstract` of one checkpoint: of `step`, or of the newest that is sound.

        A newer one that is damaged is set aside in `checkpoints_damaged/` with a warning, never deleted.

        Args:
          abstract: tree of jax.ShapeDtypeStruct with shardings, or without them for numpy arrays; may be a part of the
            state that was saved.
          step: the checkpoint, or None for the newest.

        Returns:
          Its step and the arrays, each process's part straight onto its devices.

        Raises:
          UserError: no such checkpoint, no checkpoint at all, or none that is sound.
        """
        steps = self.steps()
        if step is not None:
            if step not in steps:
                raise UserError(
                    f"{self.directory}: no checkpoint of step {step}; there are {listed(list(map(str, steps))) or 'none'}"
                )
            try:
                return step, self._read(step, abstract)
            except NOT_DAMAGE:
                raise
            except Exception as error:
                raise UserError(
                    f"{self.directory}/{step}: damaged checkpoint ({one_line(error)}); use another"
                ) from error
        damaged = []
        for candidate in reversed(steps):
            try:
                state = self._read(candidate, abstract)
            except NOT_DAMAGE:
                raise
            except Exception as error:
                logger.warning("checkpoint of step %d is damaged: %s", candidate, one_line(error))
                damaged.append(candidate)
                continue
            self._set_aside(damaged)
            return candidate, state
        found = f"all are damaged (steps {damaged})" if damaged else "there is none"
        raise UserError(
            f"{self.directory}: no sound checkpoint to load, {found}; restore the folder or start a new run"
        )

    def _check_structure(self, step: int, abstract: State) -> None:
        """Raises UserError where the checkpoint has other arrays than are wanted: it is sound, but of another model."""
        structure = self._structure(step)
        stored, types = flat_shapes(structure), {path: array.dtype for path, array in _by_path(structure).items()}
        wanted = {path: array.dtype for path, array in _by_path(abstract).items()}
        for path, shape in flat_shapes(abstract).items():
            if path not in stored:
                raise UserError(
                    f"{self.directory}/{step}: holds no {path}, so training cannot go on from it; "
                    "begin another run with --config.init_from"
                )
            if stored[path] != shape:
                raise UserError(
                    f"{self.directory}/{step}: is of another model: {path} is {stored[path]} there, {shape} here"
                )
            if types[path] != wanted[path]:  # read as another dtype, it would not match its checksum
                raise UserError(
                    f"{self.directory}/{step}: {path} is {types[path]} there, {wanted[path]} here; begin another run"
                )

    def _read(self, step: int, abstract: State) -> State:
        self._check_structure(step, abstract)
        saved = self._manager.restore(step, args=ocp.args.Composite(checksums=ocp.args.JsonRestore()))["checksums"]
        if any(array.sharding is not None for array in jax.tree.leaves(abstract)):
            state = self._read_arrays(step, abstract)
        else:  # one after the other: in the host's memory Orbax holds what it reads twice
            flat = traverse_util.flatten_dict(abstract)
            parts = [self._read_arrays(step, traverse_util.unflatten_dict({path: flat[path]})) for path in flat]
            state = traverse_util.unflatten_dict(
                {path: array for part in parts for path, array in traverse_util.flatten_dict(part).items()}
            )
        wrong = [path for path, value in checksums(state).items() if saved[path] != value]
        if wrong:
            raise ValueError(f"{len(wrong)} arrays differ from their checksums, first {wrong[0]}")
        return state

    def _read_arrays(self, step: int, abstract: State) -> State:
        restore_args = ocp.checkpoint_utils.construct_restore_args(abstract)
        args = ocp.args.PyTreeRestore(abstract, restore_args=restore_args, partial_restore=True)
        return self._manager.restore(step, args=ocp.args.Composite(state=args))["state"]

    def _set_aside(self, steps: list[int]) -> None:
        if not steps or self._config is None:
            return
        target = self.directory.parent / "checkpoints_damaged"
        if jax.process_index() == 0:
            target.mkdir(exist_ok=True)
            for step in steps:
                place = target / f"{step}_{len(list(target.iterdir()))}"
                shutil.move(self.directory / str(step), place)
                logger.warning("the damaged checkpoint of step %d is kept in %s", step, place)
        multihost_utils.sync_global_devices("damaged checkpoints set aside")
        self._manager.reload()

    @contextlib.contextmanager
    def _failures_explained(self, step: int | None = None) -> Iterator[None]:
        """Turns a failure to write into a UserError that says what can still be loaded."""
        try:
            yield
        except Exception as error:
            text = next((reason for reason in FULL_DISK if reason in str(error)), None)
            text, remedy = (text, "free some space") if text else (one_line(error), "see to the disk")
            there = [known for known in self.steps() if known != step and (self.directory / str(known)).is_dir()]
            sound = max(there, default=None)
            last = "no checkpoint is whole yet" if sound is None else f"the checkpoint of step {sound} is whole"
            raise UserError(
                f"{self.directory}: checkpoint could not be written ({text}); {last}; {remedy} and start again"
            ) from error


def checksums(state: State) -> dict[str, int]:
    """The sum of each array's bits, modulo 2^32, by path: it does not depend on how the array is split over devices.

    Orbax and TensorStore do not notice when stored numbers change.
    """
    return {path: int(jax.device_get(_bit_sum(array))) for path, array in _by_path(state).items()}


def flat_shapes(state: State) -> dict[str, tuple[int, ...]]:
    """The shape of each array, by path."""
    return {path: tuple(array.shape) for path, array in _by_path(state).items()}


def _by_path(state: State) -> dict[str, Any]:
    leaves = jax.tree.leaves_with_path(state)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): array for path, array in leaves}


_WORDS = {1: np.uint8, 2: np.uint16, 4: np.uint32}  # by the bytes of a number


def _bit_sum(array: jax.Array | np.ndarray) -> jax.Array | np.ndarray:
    if isinstance(array, np.ndarray):
        return array.view(_WORDS[array.dtype.itemsize]).sum(dtype=np.uint32)
    if array.is_fully_addressable and all(device.platform == "cpu" for device in array.devices()):
        return _bit_sum(jax.device_get(array))  # compiles no program for each shape
    return _bit_sum_on_devices(array)


@jax.jit
def _bit_sum_on_devices(array: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(array, _WORDS[array.dtype.itemsize]).astype(jnp.uint32).sum()


def one_line(error: BaseException) -> str:
    """The start of an error's message, on one line."""
    return " ".join(str(error).split())[:200]
