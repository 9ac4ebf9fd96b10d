"""The suites `train_step`, `finetune`, `compile` and `checkpoint`: a training step and what is around it."""

import dataclasses
import itertools
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental.compilation_cache import compilation_cache

from bert_jax.config import to_dict
from bert_jax.errors import UserError
from bert_jax.formats.huggingface_config import family_of
from bert_jax.model.attention.attend import chosen_for
from bert_jax.model.build import count
from bert_jax.model.config import EncoderConfig
from bert_jax.objectives import mlm
from bert_jax.parallel.mesh import make_mesh, with_shardings
from bert_jax.run_folder.checkpoints import CheckpointConfig, CheckpointStore
from bert_jax.tasks import glue
from bert_jax.tasks.base import model_of_run
from bert_jax.tasks.common.training import training_batches
from bert_jax.tasks.pretraining import Config
from bert_jax.train.flops import flops_per_token, measured_matmul_flops
from bert_jax.train.step import Training
from tools.lib.benchmark_material import Material
from tools.lib.benchmark_rows import Row, failed_row, rate, ratio_row, ratios
from tools.lib.benchmark_settings import RIVAL, Settings
from tools.lib.benchmark_sides import Side, steps_in_turns, take_turns, temporary_memory
from tools.lib.step_of_config import abstract_batch, losses_of, of_phase, random_batch

FINETUNE_BATCHES = 8  # of a run, that the turns go through
BERT_JAX, PADDED = "bert_jax", f"{RIVAL}, padded text"


def about_model(model: EncoderConfig) -> dict[str, Any]:
    """Returns the settings that the suites on models have in common."""
    sizes = {"layers": model.num_layers, "width": model.hidden_size, "vocabulary": model.vocab_size}
    return sizes | {"dtype": model.dtype, "dropout": model.dropout, "jax": jax.__version__}


# ----------------------------------------------------------------------------------------------------------------------
# train_step, finetune
# ----------------------------------------------------------------------------------------------------------------------


def train_step(settings: Settings) -> tuple[dict[str, Any], Iterator[Row]]:
    """Measures tokens/s of a pretraining step, in the phase with the longest sequences, and its share of a product's rate."""
    config = of_phase(settings.pretraining)
    shape = {"batch_size": config.train.batch_size, "sequence_length": config.data.sequence_length}
    about = about_model(config.model) | shape | {"microbatches": config.train.accumulation_steps}
    chosen = chosen_for(config.model, config.data.sequence_length, jax.default_backend())
    about["attention"] = ", ".join(f"{kind} {name}" for kind, name in chosen.items())
    if settings.against and (config.objectives != ("mlm",) or config.train.accumulation_steps > 1):
        raise UserError("--against: compares only objectives=('mlm',) without microbatches; choose another --config")
    return about | {"turns": settings.turns}, _train_step_rows(settings, config)


def _train_step_rows(settings: Settings, config: Config) -> Iterator[Row]:
    model, batch_size, length = config.model, config.train.batch_size, config.data.sequence_length
    steps_per_turn = 1 if settings.quick else 3 if settings.on_cpu else 10  # other sides' caches do not count
    mesh = make_mesh(config.parallel, settings.devices)
    failed = list[Row]()
    with jax.set_mesh(mesh):
        losses = losses_of(config)
        sides: dict[str, Side] = {
            BERT_JAX: steps_in_turns(
                Training.of(losses, config, mesh), [random_batch(config, losses, mesh)], steps_per_turn
            ),
            "product": lambda: measured_matmul_flops(model.dtype, jax.local_devices()[0], repeats=3),
        }
        notes, tokens = dict[str, str](), dict.fromkeys((BERT_JAX, RIVAL), float(batch_size * length))
        if settings.against:
            whole = {"sequence_length": length, "predictions": mlm.max_predictions(length, config.options["mlm"])}
            lengths = Material(settings).lengths(length)
            # About as many positions as full rows have, if the longest of a batch is one of the longest hundredth.
            rows = max(batch_size, round(batch_size * length / float(np.quantile(lengths, 0.99))))
            tokens[PADDED] = rows * float(np.mean(lengths))
            padded = whole | {"lengths": lengths, "dtype": "float32", "best": False, "batch_size": rows}
            for name, shape in ((RIVAL, whole), (PADDED, padded)):
                try:
                    notes[name], sides[name] = torch_rival(settings, model, batch_size, steps_per_turn, shape)
                except UserError as error:
                    failed.append(failed_row(name, error))
            if PADDED in notes:
                of_tokens = f"{rows} paragraphs of {np.mean(lengths):.0f} tokens on average"
                notes[PADDED] += f", {of_tokens} in a batch, padded to the longest"
        turns = take_turns(sides, settings.turns)

    product = (1 if settings.on_cpu else mesh.size) * float(np.median(turns.pop("product")))
    share = None
    notes[BERT_JAX] = f"{product / 1e12:.3f} TFLOP/s of a matrix product"
    if config.objectives == ("mlm",):  # the formula is about
        operations = flops_per_token(model, length, config.options["mlm"].mlm_probability)
        share = tokens[BERT_JAX] * operations / float(np.median(turns[BERT_JAX])) / product
        notes[BERT_JAX] = f"{operations / 1e6:,.2f} MFLOP a token, of {notes[BERT_JAX]}"
    for name, seconds in turns.items():
        yield rate(name, "tokens/s", tokens[name], seconds, note=notes[name], share=share if name == BERT_JAX else None)
    yield from failed
    of_token = {name: [value / tokens[name] for value in seconds] for name, seconds in turns.items()}
    for name in [name for name in turns if name != BERT_JAX]:
        yield ratio_row(name, of_token[name], of_token[BERT_JAX])


