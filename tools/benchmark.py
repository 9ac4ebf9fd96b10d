"""Speed, measured side by side with a limit or a rival in one run: what docs/benchmarks.md reports.

    python tools/benchmark.py all --output=runs/benchmark
    python tools/benchmark.py train_step --size=mini --against=transformers --rival_python=/path/to/python
    python tools/benchmark.py train_step --config=configs/quickstart.py
    python tools/benchmark.py input --corpus=corpora/mine --against=transformers --rival_python=/path/to/python
    python tools/benchmark.py finetune --init_from=runs/x --glue_dir=GLUE --glue_task=MRPC --against=transformers

Everything takes turns, so noise of the machine meets all alike; figures are medians. A suite prints a table and, as its last
line, the same as JSON. Suites that need data make it from the documentation of this Python unless a flag names some.
"""

import dataclasses
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from absl import flags
from ml_collections import config_flags

from bert_jax.cli import main as cli
from bert_jax.errors import EXIT_USER_ERROR, UserError
from bert_jax.parallel import hosts
from tools.lib import (
    benchmark_all,
    benchmark_data,
    benchmark_kernels,
    benchmark_objectives,
    benchmark_server,
    benchmark_serving,
    benchmark_training,
)
from tools.lib.benchmark_rows import Row, print_rows
from tools.lib.benchmark_settings import MODERNBERT, RIVAL, SIZES, Settings
from tools.lib.benchmark_sides import check_rival, rival_environment

Suite = Callable[[Settings], tuple[dict[str, Any], Iterator[Row]]]
SUITES: dict[str, Suite] = {
    "matmul": benchmark_kernels.matmul,
    "attention": benchmark_kernels.attention,
    "train_step": benchmark_training.train_step,
    "objectives": benchmark_objectives.objectives,
    "finetune": benchmark_training.finetune,
    "predict": benchmark_serving.predict,
    "serve": benchmark_server.serve,
    "input": benchmark_data.input_pipeline,
    "prepare": benchmark_data.prepare_corpus,
    "checkpoint": benchmark_training.checkpoint,
    "compile": benchmark_training.compile_step,
    "startup": benchmark_serving.startup,
}
ALL = "all"
# Suites with a rival, and the packages that it needs.
RIVALS = {name: ["torch", "transformers"] for name in ("train_step", "finetune", "predict")} | {
    "serve": ["torch", "transformers", "fastapi", "uvicorn"],
    "input": ["transformers"],
}
OF_ALL = ("output", "suites")
OF_RIVALS = ("against", "rival_dtype", "rival_python", "rival_environment")
OF_MODELS = ("size", "dtype", "batch_size", "sequence_length", "attention_dropout")  # a config has values of its own


def define_flags() -> None:
    default = Settings()
    config_flags.DEFINE_config_file("config", None, f"Config of a pretraining run, instead of {written(OF_MODELS)}.")
    sizes = [*SIZES, MODERNBERT]
    flags.DEFINE_enum("size", None, sizes, "BERT of this size, or ModernBERT-base; mini on CPUs, otherwise base.")
    flags.DEFINE_enum(
        "dtype", None, ["float32", "bfloat16"], "Dtype of the computation; float32 on CPUs, otherwise bfloat16."
    )
    flags.DEFINE_integer("batch_size", None, "Sequences or examples of a step.", lower_bound=1)
    flags.DEFINE_integer("sequence_length", None, "Tokens of a sequence.", lower_bound=8)
    flags.DEFINE_float(
        "attention_dropout",
        None,
        "Attention dropout of the model; 0 for the fused attention of GPUs and TPUs.",
        lower_bound=0,
        upper_bound=1,
    )
    flags.DEFINE_string("source", default.source, "Texts that data is made of: python-docs, text:GLOB or jsonl:GLOB.")
    flags.DEFINE_string("data", "", "Folder that keeps what suites make of the texts; a temporary one by default.")
    flags.DEFINE_string("corpus", "", "input: folder made by tools/prepare_corpus.py.")
    flags.DEFINE_string("init_from", "", "finetune: run folder whose encoder is to be fine-tuned.")
    flags.DEFINE_string("glue_dir", "", "finetune: folder with GLUE's official folders.")
    flags.DEFINE_string("glue_task", default.glue_task, "finetune: name of the task of GLUE.")
    flags.DEFINE_string("workdir", "", "predict, serve, startup: run folder of a model that labels texts or words.")
    flags.DEFINE_integer("turns", default.turns, "Turns that each side takes.", lower_bound=1)
    flags.DEFINE_bool("quick", False, "Tiny sizes: shows that the suites work, not how fast anything is.")
    flags.DEFINE_enum("against", None, [RIVAL], "Also measure this rival.")
    flags.DEFINE_enum("rival_dtype", None, ["float32", "bfloat16"], "As --dtype by default.")
    flags.DEFINE_string("rival_python", default.rival_python, "The Python that can import the rival.")
    flags.DEFINE_multi_string("rival_environment", [], "NAME=VALUE, only for the rival's process.")
    flags.DEFINE_string("output", "", "all: folder for results.jsonl and report.md.")
    flags.DEFINE_list("suites", [], "all: only these.")


def written(names: Iterable[str]) -> str:
    return ", ".join(f"--{name}" for name in names)


def settings() -> Settings:
    """Returns the settings that the flags describe. Raises UserError for flags that do not fit together."""
    values: dict[str, Any] = {field.name: flags.FLAGS[field.name].value for field in dataclasses.fields(Settings)}
    rival_environment(values["rival_environment"])
    if values["config"] is not None:
        if unused := [name for name in OF_MODELS if values[name] is not None]:
            raise UserError(f"{written(unused)}: has no effect with --config; leave one of them out")
        values["config"] = cli.loaded_config()
    chosen: dict[str, Any] = {name: value for name, value in values.items() if value is not None}
    return Settings(**chosen)


def run_suite(name: str) -> None:
    chosen = settings()
    if unused := [name for name in OF_ALL if flags.FLAGS[name].value]:
        raise UserError(f"{written(unused)}: is for 'all', not for a single suite; leave it out")
    if chosen.against and name not in RIVALS:
        raise UserError(f"--against: there is no rival for {name}; leave it out")
    if chosen.against:
        check_rival(RIVALS[name], chosen.rival_python, chosen.rival_environment)
    if chosen.against or name == "startup":  # other processes on the same device: leave them some memory
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    hosts.start("")  # as the commands do
    logging.getLogger("bert_jax").setLevel(logging.WARNING)  # lines of the log would come between those of the table
    if not print_rows(name, *SUITES[name](chosen)):
        sys.exit(1)


def run_all() -> None:
    values, chosen = flags.FLAGS, settings()
    if chosen.against:
        check_rival(RIVALS["train_step"], chosen.rival_python, chosen.rival_environment)
    passed = benchmark_all.without(sys.argv[1:], OF_ALL)
    own = benchmark_all.without(passed, OF_RIVALS)  # of suites without a rival
    flags_of = {name: passed if name in RIVALS else own for name in SUITES}
    if not benchmark_all.run_all(flags_of, values.suites, values.output, chosen):
        sys.exit(1)


if __name__ == "__main__":
    names = [*SUITES, ALL]
    name = sys.argv.pop(1) if len(sys.argv) > 1 and not sys.argv[1].startswith("-") else ""
    if name not in names and "--help" not in sys.argv:
        print(f"error: name what to measure first: {', '.join(names)}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
    define_flags()
    cli.run_command(run_all if name == ALL else lambda: run_suite(name or next(iter(SUITES))))
