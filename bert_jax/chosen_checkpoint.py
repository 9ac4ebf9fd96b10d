"""The default checkpoint of a run: the newest, or the best if its config prefers that; and which parameters of it are used:
their moving average if the run keeps one.

Configs are read as stored in the run folder; older ones lack some of these options.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bert_jax import run_folder
from bert_jax.checkpoint.selection import Selection
from bert_jax.train.metrics import Row, evaluations


def chosen_step(workdir: Path, config: dict[str, Any], steps: Sequence[int]) -> int | None:
    """The best of the checkpoints of these steps of a run with this config, or None for the newest."""
    if not config["checkpoint"].get("prefer_best"):
        return None
    there = [(step, row) for step, row in evaluations(workdir / "metrics.jsonl") if step in steps]
    best = Selection(config["checkpoint"]["best_metric"], 0, there).best
    return best[0] if best else None


def chosen_params(config: dict[str, Any]) -> str:
    """Returns the entry of a run's state that evaluation, prediction and `init_from` use: 'ema' if there is one."""
    return "ema" if config["train"]["ema_decay"] else "params"


def chosen_evaluation(workdir: Path, config: dict[str, Any] | None = None) -> tuple[int | None, Row]:
    """Step and held-out metrics, by names without 'eval/', of the evaluation of a run's default checkpoint.

    Before the first evaluation they are None and nothing.
    """
    checkpoint = (config or run_folder.read_config(workdir))["checkpoint"]
    found = evaluations(workdir / "metrics.jsonl")
    if not found:
        return None, {}
    best = Selection(checkpoint["best_metric"], 0, found).best if checkpoint.get("prefer_best") else None
    step, row = best or found[-1]
    return step, {name.removeprefix("eval/"): value for name, value in row.items()}
