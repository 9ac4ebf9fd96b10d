"""Forks a pretraining run: a new run folder continues exactly from one of its checkpoints.

    python tools/fork_run.py --workdir=RUN --step=80000 --output=NEW [--config.optimizer.weight_decay=0.1 ...]
    python tools/fork_run.py --workdir=RUN --step=80000 --output=NEW --decay_steps=20000
    python -m bert_jax.pretrain --workdir=NEW

Parameters, moments, step, order of the data and the metrics up to the step are those of RUN: without changes to options, the
new run computes what RUN did, bit for bit. The folder RUN is only read.

With --decay_steps=K it ends K steps after the checkpoint, over which the learning rate decays from its value there: this shows
what a run with a constant rate would give if it ended here (Hägele et al. 2024, whose 1 - sqrt is the default). Phases are cut
at the checkpoint, and the decay has the other options of the last one; a mask rate that changes goes on to the same end.
"""

import shutil
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from absl import flags

from bert_jax.cli import command_flags
from bert_jax.cli.main import run_command
from bert_jax.config import to_dict
from bert_jax.conversion.convert import check_new
from bert_jax.errors import UserError
from bert_jax.objectives.masking import MaskingOptions
from bert_jax.run_folder.checkpoints import CheckpointStore
from bert_jax.run_folder.folder import FINGERPRINT, STARTS, TOKENIZER, read_config, write_config
from bert_jax.run_folder.provenance import Origin, Source, read_starts, write_start
from bert_jax.run_folder.resuming import check_same_run, phases_until, warn_of_changes
from bert_jax.tasks import base as tasks
from bert_jax.train.schedules import learning_rate
from bert_jax.train.writers import jsonl
from tools.lib.new_run import ALL_FILES, copy_files, copy_frozen_models, new_run


def define_flags() -> None:
    flags.DEFINE_integer("step", None, "checkpoint of the run; by default the latest", lower_bound=1)
    flags.DEFINE_string("output", None, "the new run folder", required=True)
    flags.DEFINE_integer(
        "decay_steps", None, "steps after the checkpoint in which the learning rate falls to its end", 1
    )
    flags.DEFINE_string(
        "decay", "", "with --decay_steps: schedule of the learning rate in these steps; sqrt by default"
    )
    flags.adopt_module_key_flags(command_flags)  # for --help


def main() -> None:
    values = flags.FLAGS
    if not command_flags.WORKDIR.value:
        raise UserError("--workdir is missing; set it to the run to fork")
    workdir, output = Path(command_flags.WORKDIR.value).expanduser(), Path(values.output).expanduser()
    if values.decay and not values.decay_steps:
        raise UserError(f"--decay={values.decay}: set --decay_steps, too")
    decay = (values.decay_steps, values.decay or "sqrt") if values.decay_steps else None
    step, num_steps = fork(command_flags.config_from_flags(), workdir, values.step, decay, output)
    print(f"{output}: goes on after step {step:,} of {workdir}, up to step {num_steps:,}")
    print(f"to train it: python -m bert_jax.pretrain --workdir={output}")


def fork(values: Any, workdir: Path, step: int | None, decay: tuple[int, str] | None, output: Path) -> tuple[int, int]:
    """Writes a run folder with a checkpoint of a run; returns its step, and the step at which the new run ends.

    Args:
      values: config of the new run, a ConfigDict.
      workdir: the run, which is only read.
      step: of the checkpoint; None for the latest.
      decay: the number of steps after the checkpoint, and the schedule of the learning rate in them; None to go on as `values`
        says.
      output: the new run folder.

    Raises:
      UserError: it is no pretraining run, the checkpoint is missing or damaged, the config is of another model or leaves
        nothing to train, or the output exists.
    """
    check_new(output)
    original = read_config(workdir)
    if original["task"] != "pretraining":
        raise UserError(f"{workdir}: a run of the task {original['task']}; only runs of pretraining are forked")
    step = step_to_fork(workdir, step)
    task = tasks.create(values, workdir)
    resolved = to_dict(task.config)
    check_same_run(workdir, resolved)
    warn_of_changes(workdir, resolved, task.training.effect_of_batch_size, step)
    if decay and resolved["train"]["num_steps"] != original["train"]["num_steps"]:
        raise UserError("--decay_steps sets train.num_steps; leave --config.train.num_steps out")
    if decay:
        task = tasks.create(with_decay(task.config, step, *decay), workdir)
        resolved = to_dict(task.config)
    if (num_steps := task.config.train.num_steps) <= step:
        remedy = "set --decay_steps, or --config.train.num_steps to more"
        raise UserError(f"{workdir}: ends at step {num_steps}, so nothing is left to train after step {step}; {remedy}")
    learning_rate(task.config.optimizer, num_steps, task.config.rate_pieces)  # whether it is valid
    task.training.validate(1)
    task.evaluator.validate()
    CheckpointStore(workdir).check(step)
    with new_run(output) as folder:
        copy_run(workdir, step, folder)
        write_config(folder, resolved)
        write_start(folder, step, Origin(tool="fork_run", sources=[Source(run=str(workdir.absolute()), step=step)]))
    return step, num_steps


