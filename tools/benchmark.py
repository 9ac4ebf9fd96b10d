"""Speed, measured side by side with a limit or a rival in one run: what docs/benchmarks.md reports.

python tools/benchmark.py train_step --size=mini --against=transformers --rival_python=/path/to/python
python tools/benchmark.py train_step --config=configs/quickstart.py
python tools/benchmark.py input --corpus=corpora/mine --against=transformers --rival_python=/path/to/python
python tools/benchmark.py finetune --init_from=runs/x --glue_dir=GLUE --glue_task=MRPC --against=transformers

Everything takes turns, so noise of the machine meets all alike; figures are medians.
"""

import dataclasses
import itertools
import os
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from ml_collections import config_flags

from bert_jax.cli import main as cli
from bert_jax.config import from_dict
from bert_jax.errors import UserError
from bert_jax.model.config import EncoderConfig
from bert_jax.objectives import mlm
from bert_jax.parallel import hosts
from bert_jax.parallel.mesh import make_mesh, platform
from bert_jax.tasks import glue
from bert_jax.tasks.base import model_of_run
from bert_jax.tasks.common.training import training_batches
from bert_jax.tasks.pretraining import Config
from bert_jax.train.flops import flops_per_token, measured_matmul_flops
from bert_jax.train.optimizers import OptimizerConfig
from bert_jax.train.step import Training
from tools.lib import benchmark_input
from tools.lib.benchmark_sides import Side, rival, steps_in_turns, take_turns
from tools.lib.step_of_config import losses_of, random_batch

INPUT_BATCH = 256  # rows
FINETUNE_BATCHES = 8  # of a run, that the turns go through
# Layers, width, heads: Turc et al. 2019 (mini, small), Devlin et al. 2019 (base, large).
SIZES = {"mini": (4, 256, 4), "small": (4, 512, 8), "base": (12, 768, 12), "large": (24, 1024, 16)}

CONFIG = config_flags.DEFINE_config_file("config", None, "Config of a pretraining run; instead of the next four flags.")
SIZE = flags.DEFINE_enum("size", "mini", list(SIZES), "BERT of this size.")
DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of the computation.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 32, "Sequences of a step.", lower_bound=1)
LENGTH = flags.DEFINE_integer("sequence_length", 128, "Tokens of a sequence.", lower_bound=8)
INIT_FROM = flags.DEFINE_string("init_from", None, "finetune: run folder whose encoder is to be fine-tuned.")
CORPUS = flags.DEFINE_string("corpus", None, "input: folder made by tools/prepare_corpus.py.")
GLUE_DIR = flags.DEFINE_string("glue_dir", None, "finetune: folder with GLUE's official folders.")
GLUE_TASK = flags.DEFINE_string("glue_task", "MRPC", "finetune: one of them.")
TURNS = flags.DEFINE_integer("turns", 9, "Turns that each side takes.", lower_bound=1)
AGAINST = flags.DEFINE_enum("against", None, ["transformers"], "Also measure this rival.")
RIVAL_DTYPE = flags.DEFINE_enum("rival_dtype", None, ["float32", "bfloat16"], "As --dtype by default.")
RIVAL_PYTHON = flags.DEFINE_string("rival_python", sys.executable, "The Python that can import the rival.")
RIVAL_ENVIRONMENT = flags.DEFINE_multi_string("rival_environment", [], "NAME=VALUE for the rival's process alone.")


