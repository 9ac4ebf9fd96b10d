"""README.md of an exported model: sizes, training and held-out results."""

from pathlib import Path
from typing import Any

import msgspec

from bert_jax.data.tokenizer.tokenizer import Tokenizer
from bert_jax.errors import listed
from bert_jax.files import as_form
from bert_jax.library import LoadedEncoder
from bert_jax.markdown import escaped, table
from bert_jax.model.config import EncoderConfig
from bert_jax.run_folder.default_checkpoint import default_evaluation
from bert_jax.run_folder.folder import CONFIG, read_config
from bert_jax.run_folder.provenance import read_origin


class _Train(msgspec.Struct):
    num_steps: int
    batch_size: int
    seed: int


class _Optimizer(msgspec.Struct):
    name: str
    learning_rate: float
    schedule: str


class _Phase(msgspec.Struct):
    until_step: int
    batch_size: int  # 0: that of the run, as of the length
    sequence_length: int
    schedule: str = ""  # '': that of the run
    learning_rate: float = 0.0  # as the run's, if 0


class _Config(msgspec.Struct):
    """Options of a run that the card shows."""

    task: str
    train: _Train
    optimizer: _Optimizer
    objectives: list[str] | None = None
    data: dict[str, Any] = {}
    phases: list[_Phase] = []
    init_from: str = ""


def model_card(workdir: Path, encoder: LoadedEncoder, architecture: str, num_parameters: int) -> str:
    """Returns the text, from config.json and metrics.jsonl of the run; `architecture` is a class of transformers."""
    assert encoder.tokenizer is not None, "every run folder has a tokenizer"
    lines = [
        f"---\nlibrary_name: transformers\n---\n\n# {escaped(workdir.name)}",
        "",
        f"`{architecture}` of {sizes(encoder.model.config, encoder.tokenizer, num_parameters)}. "
        f"`transformers.{architecture}.from_pretrained` loads all of it. Exported with bert_jax.",
        "",
        *training_and_results(workdir),
    ]
    return "\n".join(lines) + "\n"


def sizes(config: EncoderConfig, tokenizer: Tokenizer, num_parameters: int) -> str:
    """Returns the sizes of a model in words."""
    return (
        f"{num_parameters:,} parameters: {config.num_layers} layers of {config.hidden_size}, {config.num_heads} heads, "
        f"{tokenizer.vocab_size:,} tokens, up to {config.max_positions:,} positions"
    )


def training_and_results(workdir: Path) -> list[str]:
    """Returns the lines of two sections: how the run was trained, and what was measured on held-out data."""
    config = read_config(workdir)
    options = recipe(as_form(config, _Config, workdir / CONFIG, "restore it"))
    lines = ["## Training", ""]
    if (workdir / "metrics.jsonl").exists():
        lines += [f"- {name}: {escaped(value)}" for name, value in options.items()]
    else:
        lines += [f"{escaped(beginning(workdir))}, and not trained since."]
    if results := default_evaluation(workdir, config)[1]:
        shown = [[name, f"{value:.4f}"] for name, value in results.items()]
        lines += ["", "## Held-out results", "", *table(["Metric", "Value"], shown)]
    return lines


def beginning(workdir: Path) -> str:
    """Returns what a run that has not been trained was made of."""
    if not (origin := read_origin(workdir)):
        return "Imported"
    sources = [
        Path(source["run"]).name
        + (f", step {source['step']}" if "step" in source else "")
        + (f" (weight {source['weight']:g})" if "weight" in source else "")
        for source in origin["sources"]
    ]
    return f"Made by {origin['tool']} of {listed(sources)}"


def recipe(config: _Config) -> dict[str, Any]:
    """Returns the most important options of a run, by title."""
    train, optimizer, length = config.train, config.optimizer, config.data.get("sequence_length")
    shown: dict[str, Any] = {"task": config.task}
    if config.objectives is not None:
        shown["objectives"] = ", ".join(config.objectives)
    for name in ("corpus", "train") if config.phases else ("corpus", "train", "sequence_length"):
        if value := config.data.get(name):
            shown[f"data.{name}"] = Path(value).name if isinstance(value, str) else value
    phases = [
        f"up to {phase.until_step:,}: {phase.batch_size or train.batch_size:,} sequences of "
        f"{phase.sequence_length or length} tokens each"
        + (
            f", learning rate {phase.learning_rate or optimizer.learning_rate}, {phase.schedule}"
            if phase.schedule
            else ""
        )
        for phase in config.phases
    ]
    shown["steps"] = "; ".join(phases) or f"{train.num_steps:,}, of {train.batch_size:,} sequences each"
    has_schedule = not config.phases or not all(phase.schedule for phase in config.phases)
    rate = f", learning rate {optimizer.learning_rate}, {optimizer.schedule}" if has_schedule else ""
    shown["optimizer"] = f"{optimizer.name}{rate}"
    shown["seed"] = train.seed
    if config.init_from:
        shown["from"] = Path(config.init_from).name
    return shown
