"""Checks before a run is resumed: options that must not change, and the consequences of other changes."""

import dataclasses
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bert_jax.data.pretraining.stream import STREAM_VERSION
from bert_jax.errors import UserError, listed
from bert_jax.files import same_path
from bert_jax.model.config import EncoderConfig
from bert_jax.run_folder.folder import NOT_STRUCTURE, PATHS, exists, flattened, read_config

logger = logging.getLogger(__name__)

# Options that must not change, in addition to the structure of the model.
STRUCTURE = {
    *("task", "objectives", "problem", "data.name", "optimizer.name", "optimizer.trainable"),
    *("init_from", "init_layers", "init_growth", "from_scratch", "reinit_layers"),  # already applied
}
_EPOCH_CHANGES = "in the epoch of step {step} some examples are repeated and some skipped"
CONSEQUENCES = {
    "train.accumulation_steps": "the examples and their dropout masks stay the same, rounding differs",
    "train.seed": f"the order of the examples changes: {_EPOCH_CHANGES}",
    "data.sequence_length": f"texts are cut into different examples: {_EPOCH_CHANGES}",
    "data.packing": f"rows are filled in another way: {_EPOCH_CHANGES}",
    "data.document_overlap": f"documents are cut at other places: {_EPOCH_CHANGES}",
    "data.isolate_documents": "the examples stay the same, but documents in a row see each other or no longer do",
    "phases": f"the shapes of batches and the numbers of their examples follow the new phases: {_EPOCH_CHANGES}",
    "data.mixture": f"each corpus goes on where it would be if its share had always been the new one: {_EPOCH_CHANGES}",
    "data.mixture_temperature": f"the shares of the corpora change: {_EPOCH_CHANGES}",
    "data.corpus": "training continues at the same example number of that corpus",
    "data.train": f"examples come from that file: {_EPOCH_CHANGES}, unless its contents are the same",
}


def check_same_run(workdir: Path, config: dict[str, Any]) -> None:
    """Raises UserError if the folder holds a run of another task or model, or with other arrays in its checkpoints."""
    before, now, changed = _changes(workdir, config)
    if changed and before["task"] != now["task"]:
        raise UserError(f"{workdir}: holds a run of the task {before['task']}; use another --workdir for {now['task']}")
    version = before.get("data.stream_version", 1)  # older runs do not mention it
    if before and "data.stream_version" in now and version != STREAM_VERSION:
        versions = f"version {version} of the stream of examples, and this program makes version {STREAM_VERSION}"
        remedy = "begin a new run from it with --config.init_from, or continue it with the program that began it"
        raise UserError(f"{workdir}: begun with {versions}; {remedy}")
    structure = [name for name in changed if _is_structure(name, before.get(name), now.get(name))]
    if differences := [
        f"{name} is {_shown(before.get(name))} there, {_shown(now.get(name))} here" for name in structure
    ]:
        remedy = "use another --workdir, or the same settings"
        raise UserError(f"{workdir}: holds another run ({listed(differences)}); {remedy}")
    if "num_epochs" in changed and "train.num_steps" not in changed:
        num_steps = now["train.num_steps"]
        raise UserError(f"num_epochs: the run was started with {num_steps} steps; set --config.train.num_steps instead")


def warn_of_changes(
    workdir: Path, config: dict[str, Any], effect_of_batch_size: Callable[[int, int], str], step: int
) -> None:
    """Logs options that differ from those of the run in the folder, which continues at `step`."""
    before, now, changed = _changes(workdir, config)
    for name in changed:
        if name == "train.batch_size":
            text = effect_of_batch_size(before[name], step)
        elif name == "phases" and phases_until(before.get(name), step) == phases_until(now.get(name), step) != []:
            text = "those of the steps up to here stay the same"
        else:
            text = CONSEQUENCES.get(name, "").format(step=step)
        consequence = f": {text}" if text and step else ""
        logger.warning("%s changes from %s to %s%s", name, _shown(before.get(name)), _shown(now.get(name)), consequence)


def phases_until(phases: Sequence[dict[str, Any]] | None, step: int) -> list[dict[str, Any]]:
    """Returns the phases of the first `step` steps, cut there; None is in the config of an older run."""
    phases = phases or []
    ends = [0, *(phase["until_step"] for phase in phases)]
    begun = [phase for start, phase in zip(ends, phases, strict=False) if start < step]
    return [phase | {"until_step": min(phase["until_step"], step)} for phase in begun]


def _changes(workdir: Path, config: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """Returns the options of the run in the folder, those of `config`, and the names of those that differ."""
    if not exists(workdir):
        return {}, {}, []
    before, now = (flattened(json.loads(json.dumps(values))) for values in (read_config(workdir), config))
    # The program which began the run may lack options of today: it did what their defaults, or empty values, now mean.
    defaults = {f"model.{field.name}": field.default for field in dataclasses.fields(EncoderConfig)}
    before = {name: value for name, value in defaults.items() if name in now} | before
    names = sorted(before.keys() | now.keys())
    return before, now, [name for name in names if not _is_same(name, before.get(name), now.get(name))]


def _shown(value: Any) -> str:
    """Returns an option for messages; of phases just what is set."""
    parts = value if isinstance(value, list) else []
    if parts and all(isinstance(part, dict) for part in parts):
        value = [{name: option for name, option in part.items() if option} for part in parts]
    return "empty" if value in (None, "") else str(value)


def _is_same(name: str, before: Any, now: Any) -> bool:
    if before is None and not now:
        return True
    is_path = name in PATHS and isinstance(before, str) and isinstance(now, str) and before and now
    return same_path(before, now) if is_path else before == now


def _is_structure(name: str, before: Any, now: Any) -> bool:
    section, _, field = name.partition(".")
    if name == "train.ema_decay":
        return bool(before) != bool(now)
    return name in STRUCTURE or (section == "model" and field not in NOT_STRUCTURE)
