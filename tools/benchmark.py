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
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

from absl import flags
from ml_collections import config_flags

from bert_jax.cli import main as cli
from bert_jax.errors import EXIT_USER_ERROR
from bert_jax.parallel import hosts
from tools.lib import benchmark_all, benchmark_data, benchmark_kernels, benchmark_serving, benchmark_training
from tools.lib.benchmark_rows import Row, print_rows
from tools.lib.benchmark_settings import MODERNBERT, RIVAL, SIZES, Settings

Suite = Callable[[Settings], tuple[dict[str, Any], Iterator[Row]]]
SUITES: dict[str, Suite] = {
    "matmul": benchmark_kernels.matmul,
    "attention": benchmark_kernels.attention,
    "train_step": benchmark_training.train_step,
    "finetune": benchmark_training.finetune,
    "predict": benchmark_serving.predict,
    "input": benchmark_data.input_pipeline,
    "prepare": benchmark_data.prepare_corpus,
    "checkpoint": benchmark_training.checkpoint,
    "compile": benchmark_training.compile_step,
    "startup": benchmark_serving.startup,
}
ALL = "all"


def define_flags() -> None:
    default = Settings()
    config_flags.DEFINE_config_file("config", None, "Config of a pretraining run; instead of the next five flags.")
    sizes = [*SIZES, MODERNBERT]
    flags.DEFINE_enum("size", None, sizes, "BERT of this size, or ModernBERT-base; mini on CPUs, otherwise base.")
    flags.DEFINE_enum(
        "dtype", None, ["float32", "bfloat16"], "Of the computation; float32 on CPUs, otherwise bfloat16."
    )
    flags.DEFINE_integer("batch_size", None, "Sequences or examples of a step.", lower_bound=1)
    flags.DEFINE_integer("sequence_length", None, "Tokens of a sequence.", lower_bound=8)
    flags.DEFINE_float(
        "attention_dropout",
        None,
        "Of --size; 0 for the fused attention of GPUs and TPUs.",
        lower_bound=0,
        upper_bound=1,
    )
    flags.DEFINE_string("source", default.source, "Texts that data is made of: python-docs, text:GLOB or jsonl:GLOB.")
    flags.DEFINE_string("data", "", "Folder that keeps what suites make of the texts; a temporary one by default.")
    flags.DEFINE_string("corpus", "", "input: folder made by tools/prepare_corpus.py.")
    flags.DEFINE_string("init_from", "", "finetune: run folder whose encoder is to be fine-tuned.")
    flags.DEFINE_string("glue_dir", "", "finetune: folder with GLUE's official folders.")
    flags.DEFINE_string("glue_task", default.glue_task, "finetune: one of them.")
    flags.DEFINE_string("workdir", "", "predict, startup: run folder of a model that labels texts or words.")
    flags.DEFINE_integer("turns", default.turns, "Turns that each side takes.", lower_bound=1)
    flags.DEFINE_bool("quick", False, "Tiny sizes: shows that the suites work, not how fast anything is.")
    flags.DEFINE_enum("against", None, [RIVAL], "Also measure this rival.")
    flags.DEFINE_enum("rival_dtype", None, ["float32", "bfloat16"], "As --dtype by default.")
    flags.DEFINE_string("rival_python", default.rival_python, "The Python that can import the rival.")
    flags.DEFINE_multi_string("rival_environment", [], "NAME=VALUE, only for the rival's process.")
    flags.DEFINE_string("output", "", "all: folder for results.jsonl and report.md.")
    flags.DEFINE_list("suites", [], "all: only these.")


def settings() -> Settings:
    values = {field.name: flags.FLAGS[field.name].value for field in dataclasses.fields(Settings)}
    if values["config"] is not None:
        values["config"] = cli.loaded_config()
    chosen: dict[str, Any] = {name: value for name, value in values.items() if value is not None}
    return Settings(**chosen)


def run_suite(name: str) -> None:
    chosen = settings()
    if chosen.against or name == "startup":  # other processes on the same device: leave them some memory
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    hosts.start("")  # as the commands do
    if not print_rows(name, *SUITES[name](chosen)):
        sys.exit(1)


def run_all() -> None:
    values = flags.FLAGS
    passed = benchmark_all.without(sys.argv[1:], ("output", "suites"))
    if not benchmark_all.run_all(list(SUITES), values.suites, values.output, passed, settings()):
        sys.exit(1)


if __name__ == "__main__":
    names = [*SUITES, ALL]
    name = sys.argv.pop(1) if len(sys.argv) > 1 and not sys.argv[1].startswith("-") else ""
    if name not in names and "--help" not in sys.argv:
        print(f"error: name what to measure first: {', '.join(names)}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
    define_flags()
    cli.run_command(run_all if name == ALL else lambda: run_suite(name or next(iter(SUITES))))
