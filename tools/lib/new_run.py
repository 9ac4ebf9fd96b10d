"""Writes run folders that are made of other runs: whole, or not at all."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bert_jax.conversion.convert import check_new
from bert_jax.data.tokenizer.tokenizer import Tokenizer
from bert_jax.errors import UserError
from bert_jax.files import resolved
from bert_jax.model.build import Params
from bert_jax.run_folder.checkpoints import CheckpointConfig, CheckpointStore
from bert_jax.run_folder.default_checkpoint import default_or_latest_step
from bert_jax.run_folder.folder import FRESH_HEADS, FROZEN, LABELS, SCHEME, TUNED, model_after, write_config
from bert_jax.run_folder.provenance import Origin, write_start
from bert_jax.tasks.base import save_tokenizer

# Files that prediction needs in addition to parameters and tokenizer; those of TUNED belong to the values of the parameters.
DESCRIPTIONS = (LABELS, SCHEME, FRESH_HEADS)
ALL_FILES = (*DESCRIPTIONS, *sorted(TUNED))


@contextlib.contextmanager
def new_run(output: Path) -> Iterator[Path]:
    """Yields a folder next to `output` that becomes it at the end, or is removed after an error.

    Raises:
      UserError: `output` exists and is not empty.
    """
    check_new(output)
    target = resolved(output)
    draft = target.with_name(f"{target.name}.draft{os.getpid()}")
    try:
        draft.mkdir(parents=True)
        yield draft
        check_new(target)  # another process may have written it since
        if target.exists():
            shutil.rmtree(target)  # empty, or with a lock
        draft.rename(target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def chosen_step(workdir: Path, config: dict[str, Any], step: int | None = None) -> int:
    """Returns the step of a run's checkpoint; for None, of the default one. Raises UserError if there is no such checkpoint."""
    steps = CheckpointStore(workdir).steps()
    if not steps:
        raise UserError(f"{workdir}: has no checkpoint; train first")
    if step is None:
        return default_or_latest_step(workdir, config, steps)
    if step not in steps:
        remedy = f"choose from {', '.join(map(str, steps))}; --config.checkpoint.keep_last=N of the training keeps more"
        raise UserError(f"{workdir}: no checkpoint of step {step}; {remedy}")
    return step


def copy_files(source: Path, folder: Path, names: tuple[str, ...]) -> None:
    """Copies those of the files that exist."""
    for name in names:
        if (source / name).exists():
            shutil.copyfile(source / name, folder / name)


def copy_frozen_models(source: Path, folder: Path) -> None:
    """Copies the models that the run reads and does not train, such as a teacher, if it has any."""
    if (source / FROZEN).is_dir():
        shutil.copytree(source / FROZEN, folder / FROZEN)


def config_of_params(config: dict[str, Any], step: int) -> dict[str, Any]:
    """Returns the config of a run that has nothing but the parameters of a checkpoint: without average and phases."""
    changes = {"train": config["train"] | {"ema_decay": 0.0}, "model": model_after(config, step)}
    return config | changes | ({"phases": []} if "phases" in config else {})


def write_model(folder: Path, config: dict[str, Any], params: Params, tokenizer: Tokenizer, origin: Origin) -> None:
    """Writes parameters as a run folder that has not been trained, as an import does (conversion/convert.py).

    Args:
      folder: the new run.
      config: of the new run (see `config_of_params`).
      params: of the checkpoint, whose step is 0.
      tokenizer: of the new run.
      origin: what it is made of.
    """
    save_tokenizer(tokenizer, folder)
    store = CheckpointStore(folder, CheckpointConfig(), in_background=False)
    store.save(0, {"params": params}, config, {})
    store.wait()
    write_config(folder, config)
    write_start(folder, 0, origin)