def train_step() -> None:
    """Tokens/s of one step of masked-language-model pretraining, and its share of a matrix product's rate."""
    hosts.start("")  # as the commands do
    config = benchmark_config()
    model, batch_size, length = config.model, config.train.batch_size, config.data.sequence_length
    steps_per_turn = 3 if platform() == "cpu" else 10  # dispatch and the other sides' caches do not count
    sides = {
        "bert_jax": our_train_step(config, steps_per_turn),
        "product": lambda: measured_matmul_flops(model.dtype, jax.local_devices()[0], repeats=3),
    }
    titles = {"bert_jax": f"jax {jax.__version__}, {model.dtype}, {platform()}, {jax.device_count()} device(s)"}
    if AGAINST.value:
        shape = {"sequence_length": length, "predictions": mlm.max_predictions(length, config.options["mlm"])}
        titles[AGAINST.value], sides[AGAINST.value] = torch_rival(model, batch_size, steps_per_turn, shape)
    turns = take_turns(sides, TURNS.value)

    tokens = batch_size * length
    operations = flops_per_token(model, length, config.options["mlm"].mlm_probability)
    print(
        f"train_step: {model.num_layers} layers of {model.hidden_size}, vocabulary {model.vocab_size:,}, "
        f"batch {batch_size} x {length}, dropout {model.dropout}, medians of {TURNS.value} turns"
    )
    print_rates(turns, titles, tokens, "tokens/s")
    rate = tokens * operations / statistics.median(turns["bert_jax"])
    product = statistics.median(turns["product"]) * (1 if platform() == "cpu" else jax.device_count())
    print(
        f"{'operations':13}{operations / 1e6:>12,.2f} MFLOP a token: {rate / 1e12:.3f} TFLOP/s, "
        f"{rate / product:.3f} of the {product / 1e12:.3f} of a matrix product"
    )
    print_ratio(turns)


def finetune() -> None:
    """Measures examples/s of training on a GLUE task: several examples a row, against dynamic padding."""
    if not INIT_FROM.value or not GLUE_DIR.value:
        raise UserError("--init_from or --glue_dir is missing; name a run folder and the folder with GLUE's folders")
    hosts.start("")
    task = glue_task(GLUE_TASK.value, GLUE_DIR.value, INIT_FROM.value, BATCH_SIZE.value)
    model, steps_per_turn = task.config.model, 4
    sides = {"bert_jax": our_finetuning(task, steps_per_turn)}
    titles = {"bert_jax": f"jax {jax.__version__}, rows of several examples, {model.dtype}, {platform()}"}
    if AGAINST.value:
        shape = {"lengths": task.training.plan.lengths.tolist()}
        titles[AGAINST.value], sides[AGAINST.value] = torch_rival(model, BATCH_SIZE.value, steps_per_turn, shape)
    turns = take_turns(sides, TURNS.value)
    packed, padded = padding(task)
    print(
        f"finetune: {GLUE_TASK.value}, {model.num_layers} layers of {model.hidden_size}, batches of {BATCH_SIZE.value} "
        f"examples, medians of {TURNS.value} turns; padding: {packed:.1%} of the positions, {padded:.1%} if dynamic"
    )
    print_rates(turns, titles, BATCH_SIZE.value, "examples/s")
    print_ratio(turns)


def print_rates(turns: dict[str, list[float]], titles: dict[str, str], of_step: int, unit: str) -> None:
    """Prints what each side does in a second, `of_step` of it in a step."""
    for name, title in titles.items():
        seconds = statistics.median(turns[name])
        print(f"{name:13}{of_step / seconds:>12,.1f} {unit}  {1e3 * seconds:10,.1f} ms a step  ({title})")


def print_ratio(turns: dict[str, list[float]]) -> None:
    """Prints how many times as fast bert_jax is as the rival, turn by turn."""
    if AGAINST.value:
        ratios = [rival / own for own, rival in zip(turns["bert_jax"], turns[AGAINST.value], strict=True)]
        low, high = min(ratios), max(ratios)
        print(f"{'ratio':13}{statistics.median(ratios):>12.2f} x {AGAINST.value}, {low:.2f} to {high:.2f}")


def input_pipeline() -> None:
    """Tokens/s of the batches that pretraining reads: of one core, and of worker processes, from the loop's side."""
    if not CORPUS.value:
        raise UserError("--corpus is missing; name a folder made by tools/prepare_corpus.py")
    hosts.start("")
    print(f"input: batches of {INPUT_BATCH} rows, medians of {TURNS.value} turns; one core: CPU time, workers: time")
    collator = partial(child, "benchmark_rival_input.py", ["transformers"]) if AGAINST.value else None
    for row in benchmark_input.rates(CORPUS.value, INPUT_BATCH, TURNS.value, collator):
        print(row, flush=True)


COMMANDS: dict[str, Callable[[], None]] = {"train_step": train_step, "finetune": finetune, "input": input_pipeline}


