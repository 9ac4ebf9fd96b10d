"""Resuming the run that a folder holds: options that must not change, and what other changes mean for its examples."""

import contextlib
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bert_jax.data.pretraining.stream import STREAM_VERSION
from bert_jax.errors import UserError, listed
from bert_jax.files import same_path
from bert_jax.lock import locked
from bert_jax.parallel import hosts
from bert_jax.run_folder import folder as run_folder
from bert_jax.run_folder.folder import NOT_STRUCTURE, flattened

logger = logging.getLogger(__name__)

# Options that must not change, in addition to the structure of the model.
STRUCTURE = {
    *("task", "objectives", "problem", "data.name", "optimizer.name", "optimizer.trainable"),
    *("init_from", "from_scratch", "reinit_layers"),  # they have had their effect
}
_EPOCH_CHANGES = "in the epoch of step {step} some examples are repeated and some skipped"
MEANING = {
    "train.accumulation_steps": "the examples stay the same, dropout masks differ",
    "train.seed": f"examples come in another order: {_EPOCH_CHANGES}",
    "data.sequence_length": f"texts are cut into other examples: {_EPOCH_CHANGES}",
    "phases": f"the shapes of batches and the numbers of their examples follow the new phases: {_EPOCH_CHANGES}",
    "data.corpus": "training continues at the same example number of that corpus",
    "data.train": f"examples come from that file: {_EPOCH_CHANGES}, unless its contents are the same",
}


@contextlib.contextmanager
def locked_by_job(workdir: Path) -> Iterator[Callable[[], None]]:
    """Holds the lock of a run folder (see lock.py) in the first process of a job; the others learn of a failure.

    Raises:
      UserError: another job holds it.
    """
    with contextlib.ExitStack() as stack:
        check, mistake = _nothing_to_check, ""
        if hosts.is_first():
            try:
                check = stack.enter_context(locked(workdir, "wait for it, stop it, or use another --workdir"))
            except UserError as error:
                mistake = str(error)
            except OSError as error:
                mistake = f"{error.filename}: cannot be locked ({error.strerror}); use another --workdir"
        if mistake := hosts.from_first(mistake):
            raise UserError(mistake)
        yield check


def _nothing_to_check() -> None:
    pass


def check_same_run(workdir: Path, config: dict[str, Any]) -> None:
    """Raises UserError if the folder holds a run of another task or model, or one whose checkpoints hold other arrays."""
    before, now, changed = _changes(workdir, config)
    if changed and before["task"] != now["task"]:
        raise UserError(f"{workdir}: holds a run of the task {before['task']}; use another --workdir for {now['task']}")
    version = before.get("data.stream_version", 1)  # older runs do not mention it
    if before and "data.stream_version" in now and version != STREAM_VERSION:
        raise UserError(
            f"{workdir}: begun with version {version} of the stream of examples, and this program makes version "
            f"{STREAM_VERSION}; begin a new run from it with --config.init_from, or continue it with the program that began it"
        )
    structure = [name for name in changed if _is_structure(name, before.get(name), now.get(name))]
    if structure:
        differences = [f"{name} is {before.get(name)} there, {now.get(name)} here" for name in structure]
        raise UserError(
            f"{workdir}: holds another run ({listed(differences)}); use another --workdir, or the same settings"
        )
    if "num_epochs" in changed and "train.num_steps" not in changed:
        raise UserError(
            f"num_epochs: the run was begun with {now['train.num_steps']} steps; set --config.train.num_steps instead"
        )


def warn_of_changes(
    workdir: Path, config: dict[str, Any], meaning_of_batch_size: Callable[[int, int], str], step: int
) -> None:
    """Warns of settings that differ from those of the run in the folder, which continues at `step`."""
    before, now, changed = _changes(workdir, config)
    for name in changed:
        if name == "train.batch_size":
            meaning = meaning_of_batch_size(before[name], step)
        else:
            meaning = MEANING.get(name, "").format(step=step)
        was, becomes = before.get(name), now.get(name)
        consequence = f": {meaning}" if meaning and step else ""
        logger.warning("%s was %s when this run began and is %s from now on%s", name, was, becomes, consequence)


def _changes(workdir: Path, config: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """Returns the options of the run in the folder, those of `config`, and the names that differ; all empty without a run."""
    if not run_folder.exists(workdir):
        return {}, {}, []
    before, now = (flattened(json.loads(json.dumps(values))) for values in (run_folder.read_config(workdir), config))
    return (
        before,
        now,
        sorted(name for name in before.keys() | now.keys() if _differ(name, before.get(name), now.get(name))),
    )


def _differ(name: str, before: Any, now: Any) -> bool:
    if name in run_folder.PATHS and before and now:
        return not same_path(before, now)
    return before != now


def _is_structure(name: str, before: Any, now: Any) -> bool:
    section, _, field = name.partition(".")
    if name == "train.ema_decay":
        return bool(before) != bool(now)
    return name in STRUCTURE or (section == "model" and field not in NOT_STRUCTURE)