def finetune(settings: Settings) -> tuple[dict[str, Any], Iterator[Row]]:
    """Measures examples/s of training on a GLUE task: several examples a row, against dynamic padding."""
    material = Material(settings)
    task = glue_task(
        settings.glue_task, material.glue(), settings.init_from or material.run(), settings.batch_size or 32
    )
    shape = {"task": settings.glue_task, "batch_size": task.config.train.batch_size, "turns": settings.turns}
    return about_model(task.config.model) | shape, _finetune_rows(settings, task)


def _finetune_rows(settings: Settings, task: Any) -> Iterator[Row]:
    model, batch_size, steps_per_turn = task.config.model, task.config.train.batch_size, 1 if settings.quick else 4
    mesh = make_mesh(task.config.parallel, settings.devices)
    failed = list[Row]()
    with jax.set_mesh(mesh):
        batches = list(itertools.islice(training_batches(task.training, mesh, 0), FINETUNE_BATCHES))
        sides = {BERT_JAX: steps_in_turns(Training.of(task.losses, task.config, mesh), batches, steps_per_turn)}
        sides["product"] = lambda: measured_matmul_flops(model.dtype, jax.local_devices()[0], repeats=3)
        packed, padded = padding(task)
        notes = {BERT_JAX: f"rows of several examples, {packed:.1%} of the positions are padding"}
        if settings.against:
            shape = {"lengths": task.training.plan.lengths.tolist(), "fine_tunes": True}
            try:
                notes[RIVAL], sides[RIVAL] = torch_rival(settings, model, batch_size, steps_per_turn, shape)
                notes[RIVAL] += f", {padded:.1%} of the positions are padding"
            except UserError as error:
                failed.append(failed_row(RIVAL, error))
        turns = take_turns(sides, settings.turns)
    product = (1 if settings.on_cpu else mesh.size) * float(np.median(turns.pop("product")))
    length = float(np.mean(task.training.plan.lengths))
    operations = (
        batch_size * length * flops_per_token(model, round(length), 0.0)
    )  # a position of each example is predicted
    share = operations / float(np.median(turns[BERT_JAX])) / product
    for name, seconds in turns.items():
        row = rate(name, "examples/s", batch_size, seconds, note=notes[name])
        yield dataclasses.replace(row, share=share) if name == BERT_JAX else row
    if RIVAL in turns:
        yield ratio_row(RIVAL, turns[RIVAL], turns[BERT_JAX])
    yield from failed


def glue_task(name: str, directory: str, init_from: str, batch_size: int) -> Any:
    """Returns the task as a run of BERT's recipe has it."""
    data, model = glue.DataConfig(name=name, dir=directory), model_of_run(Path(init_from))
    train = dataclasses.replace(glue.Config().train, batch_size=batch_size)
    return glue.Task.create(glue.Config(init_from=init_from, model=model, data=data, train=train), Path("no-run"))


def padding(task: Any) -> tuple[float, float]:
    """Returns the shares of positions without a token: in our rows, and in random batches padded to their longest example."""
    plan, batch_size = task.training.plan, task.config.train.batch_size
    lengths, shape = plan.lengths, plan.shape(1)
    order = np.random.default_rng(0).permutation(len(lengths))
    batches = [lengths[order[start : start + batch_size]] for start in range(0, len(order), batch_size)]
    padded = sum(len(batch) * batch.max() for batch in batches)
    positions = plan.batches_per_epoch * shape.rows * shape.length
    return 1 - lengths.sum() / positions, 1 - lengths.sum() / padded