def benchmark_config() -> Config:
    """Returns the config in --config, or that of a BERT of --size."""
    if CONFIG.value is not None:
        return from_dict(Config(), CONFIG.value)
    layers, width, heads = SIZES[SIZE.value]
    model = EncoderConfig(
        num_layers=layers,
        hidden_size=width,
        num_heads=heads,
        intermediate_size=4 * width,
        max_positions=max(512, LENGTH.value),
        dtype=DTYPE.value,
        pooler=False,
    )
    data = dataclasses.replace(Config().data, sequence_length=LENGTH.value)
    train = dataclasses.replace(Config().train, batch_size=BATCH_SIZE.value)
    return Config(model=model, objectives=("mlm",), optimizer=OptimizerConfig(name="adamw"), data=data, train=train)


def our_train_step(config: Config, steps_per_turn: int) -> Side:
    """Returns turns of the training step of this config on one random batch."""
    losses = losses_of(config)
    mesh = make_mesh(config.parallel)
    jax.set_mesh(mesh)
    return steps_in_turns(Training.of(losses, config, mesh), [random_batch(config, losses, mesh)], steps_per_turn)


def glue_task(name: str, directory: str, init_from: str, batch_size: int) -> Any:
    """Returns the task as a run of BERT's recipe has it."""
    data, model = glue.DataConfig(name=name, dir=directory), model_of_run(Path(init_from))
    train = dataclasses.replace(glue.Config().train, batch_size=batch_size)
    return glue.Task.create(glue.Config(init_from=init_from, model=model, data=data, train=train), Path("no-run"))


def our_finetuning(task: Any, steps_per_turn: int) -> Side:
    """Returns turns of the step that a run of this task takes, on its first batches."""
    mesh = make_mesh(task.config.parallel)
    jax.set_mesh(mesh)
    batches = list(itertools.islice(training_batches(task.training, mesh, 0), FINETUNE_BATCHES))
    return steps_in_turns(Training.of(task.losses, task.config, mesh), batches, steps_per_turn)


def padding(task: Any) -> tuple[float, float]:
    """Returns the shares of positions without a token: in our rows, and in random batches padded to their longest example."""
    plan, batch_size = task.training.plan, task.config.train.batch_size
    lengths, shape = plan.lengths, plan.shape(1)
    order = np.random.default_rng(0).permutation(len(lengths))
    batches = [lengths[order[start : start + batch_size]] for start in range(0, len(order), batch_size)]
    padded = sum(len(batch) * batch.max() for batch in batches)
    positions = plan.batches_per_epoch * shape.rows * shape.length
    return 1 - lengths.sum() / positions, 1 - lengths.sum() / padded


def torch_rival(model: EncoderConfig, batch_size: int, steps_per_turn: int, shape: dict[str, Any]) -> tuple[str, Side]:
    """Returns a title, and turns of transformers in a child process with as many threads; `shape` is that of its batches."""
    options = {
        "model": {
            "vocab_size": model.vocab_size,
            "hidden_size": model.hidden_size,
            "num_hidden_layers": model.num_layers,
            "num_attention_heads": model.num_heads,
            "intermediate_size": model.intermediate_size,
            "max_position_embeddings": model.max_positions,
            "hidden_dropout_prob": model.dropout,
            "attention_probs_dropout_prob": model.attention_dropout,
        },
        "dtype": RIVAL_DTYPE.value or model.dtype,
        "batch_size": batch_size,
        "threads": len(os.sched_getaffinity(0)),
        "steps_per_turn": steps_per_turn,
    }
    return child("benchmark_rival.py", ["torch", "transformers"], options | shape)


def child(script: str, packages: list[str], options: dict[str, Any]) -> tuple[str, Side]:
    """Returns what `rival` does, in the Python and the environment of the flags."""
    return rival(script, packages, options, RIVAL_PYTHON.value, RIVAL_ENVIRONMENT.value)


if __name__ == "__main__":
    name = sys.argv.pop(1) if len(sys.argv) > 1 and not sys.argv[1].startswith("-") else ""
    if name not in COMMANDS and "--help" not in sys.argv:
        sys.exit(f"error: name what to measure first: {', '.join(COMMANDS)}")
    cli.run_command(COMMANDS.get(name, train_step))
