"""Predicts memory, minimum time, tokens/s and cost of a step of pretraining on a topology, without the hardware.

python tools/plan.py --config=configs/bert_base.py --topology=v5e:4x4 --tokens=100e9 --chip_hour_price=1.2
python tools/plan.py --config=configs/bert_large.py --topology=v5p:4x4x4 --config.parallel.data=1 --config.parallel.fsdp=64
python tools/plan.py --config=configs/modernbert.py:base --topology=h100:8 --search --output=plan.json

The step is compiled ahead of time: for TPUs with libtpu, which needs no TPU (extra `plan`); for GPUs by the compiler for CPUs,
so that memory and time are estimates. `cpu:N` also runs some steps and compares. No corpus is needed.
"""

import json
import sys
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from bert_jax.cli import main as cli
from bert_jax.errors import UserError
from bert_jax.files import write_text
from bert_jax.tasks.pretraining import Config
from tools.lib import plan_search
from tools.lib.plan_bounds import Plan
from tools.lib.plan_compile import compile_step
from tools.lib.plan_table import Price, search_text, to_json, to_text
from tools.lib.plan_topology import Topology, check_libtpu
from tools.lib.step_of_config import of_phase, pretraining_config

CONFIG = config_flags.DEFINE_config_file("config", None, "Config of a pretraining run; its options are flags, too.")
TOPOLOGY = flags.DEFINE_string("topology", "", "v5e:4x4, v5p:4x4x4, v6e:8x8, h100:8, h200:8, a100:16, cpu:2, ...")
PHASE = flags.DEFINE_integer("phase", None, "Index of the phase, from 0; by default that with the longest sequences.")
TOKENS = flags.DEFINE_float("tokens", 0, "Tokens to train on, e.g. 100e9.")
CHIP_HOUR_PRICE = flags.DEFINE_float(
    "chip_hour_price", 0, "Price of a device for an hour; without --tokens, the cost is that of 1e9 tokens."
)
SEARCH = flags.DEFINE_bool(
    "search", False, "Try meshes, microbatches, remat and attention; plan the fastest that fits."
)
MAX_COMPILES = flags.DEFINE_integer(
    "max_compiles", 6, "With --search: maximum number of steps to compile.", lower_bound=1
)
OUTPUT = flags.DEFINE_string("output", None, "Also write the plan to this file, as JSON.")


def main() -> None:
    """Prints the plan of a config, and writes it as JSON if asked for."""
    price, config, topology = read_flags()
    title = Path(config_flags.get_config_filename(flags.FLAGS["config"])).name
    if OUTPUT.value:
        if Path(OUTPUT.value).is_dir():
            raise UserError(f"--output={OUTPUT.value}: is a folder; name a file")
        Path(OUTPUT.value).parent.mkdir(parents=True, exist_ok=True)
    values: dict[str, Any] = {}
    if SEARCH.value:
        attempts = plan_search.search(config, topology, MAX_COMPILES.value)
        print(search_text(attempts, topology) + "\n")
        values["search"] = [
            {"flags": plan_search.flags_of(one.config), "problem": one.problem}
            | (to_json(one.plan, price) if one.plan else {})
            for one in attempts
        ]
        if attempts[0].plan is None or not attempts[0].plan.fits:
            write_output(values)
            raise UserError(
                "nothing that was tried fits; raise --max_compiles, use more devices, or lower train.batch_size"
            )
        plan = attempts[0].plan
        print(f"The fastest that fits: {' '.join(plan_search.flags_of(plan.config))}\n")
    else:
        print(f"compiling for {topology.name}, which takes minutes for a large model", file=sys.stderr)
        plan = Plan(config, topology, compile_step(config, topology, with_measurement=topology.platform == "cpu"))
    print(to_text(plan, price, title))
    write_output(to_json(plan, price) | values)


def write_output(values: dict[str, Any]) -> None:
    """Writes the JSON of --output, if asked for."""
    if OUTPUT.value:
        values = {"command": sys.argv[1:]} | values
        write_text(Path(OUTPUT.value), json.dumps(values, indent=1) + "\n")


def read_flags() -> tuple[Price, Config, Topology]:
    """Returns what is to be trained and at which price, the config of the phase, and the devices.

    Raises:
      UserError: a flag is missing or invalid, the config is not one of pretraining, or libtpu is missing.
    """
    price = Price(TOKENS.value or (1e9 if CHIP_HOUR_PRICE.value else 0.0), CHIP_HOUR_PRICE.value)
    if CONFIG.value is None:
        raise UserError("--config is missing; use a file of configs/, e.g. --config=configs/bert_base.py")
    topology = Topology.parse(TOPOLOGY.value)
    if topology.platform == "tpu":
        check_libtpu()
    return price, of_phase(pretraining_config(cli.loaded_config()), PHASE.value), topology


if __name__ == "__main__":
    cli.run_command(main)