def torch_rival(
    settings: Settings, model: EncoderConfig, batch_size: int, steps_per_turn: int, shape: dict[str, Any]
) -> tuple[str, Side]:
    """Returns a title, and turns of transformers in a child process with as many threads.

    Args:
      settings: with the Python of the child.
      model: an encoder of a family that transformers has.
      batch_size: sequences or examples of a step.
      steps_per_turn: of training.
      shape: of the batches, and options other than these, see benchmark_rival.py.

    Raises:
      UserError: transformers has no such encoder, or cannot be run.
    """
    _, config = family_of(dataclasses.replace(model, pooler=False))
    options = {"model": config, "dtype": settings.rival_dtype or model.dtype, "best": True, "batch_size": batch_size}
    options |= {"steps_per_turn": steps_per_turn}
    return settings.child("benchmark_rival.py", options | shape)


# ----------------------------------------------------------------------------------------------------------------------
# compile, checkpoint
# ----------------------------------------------------------------------------------------------------------------------


def compile_step(settings: Settings) -> tuple[dict[str, Any], Iterator[Row]]:
    """Measures how long a training step takes to trace, lower and compile, and to be read from the compilation cache."""
    config = of_phase(settings.pretraining)
    shape = {"batch_size": config.train.batch_size, "sequence_length": config.data.sequence_length}
    turns = min(3, settings.turns)
    return about_model(config.model) | shape | {"turns": turns}, _compile_rows(config, turns)


def _compile_rows(config: Config, turns: int) -> Iterator[Row]:
    mesh = make_mesh(config.parallel)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)  # everything is kept
    measured: dict[str, list[float]] = {}
    memory = 0

    def mark(name: str, start: float) -> float:
        now = time.perf_counter()
        measured.setdefault(name, []).append(now - start)
        return now

    losses = losses_of(config)
    batch = abstract_batch(config, losses, mesh)
    cache = jax.config.values["jax_compilation_cache_dir"]
    for _ in range(turns):
        with tempfile.TemporaryDirectory() as folder, jax.set_mesh(mesh):
            jax.config.update("jax_compilation_cache_dir", folder)
            for title in ("compile", "read from the cache"):
                compilation_cache.reset_cache()
                jax.clear_caches()
                training = Training.of(losses, config, mesh)  # with a function that jax has not traced yet
                state = with_shardings(jax.eval_shape(training.make_state), training.placed)
                start = time.perf_counter()
                traced = training.jitted_step.trace(state, {}, batch)
                start = mark("trace", start)
                lowered = traced.lower()
                start = mark("lower", start)
                memory = temporary_memory(lowered.compile())
                mark(title, start)
    jax.config.update("jax_compilation_cache_dir", cache)
    compilation_cache.reset_cache()
    for name, seconds in measured.items():
        yield Row(name, "s", seconds, memory=memory if name == "compile" else None)


def checkpoint(settings: Settings) -> tuple[dict[str, Any], Iterator[Row]]:
    """Measures how long saving a checkpoint blocks training, against a plain copy, and how long writing and reading take."""
    config = of_phase(settings.pretraining)
    return about_model(config.model) | {"turns": settings.turns}, _checkpoint_rows(config, settings.turns)


def _checkpoint_rows(config: Config, turns: int) -> Iterator[Row]:
    mesh = make_mesh(config.parallel)
    with jax.set_mesh(mesh):
        training = Training.of(losses_of(config), config, mesh)
        state = jax.block_until_ready(training.make_state())
        abstract = with_shardings(jax.eval_shape(training.make_state), training.placed)
        size, numbers = sum(array.nbytes for array in jax.tree.leaves(state)), itertools.count(1)
        with tempfile.TemporaryDirectory() as folder:
            store = CheckpointStore(folder, CheckpointConfig(keep_last=1))

            def seconds_of(function: Any) -> Side:
                def turn() -> float:
                    start = time.perf_counter()
                    function()
                    return time.perf_counter() - start

                return turn

            sides = {
                "copy from the devices": seconds_of(lambda: jax.tree.map(lambda array: np.array(array), state)),
                "save: training waits": seconds_of(lambda: store.save(next(numbers), state, to_dict(config), {})),
                "save: writing after that": seconds_of(store.wait),
                "restore": seconds_of(lambda: jax.block_until_ready(store.restore(abstract))),
            }
            take_turns(sides, 1)  # compiles
            measured = take_turns(sides, turns, seconds=120.0)
            bytes_written = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    base = "copy from the devices"
    parameters = count(state["params"])
    note = f"{size / 1e6:,.1f} MB of state, {parameters:,} parameters, {bytes_written / 1e6:,.1f} MB on disk"
    for name, seconds in measured.items():
        compared: Any = {"base": base, "ratios": ratios(measured[base], seconds)} if name.endswith("waits") else {}
        yield Row(name, "ms", [1e3 * value for value in seconds], note=note if name == base else "", **compared)
