"""Prints the tables of docs/scaling.md from the files that tools/plan.py wrote.

python tools/plan_report.py --plans=plans
"""

import re
from pathlib import Path
from typing import Any

from absl import flags

from bert_jax.cli import main as cli
from bert_jax.errors import UserError
from bert_jax.files import read_json
from bert_jax.parallel.chips import GIB

PLANS = flags.DEFINE_string("plans", None, "Folder of files of tools/plan.py --output.")
STEPS = (
    "| Plan | Mesh, microbatches, remat, attention | GiB of a device | Matmuls, memory, network: ms | "
    "At the bound: MFU, tokens/s | Serial estimate: MFU, tokens/s |"
)
COLLECTIVES = "| Plan | Devices | Collectives of a step | MB sent by a device |"


def main() -> None:
    """Prints a table of steps and one of collectives, as Markdown."""
    paths = sorted(Path(PLANS.value or "").glob("*.json"), key=in_order)
    if not PLANS.value or not paths:
        problem = f"={PLANS.value}: has no *.json" if PLANS.value else " is missing"
        raise UserError(
            f"--plans{problem}; name a folder with files that tools/plan.py --output=FOLDER/NAME.json wrote"
        )
    plans = {path: read_json(path, remedy="remove it") for path in paths}
    for path, plan in plans.items():
        if not {"step", "facts"} <= plan.keys():
            problem = "a search in which nothing fits" if "search" in plan else "not a plan of tools/plan.py"
            raise UserError(f"{path}: is {problem}; remove it")
    for head, row in ((STEPS, step_row), (COLLECTIVES, collectives_row)):
        print(head)
        print("|---" * (head.count("|") - 1) + "|")
        for path, plan in plans.items():
            print(f"| {path.stem} | {row(plan)} |")
        print()


def in_order(path: Path) -> list[tuple[int, str]]:
    """Returns a key that sorts numbers in names by their value."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.stem)]


def step_row(plan: dict[str, Any]) -> str:
    """Returns what a step of a plan needs, and the speed that follows."""
    step, facts = plan["step"], plan["facts"]
    mesh = " x ".join(str(size) for size in step["mesh"].values())
    attention = " and ".join(dict.fromkeys(facts["attention"].values()))
    options = f"{mesh}, {step['accumulation_steps']}, {step['remat']}, {attention}"
    needed = f"{facts['total_bytes'] / GIB:.2f}" if facts["total_bytes"] else "?"
    memory = f"{needed} of {plan['chip']['memory'] / GIB:.2f}" if plan["chip"] else needed
    if not plan["fits"]:
        return f"{options} | {memory}: out of memory | - | - | -"
    bounds, training = plan["bounds"], plan["training"]
    times = ", ".join(f"{1e3 * bounds[name]:.1f}" for name in ("matmuls", "memory", "network"))
    speeds = [
        f"{training[name]['utilization']:.2f}, {training[name]['tokens_per_second']:,.0f}" if name in training else "-"
        for name in ("bound", "serial")
    ]
    return f"{options} | {memory} | {times} | {' | '.join(speeds)}"


def collectives_row(plan: dict[str, Any]) -> str:
    """Returns the collective operations of a plan's step."""
    kinds = plan["collectives"]
    counts = ", ".join(f"{entry['count']} {kind}" for kind, entry in kinds.items())
    sent = sum(entry["sent_bytes"] for entry in kinds.values())
    return f"{plan['devices']} | {counts or '-'} | {sent / 1e6:,.2f}"


if __name__ == "__main__":
    cli.run_command(main)