def step_to_fork(workdir: Path, step: int | None) -> int:
    """Returns the step of a checkpoint with the whole state; the latest for None. Raises UserError if there is none."""
    steps = [saved for saved in CheckpointStore(workdir).steps() if saved > 0]  # at 0, imports have parameters only
    if not steps:
        remedy = "train it first, or begin a run from it with --config.init_from"
        raise UserError(f"{workdir}: has no checkpoint of training; {remedy}")
    if step is not None and step not in steps:
        raise UserError(f"{workdir}: no checkpoint of step {step}; choose from {', '.join(map(str, steps))}")
    return steps[-1] if step is None else step


def with_decay(config: Any, step: int, num_steps: int, schedule: str) -> dict[str, Any]:
    """Returns the options of a run that decays its learning rate in `num_steps` steps after `step`, where it ends.

    Its phases end at `step`; a last one has the options of the phase before it, and a learning rate of its own, which begins
    with that of the step before. Mask rates that change in the course of a phase go on from where they are to the same end.

    Raises:
      UserError: the learning rate is 0.
    """
    rate = float(learning_rate(config.optimizer, config.train.num_steps, config.rate_pieces)(jnp.int32(step - 1)))
    if not rate:
        raise UserError(f"--step={step}: the learning rate of this step is 0; decay from another one")
    options, until = to_dict(config), step + num_steps
    decay = {"until_step": until, "schedule": schedule, "learning_rate": rate, "warmup_steps": 0}
    phases: list[dict[str, Any]] = [{"until_step": step}]
    if config.phases:
        phases = phases_until([to_dict(phase) for phase in config.resolved_phases], step)
        if config.model.positions == "rope":
            options["model"]["rope_theta"] = phases[-1]["rope_theta"]  # of the trained model
        else:
            phases = [phase | {"rope_theta": 0.0} for phase in phases]
    before, after = mask_rates(config, step)
    options["phases"] = (*phases[:-1], phases[-1] | before, phases[-1] | decay | after)
    for name in config.objectives:
        if isinstance(config.options[name], MaskingOptions):
            options["options"][name]["mlm_probability_end"] = 0.0  # of a single phase; now the phases say it
    options["train"]["num_steps"] = until
    if config.optimizer.schedule == "wsd":
        options["optimizer"]["decay_steps"] = num_steps
    return options


def mask_rates(config: Any, step: int) -> tuple[dict[str, float], dict[str, float]]:
    """Returns options of two phases, up to `step` and after it, whose mask rates are those of the phase that `step` is in.

    The first one ends at the rate of `step`, and the second one goes on from it to the same end; both are {} if the rate is
    constant.
    """
    first_step = 0
    for phase in config.resolved_phases:
        if step <= phase.until_step:
            break
        first_step = phase.until_step
    for name, options in config.options_of(phase).items():
        if name in config.objectives and isinstance(options, MaskingOptions) and options.mlm_probability_end:
            now = float(options.rate((step - first_step) / (phase.until_step - first_step)))
            rates = (options.mlm_probability, now), (now, options.mlm_probability_end)
            before, after = ({"mlm_probability": start, "mlm_probability_end": end} for start, end in rates)
            return before, after
    return {}, {}


def copy_run(workdir: Path, step: int, folder: Path) -> None:
    """Copies what belongs to a run up to a step: one checkpoint, tokenizer, metrics, starts.

    Raises:
      UserError: the checkpoint was deleted meanwhile, or a file is damaged.
    """
    place = Path("checkpoints", str(step))
    try:
        shutil.copytree(workdir / place, folder / place)
    except (shutil.Error, FileNotFoundError):
        remedy = "if the run is training, it may have deleted it: use a later one"
        raise UserError(f"{workdir / place}: could not be copied; {remedy}") from None
    shutil.copytree(workdir / TOKENIZER, folder / TOKENIZER)
    copy_frozen_models(workdir, folder)
    copy_files(workdir, folder, (FINGERPRINT, jsonl.METRICS, *ALL_FILES))
    jsonl.Writer(folder, step).close()  # which drops the rows of later steps
    lines = [line for line, start in read_starts(workdir) if start.get("step", 0) <= step]
    (folder / STARTS).write_bytes(b"".join(lines))


if __name__ == "__main__":
    define_flags()
    run_command(main)
