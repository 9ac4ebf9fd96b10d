"""Merges checkpoints: the mean, or a weighted mean, of their parameters becomes a new run folder.

    python tools/merge_checkpoints.py --workdir=runs/x --steps=80000,90000,100000 --output=runs/merged
    python tools/merge_checkpoints.py --runs=runs/a,runs/b:20000 --weights=2,1 --output=runs/merged

The mean of the last checkpoints of a run shows what a decay of its learning rate would give, without training; training with
--config.checkpoint.keep_last=N keeps N of them. The mean of runs of one model and tokenizer is a model to fine-tune.
Checkpoints without a step are the default ones. Where a run keeps a moving average (`train.ema_decay`), it is what is merged,
as it is what all commands use.

The result is evaluated, exported, fine-tuned and predicted with like any run; training cannot be resumed in it, but begins
from it with --config.init_from.
"""

import math
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from bert_jax.cli.main import run_command
from bert_jax.conversion.convert import check_new
from bert_jax.errors import UserError
from bert_jax.run_folder.folder import TUNED
from bert_jax.run_folder.provenance import Origin, Source
from bert_jax.tasks.base import load_tokenizer
from tools.lib.merging import Checkpoint, check_alike, weighted_mean
from tools.lib.new_run import DESCRIPTIONS, config_of_params, copy_files, copy_frozen_models, new_run, write_model


def define_flags() -> None:
    flags.DEFINE_list("runs", [], "the checkpoints: run folders, each with or without :STEP")
    flags.DEFINE_string("workdir", None, "instead of --runs: one run, with --steps")
    flags.DEFINE_list("steps", [], "the checkpoints of --workdir")
    flags.DEFINE_list("weights", [], "a number for each checkpoint, whatever their sum; by default all are equal")
    flags.DEFINE_string("output", None, "the new run folder", required=True)


def main() -> None:
    values = flags.FLAGS
    places = named_checkpoints(values.runs, values.workdir, values.steps)
    output = Path(values.output).expanduser()
    checkpoints = merge(places, weights_of(values.weights, len(places)), output)
    total = sum(one.weight for one in checkpoints)
    for one in checkpoints:
        average = ", the moving average" if one.entry == "ema" else ""
        print(f"{one.folder}, step {one.step}: weight {one.weight / total:.4g}{average}")
    print(f"{output}: the mean of {len(checkpoints)} checkpoints")
    if tuned := [name for name in sorted(TUNED) if (checkpoints[0].folder / name).exists()]:
        print(f"{' and '.join(tuned)}: not copied; evaluate --tune chooses the value for the new parameters")


def merge(places: Sequence[tuple[Path, int | None]], weights: Sequence[float], output: Path) -> list[Checkpoint]:
    """Writes the mean of checkpoints, by run folder and step (None: the default one), as a new run; returns them.

    Raises:
      UserError: a checkpoint is missing or damaged, they are not of one model, or the output exists.
    """
    check_new(output)
    checkpoints = [Checkpoint.open(*place, weight) for place, weight in zip(places, weights, strict=True)]
    check_alike(checkpoints)
    first, params = checkpoints[0], weighted_mean(checkpoints)
    sources = [
        Source(run=str(one.folder.absolute()), step=one.step, weight=one.weight / sum(weights)) for one in checkpoints
    ]
    with new_run(output) as folder:
        copy_files(first.folder, folder, DESCRIPTIONS)
        copy_frozen_models(first.folder, folder)
        origin = Origin(tool="merge_checkpoints", sources=sources)
        config = config_of_params(first.config, first.step)
        write_model(folder, config, params, load_tokenizer(first.folder), origin)
    return checkpoints


def named_checkpoints(runs: Sequence[str], workdir: str | None, steps: Sequence[str]) -> list[tuple[Path, int | None]]:
    """Returns folder and step of each checkpoint; no step for a default one. Raises UserError if the flags are invalid."""
    if bool(runs) == bool(workdir):
        raise UserError("set --runs=RUN[:STEP],... or --workdir=RUN with --steps=N,..., and not both")
    if runs and steps:
        raise UserError("--steps is for --workdir; with --runs, write RUN:STEP")
    places = [run_and_step(run) for run in runs]
    if workdir:
        if wrong := [step for step in steps if not step.isdecimal()]:
            raise UserError(f"--steps={','.join(steps)}: {wrong[0]!r} is not a step; set numbers, separated by commas")
        places = [(Path(workdir).expanduser(), int(step)) for step in steps]
    flag = "--steps" if workdir else "--runs"
    if len(places) < 2:
        raise UserError(f"{flag}: names {('no checkpoint', 'one checkpoint')[len(places)]}; at least two are merged")
    if len(set(places)) < len(places):
        raise UserError(f"{flag}: names a checkpoint twice; remove one, or set --weights")
    return places


def run_and_step(value: str) -> tuple[Path, int | None]:
    """Splits RUN[:STEP]."""
    run, separator, step = value.rpartition(":")
    if separator and step.isdecimal() and not Path(value).exists():
        return Path(run).expanduser(), int(step)
    return Path(value).expanduser(), None


def weights_of(values: Sequence[str], number: int) -> list[float]:
    """Returns the weights of so many checkpoints, equal ones by default. Raises UserError for invalid values."""
    if not values:
        return [1.0] * number
    flag = f"--weights={','.join(values)}"
    try:
        weights = [float(value) for value in values]
    except ValueError:
        raise UserError(f"{flag}: must be numbers, separated by commas") from None
    if len(weights) != number:
        raise UserError(f"{flag}: {len(weights)} for {number} checkpoints; set one for each")
    if not all(map(math.isfinite, weights)) or sum(weights) <= 0:
        raise UserError(f"{flag}: must be finite numbers whose sum is positive")
    return weights


if __name__ == "__main__":
    define_flags()
    run_command(main)
